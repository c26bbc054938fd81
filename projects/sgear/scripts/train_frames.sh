#!/usr/bin/env bash
# S-GEAR end to end on frames. Usage: GPUS=4 scripts/train_frames.sh RUN_DIR [KEY=VALUE ...]
set -euo pipefail
make train PROJECT=sgear CONFIG=ek100_vit GPUS="${GPUS:-1}" OUT="${1:?run directory}" ARGS="${*:2}"
