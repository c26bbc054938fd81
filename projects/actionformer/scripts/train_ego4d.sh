#!/usr/bin/env bash
# Ego4D Moment Queries. Usage: FEATURES=omnivore_egovlp scripts/train_ego4d.sh RUN_DIR [KEY=VALUE ...]; all three by default
set -euo pipefail
make train PROJECT=actionformer CONFIG="ego4d_${FEATURES:-slowfast_omnivore_egovlp}" GPUS="${GPUS:-1}" OUT="${1:?run directory}" ARGS="${*:2}"
