#!/usr/bin/env bash
# The published diffusion stage on EPIC-KITCHENS. Usage: GPUS=8 scripts/train_epic.sh RUN_DIR [KEY=VALUE ...]
set -euo pipefail
make train PROJECT=lego CONFIG=epic_ldm GPUS="${GPUS:-8}" OUT="${1:?run directory}" ARGS="${*:2}"
