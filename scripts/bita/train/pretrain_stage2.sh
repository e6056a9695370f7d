#!/usr/bin/env bash
# Stage 2: teach the language model to read the queries, from stage 1's checkpoint.
# Further arguments go on: bash scripts/bita/train/pretrain_stage2.sh --options run.max_epoch=1 …   (MODEL=tiny, NPROC=n: see scripts/launch.sh)
source "$(dirname "${BASH_SOURCE[0]}")/../../launch.sh"
EXEC=exec launch train.py train/pretrain_stage2 "$@"
