#!/usr/bin/env bash
# What comes next, at every second of a video. Usage: scripts/predict.sh RUN_DIR VIDEO [KEY=VALUE ...]
set -euo pipefail
make predict PROJECT=sgear CONFIG=ek100_vit OUT="${1:?run directory}" ARGS="predict.input=${2:-video.mp4} ${*:3}"
