#!/usr/bin/env bash
# Ego4D's clips scaled once to a short side of 320: alone, or as an array of any size; both can be repeated.
# Usage: scripts/resize_clips.sh [FROM] [TO] [KEY=VALUE ...]    sbatch --array=0-1720%200 scripts/resize_clips.sh
#SBATCH --job-name=resize_clips
#SBATCH --array=0-1720%200
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
#SBATCH --time=1:00:00
#SBATCH --requeue
set -euo pipefail
make tool PROJECT=lta_memvit TOOL=resize_clips ARGS="${1:-data/long_term_anticipation/clips_hq} ${2:-data/long_term_anticipation/clips} workers=${SLURM_CPUS_PER_TASK:-2} index=${SLURM_ARRAY_TASK_ID:-0} count=${SLURM_ARRAY_TASK_COUNT:-1} ${*:3}"
