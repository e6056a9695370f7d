#!/usr/bin/env bash
# The whole pipeline on UCM-Captions as published, for two CPU cores, from ImageNet's weights:
#   bash scripts/ucm_small.sh SOURCE OUT
# SOURCE holds dataset.json and imgs/. Results: OUT/{scores.json,report.html}
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
published small_ucm ucm "$@"
