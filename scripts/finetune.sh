#!/usr/bin/env bash
# A model for images of your own, from the one that the package brings:
#   bash scripts/finetune.sh FOLDER OUT [KEY=VALUE …]
# FOLDER holds images with captions, from 50 on: one .csv (columns image, caption), one .jsonl, one COCO .json, or a .txt beside
# each image, one caption a line. Folders train/, val/ and test/ of the latter are taken as splits; otherwise 15% of the images
# are drawn for val and 15% for test, and the dataset's card says so. KEY=VALUE are options of the training (run.max_epoch=80).
# Results: OUT/{scores.json,report.html}; the model is OUT/caption.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
if [ $# -lt 2 ]; then
    echo "usage: bash scripts/finetune.sh FOLDER OUT [KEY=VALUE …]   (FOLDER holds images with captions)" >&2
    exit 2
fi
source=$(given "$1") OUT=$(given "$2")
shift 2
bash scripts/setup.sh
SECONDS=0 MODEL=
draw=(--draw val=0.15 test=0.15)
if [ -d "$source/train" ]; then draw=(); fi
step "checking images and captions"
.venv/bin/python scripts/prepare_data.py own_caption "$source" "$OUT/data/own" --form auto "${draw[@]}"
begin "$OUT"
step "the model as it comes"
launch evaluate.py eval/finetune_own --options "env.cache_root=$OUT/data" "run.output_dir=$OUT/before"
step "fine-tuning"
train finetune_own "$OUT/caption" "env.cache_root=$OUT/data" "$@"
step "before and after"
.venv/bin/python scripts/compare_runs.py "$OUT/before/latest" "$OUT/caption/latest"
score "$OUT/caption" "$OUT"
