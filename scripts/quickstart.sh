#!/usr/bin/env bash
# The whole pipeline on the synthetic dataset, from nothing to a page of captions: data, tokenizers, stage 1, stage 2,
# fine-tuning, scores. Two CPU cores are enough. Results: output/quickstart/{scores.json,report.html}, or below
#   bash scripts/quickstart.sh OUT
set -euo pipefail
OUT=output/quickstart
if [ $# -gt 0 ]; then OUT=$(realpath -m -- "$1"); fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
source scripts/launch.sh

SECONDS=0
if [ ! -f "$OUT/data/synthetic/facts.json" ]; then
    step "drawing the synthetic dataset"
    .venv/bin/python scripts/data/make_synthetic.py "$OUT/data/synthetic"
fi
pipeline tiny synthetic "$OUT"
