#!/usr/bin/env bash
# Classes over time of a video, or of a folder of videos. Usage: scripts/predict.sh RUN_DIR VIDEO [KEY=VALUE ...]
set -euo pipefail
make predict PROJECT=ucf50_x3d CONFIG=ucf50_x3d_s_head OUT="${1:?run directory}" ARGS="predict.input=${2:-video.mp4} ${*:3}"
