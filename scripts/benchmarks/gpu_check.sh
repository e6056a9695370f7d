#!/usr/bin/env bash
# All that needs a GPU, in one call of at most 8 minutes on one H100, from a bare start:
#   bash scripts/benchmarks/gpu_check.sh OUT [--tiny]       --tiny: small, on any device, a CPU too
# versions; steps of the three stages and captioning against the reference and transformers; the tests that need a GPU
# (resume and repetition in 16 bit among them); time by group of kernels; cost of saving. Each part is a process of its own
# with a limit; OUT/report.md, steps.md and results.json are written anew after each.
# It needs torch, torchvision, timm, transformers and pytest, and no network, Java or pycocoevalcap. Packages that the machine
# lacks are taken from wheels in WHEELS (default .whl), made where there is a network:
#   pip download --no-deps -d .whl omegaconf
set -uo pipefail
OUT=$(realpath -m -- "${1:?name a folder for the results}")
TINY=${2:-}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-python3}
ALL=${SECONDS_AT_MOST:-475}
PARTS=$(mktemp -d)
trap 'rm -rf "$PARTS"' EXIT
mkdir -p "$OUT"
export PYTHONPATH=$PWD:${PYTHONPATH:-} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
WHEELS=${WHEELS:-.whl}
if compgen -G "$WHEELS/*.whl" >/dev/null; then
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$PARTS/site" "$WHEELS"/*.whl || exit 1
    export PYTHONPATH=$PYTHONPATH:$PARTS/site
fi

# part NAME LIMIT COMMAND …: a process of its own; its output, how long it took, its exit code; then the report anew.
part() {
    local name=$1 limit=$2 start=$SECONDS left=$((ALL - SECONDS)) code=0
    shift 2
    if [ -n "$TINY" ]; then limit=$left; fi
    if [ "$left" -lt 10 ]; then return; fi
    timeout -k 5 "$((limit < left ? limit : left))" "$@" >"$PARTS/$name.log" 2>&1 || code=$?
    echo "$((SECONDS - start)) $code" >"$PARTS/$name.status"
    echo "$name: $((SECONDS - start)) s, exit code $code"
    if [ "$name" = saving ]; then cp "$PARTS/saving.log" "$PARTS/saving.md"; fi
    "$PYTHON" scripts/benchmarks/gpu_report.py "$PARTS" "$OUT"
}

# gpu NAME LIMIT: a part of gpu.py
gpu() { part "$1" "$2" "$PYTHON" scripts/benchmarks/gpu.py "$1" "$PARTS/$1.json" ${TINY:+--tiny}; }

part versions 60 bash -c 'nvidia-smi 2>/dev/null | head -15; "$0" -c "
import platform, torch, torchvision, timm, transformers
print(platform.platform(), \"Python\", platform.python_version())
print(\"torch\", torch.__version__, \"CUDA\", torch.version.cuda, \"torchvision\", torchvision.__version__)
print(\"timm\", timm.__version__, \"transformers\", transformers.__version__)
print(torch.cuda.get_device_name() if torch.cuda.is_available() else \"no CUDA device\")"' "$PYTHON"
gpu stage_2 110
gpu captioning 110
gpu stage_1 80
part tests 100 "$PYTHON" -m pytest -q -p no:cacheprovider -m gpu $(grep -rl --include='*.py' 'mark\.gpu' tests)
gpu fine_tuning 110
gpu profile 60
saving=(--steps 10)
if [ -n "$TINY" ]; then
    saving=(--steps 2 --cfg-path configs/projects/bita/train/pretrain_stage2_tiny.yaml --options model.init_from=null)
fi
part saving 60 "$PYTHON" scripts/benchmarks/saving.py "${saving[@]}"
echo "all: $SECONDS s; $OUT/report.md"
! grep -lqv ' 0$' "$PARTS"/*.status
