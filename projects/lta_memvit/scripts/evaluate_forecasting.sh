#!/usr/bin/env bash
# Forecasts of the test part as outputs.json in RUN_DIR, checked for the challenge. CKPT: any official or own weights; SPLIT=val adds figures.
# Usage: CKPT=lta_slowfast_trf.ckpt scripts/evaluate_forecasting.sh RUN_DIR [KEY=VALUE ...]
set -euo pipefail
make eval PROJECT=lta_memvit CONFIG="${CONFIG:-ego4d_slowfast_transformer_forecasting}" CKPT="${CKPT:-}" GPUS="${GPUS:-1}" OUT="${1:?run directory}" ARGS="eval.split=${SPLIT:-test} ${*:2}"
