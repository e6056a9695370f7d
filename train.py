"""`bita-train` from a checkout: train a model, either pretraining stage or caption fine-tuning."""

import sys

from bita.cli import train

if __name__ == "__main__":
    sys.exit(train())
