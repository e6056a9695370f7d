#!/usr/bin/env bash
# The whole pipeline on RSICD as published, for two CPU cores, from ImageNet's weights:
#   bash scripts/rsicd_small.sh SOURCE OUT
# SOURCE holds dataset_rsicd.json and RSICD_images/. Results: OUT/{scores.json,report.html}
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
published small rsicd "$@"
