#!/usr/bin/env bash
# ActivityNet 1.3. Usage: FEATURES=i3d scripts/train_anet.sh RUN_DIR [KEY=VALUE ...]; TSP features by default
set -euo pipefail
make train PROJECT=actionformer CONFIG="anet_${FEATURES:-tsp}" GPUS="${GPUS:-1}" OUT="${1:?run directory}" ARGS="${*:2}"
