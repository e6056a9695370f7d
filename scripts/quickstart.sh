#!/usr/bin/env bash
# The whole pipeline on the synthetic dataset, from nothing to a page of captions: data, tokenizers, stage 1, stage 2,
# fine-tuning, scores. Two CPU cores are enough. Results: output/quickstart/{scores.json,report.html}, or below
#   bash scripts/quickstart.sh OUT
# The encoder has ImageNet's weights and rests. MODEL=tiny before it: all from random weights.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
OUT=output/quickstart
if [ $# -gt 0 ]; then OUT=$(given "$1"); fi
bash scripts/setup.sh
SECONDS=0
draw "$OUT"
pipeline "${MODEL:-small_synthetic}" synthetic "$OUT"
