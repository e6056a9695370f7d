#!/usr/bin/env bash
# The whole pipeline on UCM-Captions as published, for two CPU cores, small enough for minutes, from random weights:
#   bash scripts/ucm_tiny.sh SOURCE OUT
# SOURCE holds dataset.json and imgs/. Results: OUT/{scores.json,report.html}
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
published tiny_ucm ucm "$@"
