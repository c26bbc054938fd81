#!/usr/bin/env bash
# The next 20 actions from a frozen backbone, MeMViT-Concat; others: CONFIG=ego4d_slowfast_transformer_forecasting,
# ego4d_slowfast_concat_forecasting, ego4d_mvit_concat_forecasting. Usage: GPUS=4 scripts/ego4d_forecasting.sh RUN_DIR [KEY=VALUE ...]
set -euo pipefail
make train PROJECT=lta_memvit CONFIG="${CONFIG:-ego4d_memvit_concat_forecasting}" GPUS="${GPUS:-1}" NODES="${NODES:-1}" OUT="${1:?run directory}" ARGS="${*:2}"
