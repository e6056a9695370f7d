#!/usr/bin/env bash
# The whole pipeline on UCM-Captions as published, small enough for two CPU cores, from random weights:
#   bash scripts/ucm_tiny.sh SOURCE OUT
# SOURCE holds dataset.json and imgs/. Results: OUT/{scores.json,report.html}
set -euo pipefail
if [ $# -ne 2 ]; then
    echo "usage: bash scripts/ucm_tiny.sh SOURCE OUT   (SOURCE holds dataset.json and imgs/)" >&2
    exit 2
fi
source=$(realpath -- "$1") OUT=$(realpath -m -- "$2")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
source scripts/launch.sh

SECONDS=0
step "preparing UCM-Captions"
.venv/bin/python scripts/prepare_data.py ucm_caption "$source" "$OUT/data/ucm"
pipeline tiny_ucm ucm "$OUT"
