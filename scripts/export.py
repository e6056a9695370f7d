"""`bita-export` from a checkout: write a trained model as one folder, or in the published layout."""

import sys

from bita.cli import export

if __name__ == "__main__":
    sys.exit(export())
