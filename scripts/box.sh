#!/usr/bin/env bash
# The model that the package brings, made anew: RSICD's two pretraining stages, then fine-tuning on
# UCM-Captions and RSICD together.
#   bash scripts/box.sh UCM RSICD OUT
# UCM and RSICD are the datasets as published. OUT/model is the folder to be put in the place of bita/box;
# then python tests/test_box.py UCM records what it says.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
if [ $# -ne 3 ]; then
    echo "usage: bash scripts/box.sh UCM RSICD OUT   (both as published, annotations beside the images)" >&2
    exit 2
fi
ucm=$(given "$1")
rsicd=$(given "$2")
out=$(given "$3")
bash scripts/setup.sh
SECONDS=0
prepare rsicd "$rsicd" "$out"
prepare ucm "$ucm" "$out"
pretrain small rsicd "$out"
step "fine-tuning on both"
MODEL='' train caption_ft_box "$out/box" "env.cache_root=$out/data" "model.init_from=$out/pretrain_stage2"
step "one file"
.venv/bin/python scripts/export.py "$out/box" "$out/model" --half
step "its confidence"
.venv/bin/python scripts/calibrate.py "$out/model" --cache-root "$out/data"
finish "$out"
