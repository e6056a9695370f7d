#!/usr/bin/env bash
# Self-critical training on one dataset, from the fine-tuned checkpoint: captions that the model draws are rewarded by CIDEr-D.
# Further arguments go on: bash scripts/bita/train/train_scst.sh --options run.max_epoch=1 …   (MODEL=tiny, NPROC=n: see scripts/launch.sh)
source "$(dirname "${BASH_SOURCE[0]}")/../../launch.sh"
EXEC=exec launch train.py train/scst "$@"
