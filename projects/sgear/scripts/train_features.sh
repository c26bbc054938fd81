#!/usr/bin/env bash
# S-GEAR on stored features. Usage: CONFIG=ek100_tsn_obj scripts/train_features.sh RUN_DIR [KEY=VALUE ...]
set -euo pipefail
make train PROJECT=sgear CONFIG="${CONFIG:-ek100_tsn_rgb}" OUT="${1:?run directory}" ARGS="${*:2}"
