#!/usr/bin/env bash
# Caption and score a test split with the fine-tuned model.
# Further arguments go on: bash scripts/bita/eval/eval_caption.sh --options run.max_epoch=1 …   (MODEL=tiny, NPROC=n: see scripts/launch.sh)
source "$(dirname "${BASH_SOURCE[0]}")/../../launch.sh"
EXEC=exec launch evaluate.py eval/caption_eval "$@"
