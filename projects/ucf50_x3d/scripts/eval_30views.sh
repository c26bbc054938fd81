#!/usr/bin/env bash
# 10 temporal x 3 spatial views, as the Kinetics numbers are made. Usage: scripts/eval_30views.sh RUN_DIR [KEY=VALUE ...]
set -euo pipefail
make eval PROJECT=ucf50_x3d CONFIG=ucf50_x3d_s OUT="${1:?run directory}" ARGS="eval.views=10 eval.crops=3 ${*:2}"
