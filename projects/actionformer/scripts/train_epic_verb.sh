#!/usr/bin/env bash
# EPIC-KITCHENS-100 verbs. Usage: scripts/train_epic_verb.sh RUN_DIR [KEY=VALUE ...]
set -euo pipefail
make train PROJECT=actionformer CONFIG=epic_slowfast_verb GPUS="${GPUS:-1}" OUT="${1:?run directory}" ARGS="${*:2}"
