#!/usr/bin/env bash
# Verb and noun of single segments, SlowFast-R101 from Kinetics weights; others: CONFIG=ego4d_mvit_recognition, ego4d_memvit_recognition.
# Usage: GPUS=8 scripts/ego4d_recognition.sh RUN_DIR [KEY=VALUE ...]
set -euo pipefail
make train PROJECT=lta_memvit CONFIG="${CONFIG:-ego4d_slowfast_recognition}" GPUS="${GPUS:-1}" NODES="${NODES:-1}" OUT="${1:?run directory}" ARGS="${*:2}"
