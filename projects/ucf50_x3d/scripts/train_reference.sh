#!/usr/bin/env bash
# The published run (random split, 98.60 %). Usage: scripts/train_reference.sh RUN_DIR [KEY=VALUE ...]
set -euo pipefail
make train PROJECT=ucf50_x3d CONFIG=ucf50_x3d_s_reference OUT="${1:?run directory}" ARGS="${*:2}"
