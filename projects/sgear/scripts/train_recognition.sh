#!/usr/bin/env bash
# The recognition run whose embeddings become visual prototypes. Usage: GPUS=4 scripts/train_recognition.sh RUN_DIR [KEY=VALUE ...]
set -euo pipefail
make train PROJECT=sgear CONFIG=ek100_vit_recognition GPUS="${GPUS:-1}" OUT="${1:?run directory}" ARGS="${*:2}"
