#!/usr/bin/env bash
# Set up, then run the tests: `bash scripts/test.sh` in minutes, `bash scripts/test.sh --all` with the long ones.
# Further arguments go to pytest. Tests on real data look for it in BITA_DATA.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
select=(-m "not long")
if [ "${1:-}" = "--all" ]; then select=(); shift; fi
.venv/bin/python -m pytest "${select[@]}" "$@"
