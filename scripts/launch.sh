# Sourced by the stage scripts: start a program on every GPU of this machine, or on its CPU.
#
#   MODEL=tiny   take the small configuration beside the full one
#   NPROC=n      processes to start on this machine (default: the number of GPUs, at least 1)
#   MAX_RESTARTS=n   how often torchrun starts them again when one of them ends (default 3)
#
# On several machines, start the same command on each, with
#   NNODES=n     how many machines; "2:4" waits for two and takes up to four, and goes on when one leaves or joins
#   RDZV_ENDPOINT=host:port   one of the machines, and a free port there
#   RDZV_ID=name     the same on all; another one for another run (default bita)
#
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# launch PROGRAM CONFIG [arguments]: CONFIG is a file under configs/projects/bita, without its ending.
# EXEC=exec launch …: in this shell's place, so that a signal to the script reaches the program.
launch() {
    local program=$1 config=configs/projects/bita/$2${MODEL:+_$MODEL}.yaml
    shift 2
    local python=python
    if [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
    if [ ! -f "$config" ]; then
        echo "error: MODEL=${MODEL:-}: no configuration $config" >&2
        exit 2
    fi
    local processes=${NPROC:-}
    if [ -z "$processes" ]; then
        if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then # those before a -1; empty: none, so the CPU
            processes=$(sed 's/\(^\|,\) *-.*//' <<<"$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | grep -c '[^ ]') || processes=1
        else
            processes=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU') || processes=1
        fi
    fi
    if ! [[ $processes =~ ^[1-9][0-9]*$ ]]; then
        echo "error: NPROC=$processes: wanted a number of processes, 1 or more" >&2
        exit 2
    fi
    if ! [[ ${MAX_RESTARTS:-3} =~ ^[0-9]+$ ]]; then
        echo "error: MAX_RESTARTS=$MAX_RESTARTS: wanted a number of restarts, 0 or more" >&2
        exit 2
    fi
    local start=${EXEC:-}
    if [ -z "$start" ] && setpriv --pdeathsig TERM true 2>/dev/null; then
        start="setpriv --pdeathsig TERM" # a script that is killed takes with it what it has started
    fi
    if [ "$processes" = 1 ] && [ "${NNODES:-1}" = 1 ]; then
        $start "$python" "$program" --cfg-path "$config" "$@"
        return
    fi
    local meet=(--standalone) problem
    if [ "${NNODES:-1}" != 1 ]; then
        if [ -z "${RDZV_ENDPOINT:-}" ]; then
            echo "error: NNODES=$NNODES: set RDZV_ENDPOINT=host:port, the same on every machine" >&2
            exit 2
        fi
        meet=(--nnodes="$NNODES" --rdzv-backend=c10d --rdzv-endpoint="$RDZV_ENDPOINT" --rdzv-id="${RDZV_ID:-bita}")
    fi
    # A mistake in the configuration, or a missing file, is not worth a restart.
    problem=$("$python" "$program" --cfg-path "$config" "$@" --check 2>&1) || {
        echo "$problem" >&2
        exit 2
    }
    $start "$python" -m torch.distributed.run "${meet[@]}" --nproc-per-node="$processes" \
        --max-restarts="${MAX_RESTARTS:-3}" "$program" --cfg-path "$config" "$@"
}

# step TEXT: say what comes next.
step() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }

# given PATH: a path as it is meant in the folder where the script was started.
given() {
    if [ -z "$1" ]; then
        echo "error: a path is empty; is a variable not set?" >&2
        exit 2
    fi
    (cd "$OLDPWD" && realpath -m -- "$1")
}

# draw OUT: the synthetic dataset, where it is not there yet.
draw() {
    if [ -f "$1/data/synthetic/facts.json" ]; then return; fi
    step "drawing the synthetic dataset"
    .venv/bin/python scripts/data/make_synthetic.py "$1/data/synthetic"
}

# prepare DATASET SOURCE OUT: a dataset as published.
prepare() {
    step "preparing $1"
    .venv/bin/python scripts/prepare_data.py "$1_caption" "$2" "$3/data/$1"
}

# begin OUT: a pipeline in OUT, or what is left of one that was interrupted: a file there says since when.
begin() {
    mkdir -p "$1"
    since=$1/.unfinished whole=yes
    if [ -f "$since" ]; then
        step "going on with what was interrupted in $1"
        whole=
    else
        touch "$since"
    fi
}

# train CONFIG OUT [KEY=VALUE …]: a stage of it. One that is finished since is not trained again, unless it is configured
# in another way now; nor, then, what comes after it is taken as it stands.
train() {
    local config=$1 out=$2 once=()
    shift 2
    if [ "$out/latest/run.json" -nt "$since" ]; then once=(--once); fi
    launch train.py "train/$config" "${once[@]}" --options "run.output_dir=$out" "$@"
    since=$out/latest/run.json
}

# finish OUT: its end; started once more, it starts anew.
finish() { rm -f "$1/.unfinished"; }

# score RUN OUT: the last step of most, its scores and report.
score() {
    step "scores"
    .venv/bin/python -m bita.reports.evaluation "$1" "$2" ${whole:+--seconds "$SECONDS"}
    finish "$2"
}

# pretrain MODEL DATASET OUT: tokenizers and the two pretraining stages, for a small model; all of it under OUT.
# 1,400 byte pairs: with more, the model that the package brings would pass 16 MB.
pretrain() {
    local out=$3 data=$3/data
    begin "$out"
    step "tokenizers from the training captions"
    .venv/bin/python scripts/data/make_tokenizers.py "$data/tokenizers" "$data/$2/annotations/train.json" \
        --decoder-vocabulary 1400
    step "stage 1: queries and captions are aligned"
    MODEL=$1 train pretrain_stage1 "$out/pretrain_stage1" "env.cache_root=$data"
    step "stage 2: the language model learns to read the queries"
    MODEL=$1 train pretrain_stage2 "$out/pretrain_stage2" "env.cache_root=$data" "model.init_from=$out/pretrain_stage1"
}

# pipeline MODEL DATASET OUT: these, then fine-tuning, scores and report.
pipeline() {
    pretrain "$@"
    step "stage 3: fine-tuning on captions"
    MODEL=$1 train caption_ft "$3/caption" "env.cache_root=$3/data" "model.init_from=$3/pretrain_stage2"
    score "$3/caption" "$3"
}

# published MODEL DATASET SOURCE OUT: the pipeline on a dataset as published.
published() {
    if [ $# -ne 4 ]; then
        echo "usage: bash scripts/${0##*/} SOURCE OUT   (SOURCE: $2 as published, annotations beside the images)" >&2
        exit 2
    fi
    local source out
    source=$(given "$3")
    out=$(given "$4")
    bash scripts/setup.sh
    SECONDS=0
    prepare "$2" "$source" "$out"
    pipeline "$1" "$2" "$out"
}
