#!/usr/bin/env bash
# Language prototypes of a dataset from its action table. Usage: scripts/prepare_language.sh epic100 actions.csv [--encoder FOLDER ...]
set -euo pipefail
make tool PROJECT=sgear TOOL=make_prototypes ARGS="language --dataset ${1:?epic55, epic100, egtea or 50Salads} --label_file ${2:-actions.csv} --out data/sgear/prototypes ${*:3}"
