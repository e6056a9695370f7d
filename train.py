"""Train a model: either pretraining stage, or caption fine-tuning.

python train.py --cfg-path configs/projects/bita/train/pretrain_stage1.yaml --options key=value …
torchrun --standalone --nproc-per-node 4 train.py --cfg-path …
"""

import sys

from bita.cli import main

if __name__ == "__main__":
    sys.exit(main(__doc__, evaluate=False))
