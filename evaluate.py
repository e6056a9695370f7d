"""`bita-evaluate` from a checkout: caption and score the test splits with a trained model."""

import sys

from bita.cli import evaluate

if __name__ == "__main__":
    sys.exit(evaluate())
