"""`bita-calibrate` from a checkout: fit the confidence of a captioning run."""

import sys

from bita.cli import calibrate

if __name__ == "__main__":
    sys.exit(calibrate())
