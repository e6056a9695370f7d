"""Tokenizers of a small model: the same captions, the same pieces."""

from itertools import product

from bita.prepare.tokenizers import BERT_SPECIAL, make_bert, make_opt

THINGS = [
    "airport",
    "bridge",
    "church",
    "desert",
    "farmland",
    "harbour",
    "industrial area",
    "river",
    "stadium",
]
CAPTIONS = [f"{one} beside a {other} ." for one, other in product(THINGS, repeat=2)]


def test_word_pieces_and_byte_pairs_are_the_same_each_time(tmp_path):
    """Word pieces were numbered in the order of a hash table, so each quickstart had another stage 1."""
    for number in range(4):
        make_bert(CAPTIONS, tmp_path / f"bert{number}", 120)
        make_opt(CAPTIONS, tmp_path / f"opt{number}", 300)
    pieces = {(tmp_path / f"bert{number}/vocab.txt").read_text() for number in range(4)}
    pairs = {(tmp_path / f"opt{number}/merges.txt").read_text() for number in range(4)}
    assert (len(pieces), len(pairs)) == (1, 1)


def test_letters_inside_words_come_first_in_alphabetical_order(tmp_path):
    make_bert(["Été beside a bed", "été beside a bed"], tmp_path, 40)
    pieces = (tmp_path / "vocab.txt").read_text().split()
    assert pieces[:5] == BERT_SPECIAL
    assert pieces[5:10] == ["##d", "##e", "##i", "##s", "##t"]  # of ete, beside, bed; each once
    assert "beside" in pieces
