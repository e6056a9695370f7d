"""Make the tokenizers of a small model from training captions: word pieces for stage 1, byte pairs for stage 2.

    .venv/bin/python scripts/data/make_tokenizers.py OUT ANNOTATIONS.json… [--families llama qwen gpt2]

writes OUT/bert and OUT/opt, folders that transformers reads like those of BERT and OPT, and one for each further family
of language models, with the special tokens of that family. The captions are cleaned as in training. Use the training
split only; words that it does not have are spelt in pieces.
"""

from __future__ import annotations

import sys

from bita.commands import at_least, command_line, program
from bita.files import user_path
from bita.prepare.tokenizers import FAMILIES, make_bert, make_family, make_opt, read_captions


@program
def main() -> int:
    """The command line."""
    parser = command_line(__doc__)
    parser.add_argument("out", type=user_path)
    parser.add_argument("annotations", type=user_path, nargs="+")
    parser.add_argument(
        "--vocabulary", type=at_least(1), default=2000, help="most entries in each (default 2000)"
    )
    parser.add_argument(
        "--decoder-vocabulary",
        type=at_least(1),
        metavar="N",
        help="most byte pairs of a decoder (default: as --vocabulary)",
    )
    parser.add_argument(
        "--families", nargs="*", default=[], choices=sorted(FAMILIES), help="further decoders"
    )
    args = parser.parse_args()
    captions, pairs = read_captions(args.annotations), args.decoder_vocabulary or args.vocabulary
    bert = make_bert(captions, args.out / "bert", args.vocabulary)
    opt = make_opt(captions, args.out / "opt", pairs)
    others = [
        f", {family} {make_family(captions, family, args.out / family, pairs)}" for family in args.families
    ]
    print(
        f"tokenizers from {len(captions)} captions in {args.out}: bert {bert} word pieces, opt {opt}{''.join(others)} "
        "byte pairs"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
