"""Tokenizers of a small model from training captions: word pieces for stage 1, byte pairs for the language model."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, BertWordPieceTokenizer, ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing

from bita.errors import UserError
from bita.processors.text import clean_caption
from bita.records import read_records

BERT_SPECIAL: list[str | AddedToken] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
OPT_SPECIAL: list[str | AddedToken] = ["<s>", "<pad>", "</s>", "<unk>"]
OPT_CONFIG = {
    "tokenizer_class": "GPT2Tokenizer",
    "add_bos_token": True,
    "add_prefix_space": False,
    "bos_token": "</s>",
    "eos_token": "</s>",
    "unk_token": "</s>",
    "pad_token": "<pad>",
}
FAMILIES: dict[str, dict[str, str]] = {
    "llama": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
    "qwen": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "gpt2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
}
"""Family → its special tokens; Llama's tokenizer puts its begin token in front of every text, the others nothing."""


def read_captions(paths: list[Path]) -> list[str]:
    """Return the cleaned captions of annotation files.

    Raises:
        UserError: a file is missing or is not a list of records with a caption.
    """
    captions = [
        clean_caption(caption)
        for path in paths
        for record in read_records(path)
        for caption in record.captions("caption")
    ]
    if not captions:
        raise UserError("no captions; name at least one annotation file of a training split")
    return captions


def make_bert(captions: list[str], out: Path, vocabulary: int) -> int:
    """Train word pieces and write them as BERT's tokenizer; returns how many there are, [DEC] not counted."""
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(
        iter(captions),
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[*BERT_SPECIAL, *_inner_letters(tokenizer, captions)],
    )
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_model(str(out))
    (out / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    return int(tokenizer.get_vocab_size())


def _inner_letters(tokenizer: BertWordPieceTokenizer, captions: list[str]) -> list[str]:
    """Letters that stand inside words, as pieces, sorted.

    The trainer numbers them in the order of a hash table, another one in every process, and breaks ties between pairs
    by their numbers. Named before the training they have the same numbers, and the same captions the same pieces.
    """
    texts = {tokenizer.normalizer.normalize_str(caption) for caption in captions}
    words = {word for text in texts for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)}
    return sorted({f"##{letter}" for word in words for letter in word[1:]})


def make_opt(captions: list[str], out: Path, vocabulary: int) -> int:
    """Train byte pairs and write them as OPT's tokenizer; returns how many there are."""
    tokenizer = byte_pairs(captions, vocabulary, OPT_SPECIAL)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_model(str(out))
    (out / "tokenizer_config.json").write_text(json.dumps(OPT_CONFIG))
    return int(tokenizer.get_vocab_size())


def byte_pairs(
    captions: list[str], vocabulary: int, special: list[str | AddedToken]
) -> ByteLevelBPETokenizer:
    """Byte pairs of captions, as they stand first or after a prompt."""
    tokenizer = ByteLevelBPETokenizer()
    texts = [text for caption in captions for text in (caption, " " + caption)]
    tokenizer.train_from_iterator(iter(texts), vocab_size=vocabulary, min_frequency=2, special_tokens=special)
    return tokenizer


def make_family(captions: list[str], family: str, out: Path, vocabulary: int) -> int:
    """Train byte pairs and write them with the special tokens of a family; returns how many there are."""
    from transformers import PreTrainedTokenizerFast

    special = FAMILIES[family]
    trained = byte_pairs(captions, vocabulary, list(dict.fromkeys(special.values())))
    if family == "llama":
        begin = special["bos_token"]
        trained.post_processor = TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, trained.token_to_id(begin))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, **special)
    tokenizer.save_pretrained(out)
    return len(tokenizer)
