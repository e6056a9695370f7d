#!/usr/bin/env bash
# Find captions by images and images by captions, with a model of stage 1; recalls in scores.json.
# Further arguments go on: bash scripts/bita/eval/eval_retrieval.sh --options run.test_splits=[val] …   (MODEL=tiny, NPROC=n: see scripts/launch.sh)
source "$(dirname "${BASH_SOURCE[0]}")/../../launch.sh"
EXEC=exec launch evaluate.py eval/retrieval_eval "$@"
