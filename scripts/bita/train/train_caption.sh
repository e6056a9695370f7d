#!/usr/bin/env bash
# Fine-tune on one dataset, from stage 2's checkpoint; best epoch by CIDEr + BLEU-4, tested at the end.
# Further arguments go on: bash scripts/bita/train/train_caption.sh --options run.max_epoch=1 …   (MODEL=tiny, NPROC=n: see scripts/launch.sh)
source "$(dirname "${BASH_SOURCE[0]}")/../../launch.sh"
EXEC=exec launch train.py train/caption_ft "$@"
