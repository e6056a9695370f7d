# Sourced by the stage scripts: start a program on every GPU of this machine, or on its CPU.
#
#   MODEL=tiny   take the small configuration beside the full one
#   NPROC=n      processes to start (default: the number of GPUs, at least 1)
#
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# launch PROGRAM CONFIG [arguments]: CONFIG is a file under configs/projects/bita, without its ending.
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
        processes=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU') || processes=1
    fi
    if [ "$processes" -gt 1 ]; then
        "$python" -m torch.distributed.run --standalone --nproc-per-node="$processes" \
            "$program" --cfg-path "$config" "$@"
    else
        "$python" "$program" --cfg-path "$config" "$@"
    fi
}
