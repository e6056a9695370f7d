#!/usr/bin/env bash
# A model for images of your own, from the one that the package brings:
#   bash scripts/finetune.sh FOLDER OUT [KEY=VALUE …]
# FOLDER holds images with captions, from 50 on: one .csv (columns image, caption), one .jsonl, one COCO .json, or a .txt beside
# each image, one caption a line. Folders train/, val/ and test/, or a column split, declare splits; otherwise 15% of the images
# are drawn for val and 15% for test, and the dataset's card says so. KEY=VALUE are options of the training (run.max_epoch=80).
# Results: OUT/{scores.json,report.html}; the model is OUT/caption.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
if [ $# -lt 2 ]; then
    echo "usage: bash scripts/finetune.sh FOLDER OUT [KEY=VALUE …]   (FOLDER holds images with captions)" >&2
    exit 2
fi
source=$(given "$1")
OUT=$(given "$2")
shift 2
bash scripts/setup.sh
SECONDS=0 MODEL=
step "checking images and captions"
changed=(--overwrite) hint=
if [ -f "$OUT/.unfinished" ]; then # what was interrupted goes on with the images that it began with
    changed=() hint="$OUT was interrupted: if FOLDER has changed since, remove $OUT/.unfinished to train anew with what it is now"
fi
.venv/bin/python scripts/prepare_data.py own_caption "$source" "$OUT/data/own" --form auto --draw val=0.15 test=0.15 \
    --every-split "${changed[@]}" || { [ -z "$hint" ] || echo "$hint" >&2; exit 1; }
NPROC=1 launch train.py train/finetune_own --check --options "env.cache_root=$OUT/data" "$@" >/dev/null
begin "$OUT"
step "the model as it comes"
launch evaluate.py eval/finetune_own --options "env.cache_root=$OUT/data" "run.output_dir=$OUT/before"
step "fine-tuning"
train finetune_own "$OUT/caption" "env.cache_root=$OUT/data" "$@"
step "before and after"
.venv/bin/python scripts/compare_runs.py "$OUT/before/latest" "$OUT/caption/latest"
score "$OUT/caption" "$OUT"
