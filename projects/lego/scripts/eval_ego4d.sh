#!/usr/bin/env bash
# Scores of the frames of a run. Usage: scripts/eval_ego4d.sh RUN_DIR [KEY=VALUE ...]
set -euo pipefail
make eval PROJECT=lego CONFIG=ego4d_ldm GPUS="${GPUS:-1}" OUT="${1:?run directory}" ARGS="${*:2}"
