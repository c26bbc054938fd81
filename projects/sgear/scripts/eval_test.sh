#!/usr/bin/env bash
# Scores of the test set, which submissions need. Usage: CONFIG=ek100_vit scripts/eval_test.sh RUN_DIR [KEY=VALUE ...]
set -euo pipefail
make eval PROJECT=sgear CONFIG="${CONFIG:-ek100_vit}" OUT="${1:?run directory}" ARGS="eval.split=test ${*:2}"
