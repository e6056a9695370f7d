"""Caption and score the test splits with a trained model.

python evaluate.py --cfg-path configs/projects/bita/eval/caption_eval.yaml --options key=value …
torchrun --standalone --nproc-per-node 4 evaluate.py --cfg-path …
"""

import sys

from bita.cli import main

if __name__ == "__main__":
    sys.exit(main(__doc__, evaluate=True))
