"""`bita-prepare` from a checkout: published files to annotation files, ground truth and a card."""

import sys

from bita.prepare.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
