#!/usr/bin/env bash
# Last layer only, from cached features, grouped split. Usage: scripts/train_head.sh RUN_DIR [KEY=VALUE ...]
set -euo pipefail
make train PROJECT=ucf50_x3d CONFIG=ucf50_x3d_s_head OUT="${1:?run directory}" ARGS="${*:2}"
