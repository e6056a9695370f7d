#!/usr/bin/env bash
# Measure again what benchmarks/NAME.md records, and say how far it is off:
#   bash scripts/benchmarks/reproduce.sh NAME [--write] [--only WHAT]     (NAME: quickstart, ucm_tiny, loader, metrics, …)
# BITA_DATA is the folder of the published datasets, where they are needed. --write records what was measured.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bash scripts/setup.sh
PATH="$PWD/.venv/bin:$PATH" exec python scripts/benchmarks/reproduce.py "$@"
