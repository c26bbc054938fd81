#!/usr/bin/env bash
# The frame of an action. Usage: scripts/predict.sh RUN_DIR FRAME [KEY=VALUE ...]
set -euo pipefail
make predict PROJECT=lego CONFIG=ego4d_ldm OUT="${1:?run directory}" ARGS="predict.image=${2:-frame.jpg} ${*:3}"
