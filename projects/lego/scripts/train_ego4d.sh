#!/usr/bin/env bash
# The published diffusion stage on Ego4D. Usage: GPUS=8 scripts/train_ego4d.sh RUN_DIR [KEY=VALUE ...]
set -euo pipefail
make train PROJECT=lego CONFIG=ego4d_ldm GPUS="${GPUS:-8}" OUT="${1:?run directory}" ARGS="${*:2}"
