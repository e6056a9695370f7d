#!/usr/bin/env bash
# Stage 1: align queries and captions by contrast.
# Further arguments go on: bash scripts/bita/train/pretrain_stage1.sh --options run.max_epoch=1 …   (MODEL=tiny, NPROC=n: see scripts/launch.sh)
source "$(dirname "${BASH_SOURCE[0]}")/../../launch.sh"
EXEC=exec launch train.py train/pretrain_stage1 "$@"
