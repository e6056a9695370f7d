"""`bita-caption` from a checkout: caption images with a trained model."""

import sys

from bita.cli import caption

if __name__ == "__main__":
    sys.exit(caption())
