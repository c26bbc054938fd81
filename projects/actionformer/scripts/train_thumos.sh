#!/usr/bin/env bash
# THUMOS14, I3D features. Usage: scripts/train_thumos.sh RUN_DIR [KEY=VALUE ...]; GPUS=4 for several
set -euo pipefail
make train PROJECT=actionformer CONFIG=thumos_i3d GPUS="${GPUS:-1}" OUT="${1:?run directory}" ARGS="${*:2}"
