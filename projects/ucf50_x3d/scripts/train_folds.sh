#!/usr/bin/env bash
# UCF50's own protocol: 25 runs, each leaves one group out; the mean of their test accuracies is the number to quote.
# Usage: scripts/train_folds.sh RUN_DIR [KEY=VALUE ...]
set -euo pipefail
for fold in $(seq 25); do
    make train PROJECT=ucf50_x3d CONFIG=ucf50_x3d_s_head OUT="${1:?run directory}/fold$fold" ARGS="data.protocol=fold data.fold=$fold ${*:2}"
done
