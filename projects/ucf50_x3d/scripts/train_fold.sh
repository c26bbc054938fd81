#!/usr/bin/env bash
# One run of UCF50's own protocol, leave one group out; the mean test accuracy of FOLD=1..25 is the number to quote.
# Usage: for fold in $(seq 25); do FOLD=$fold scripts/train_fold.sh runs/folds/$fold; done
set -euo pipefail
make train PROJECT=ucf50_x3d CONFIG=ucf50_x3d_s_head OUT="${1:?run directory}" ARGS="data.protocol=fold data.fold=${FOLD:-1} ${*:2}"
