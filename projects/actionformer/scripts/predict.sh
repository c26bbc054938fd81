#!/usr/bin/env bash
# What happens when in a video of your own. Usage: scripts/predict.sh RUN_DIR VIDEO [KEY=VALUE ...]
set -euo pipefail
make predict PROJECT=actionformer CONFIG=own OUT="${1:?run directory}" ARGS="predict.input=${2:-video.mp4} ${*:3}"
