#!/usr/bin/env bash
# Visual prototypes from a recognition run. Usage: scripts/prepare_visual.sh RUN_DIR [--split train] [KEY=VALUE ...]
set -euo pipefail
make tool PROJECT=sgear TOOL=make_prototypes ARGS="visual projects/sgear/configs/ek100_vit_recognition.yaml run.out=${1:?run directory} ${*:2}"
