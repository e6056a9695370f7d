"""`bita-search` from a checkout: find images, or tiles of a scene, by words."""

import sys

from bita.cli import search

if __name__ == "__main__":
    sys.exit(search())
