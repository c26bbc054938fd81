#!/usr/bin/env bash
# The published weights of a configuration. Usage: CONFIG=thumos_i3d scripts/eval_official.sh RUN_DIR FOLDER [KEY=VALUE ...]
set -euo pipefail
make eval PROJECT=actionformer CONFIG="${CONFIG:-thumos_i3d}" CKPT="${2:-pretrained/thumos_i3d_reproduce}" OUT="${1:?run directory}" ARGS="${*:3}"
