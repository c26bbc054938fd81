#!/usr/bin/env bash
# Videos scaled once to a short side of 256, in parallel, resumable. Usage: scripts/prepare_resized.sh FROM [TO] [KEY=VALUE ...]
set -euo pipefail
make transcode FROM="${1:?folder of videos}" TO="${2:-data/ucf50/UCF50_256}" ARGS="short_side=256 ${*:3}"
