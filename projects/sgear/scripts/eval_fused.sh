#!/usr/bin/env bash
# The published late fusion of frames and objects (18.9). Usage: scripts/eval_fused.sh RUN_VIT RUN_OBJ [--search ...]
set -euo pipefail
make tool PROJECT=sgear TOOL=fuse ARGS="${1:?run directory} ${2:-runs/sgear/ek100_tsn_obj} --weights 2.5 0.5 ${*:3}"
