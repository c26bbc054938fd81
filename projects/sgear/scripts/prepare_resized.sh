#!/usr/bin/env bash
# Videos scaled once to 256 lines, in parallel, resumable (the published resize_epic_256px.sh).
# Usage: scripts/prepare_resized.sh FROM [TO] [KEY=VALUE ...]
set -euo pipefail
make transcode FROM="${1:?folder of videos}" TO="${2:-data/sgear/DATA/videos/EpicKitchens100/videos_extension_ht256px}" ARGS="short_side=256 ${*:3}"
