#!/usr/bin/env bash
# Set up, then run the tests: `bash scripts/test.sh` in minutes, `bash scripts/test.sh --all` with the long ones.
# Further arguments go to pytest. Tests on real data look for it in BITA_DATA. WORKERS=n processes share the files (2).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
select=(-m "not long")
if [ "${1:-}" = "--all" ]; then select=(); shift; fi
export OMP_NUM_THREADS=1    # a thread a process is what fills the cores
.venv/bin/python -m pytest --numprocesses "${WORKERS:-2}" --dist loadfile "${select[@]}" "$@"
