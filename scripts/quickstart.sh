#!/usr/bin/env bash
# The whole road on the synthetic dataset, from nothing to a page of captions: data, tokenizers, stage 1, stage 2,
# fine-tuning, scores. Two CPU cores are enough. Results: output/quickstart/{scores.json,report.html}
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
source scripts/launch.sh

OUT=output/quickstart
SECONDS=0
if [ ! -f "$OUT/data/synthetic/facts.json" ]; then
    step "drawing the synthetic dataset"
    .venv/bin/python scripts/data/make_synthetic.py "$OUT/data/synthetic"
fi
road tiny synthetic "$OUT"
