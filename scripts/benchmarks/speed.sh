#!/usr/bin/env bash
# Measure all rows of benchmark.py, each in a process of its own, on a quiet machine: about 20 minutes on two cores.
#   bash scripts/benchmarks/speed.sh OUT [--small]
# OUT gets result.md, a JSON file a row, growth.svg, log.txt. BITA_DATA is the folder of the published datasets: without it
# scores are not timed. Where OUT/quickstart holds a whole quickstart already, it is not run again.
set -euo pipefail
OUT=$(realpath -m -- "${1:?name a folder for the results}")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=python
if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
export PYTHONPATH=$PWD
mkdir -p "$OUT"
failed=()

# measure ROW [arguments]
measure() {
    local row=$1
    shift
    echo "== $row ($SECONDS s)" | tee -a "$OUT/log.txt"
    timeout 900 "$PYTHON" scripts/benchmarks/benchmark.py "$row" --rounds 3 --json "$OUT/$row.json" "$@" \
        >>"$OUT/log.txt" 2>&1 || failed+=("$row")
}

small=("${@:2}")
if [ ! -f "$OUT/quickstart/scores.json" ] && [ ${#small[@]} = 0 ]; then
    measure quickstart --run "$OUT/quickstart"
elif [ -f "$OUT/quickstart/scores.json" ]; then
    measure quickstart --small --run "$OUT/quickstart"
fi
if [ -d "$OUT/quickstart/caption" ]; then
    measure files --run "$OUT/quickstart/caption" "${small[@]}"
fi
for row in captioning epoch input contrast grouped encoder features search busy; do
    measure "$row" "${small[@]}"
done
measure growth --plot "$OUT/growth.svg" "${small[@]}"
if [ -n "${BITA_DATA:-}" ]; then
    measure scoring --data "$BITA_DATA/ucm_captions/dataset.json" "${small[@]}"
fi
"$PYTHON" scripts/benchmarks/benchmark.py table "$OUT"/*.json | tee "$OUT/result.md"
if [ ${#failed[@]} -gt 0 ]; then
    echo "error: not measured: ${failed[*]}; $OUT/log.txt says why" >&2
    exit 1
fi
