#!/usr/bin/env bash
# The whole X3D-S on all GPUs of this machine. Usage: GPUS=4 scripts/train_finetune.sh RUN_DIR [KEY=VALUE ...]
set -euo pipefail
make train PROJECT=ucf50_x3d CONFIG=ucf50_x3d_s GPUS="${GPUS:-1}" OUT="${1:?run directory}" ARGS="${*:2}"
