#!/usr/bin/env bash
# One small language model of each family, each on the same stage 1: trained, scored beside shuffled images, and
# captioned again in 8 bit.   bash scripts/benchmarks/decoders.sh [OUT [FAMILY…]]   (opt llama qwen gpt2)
# Results: OUT/decoders.md. OPTIONS="key=value …" goes to every training run.
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"
OUT=output/decoders
if [ $# -gt 0 ]; then OUT=$(given "$1"); fi
FAMILIES=("${@:2}")
if [ ${#FAMILIES[@]} -eq 0 ]; then FAMILIES=(opt llama qwen gpt2); fi
read -ra MORE <<<"${OPTIONS:-}"
bash scripts/setup.sh
SECONDS=0
draw "$OUT"
step "tokenizers from the training captions"
.venv/bin/python scripts/data/make_tokenizers.py "$OUT/data/tokenizers" "$OUT/data/synthetic/annotations/train.json" \
    --families llama qwen gpt2
common=(--options "env.cache_root=$OUT/data" "${MORE[@]}")
step "stage 1, for all of them"
MODEL=tiny launch train.py train/pretrain_stage1 --once "${common[@]}" "run.output_dir=$OUT/pretrain_stage1"
for family in "${FAMILIES[@]}"; do
    step "captions by $family"
    MODEL='' launch train.py "train/decoder_$family" "${common[@]}" "run.output_dir=$OUT/$family" \
        "model.init_from=$OUT/pretrain_stage1"
done
step "scores"
.venv/bin/python scripts/benchmarks/compare_decoders.py "$OUT" "${FAMILIES[@]}" --markdown "$OUT/decoders.md"
