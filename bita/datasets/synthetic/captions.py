"""Five sentences from the facts of a scene, and the facts back out of a sentence.

A template's fields: `{n}` number word, `{c}` colour, `{are}` is/are, `{arr}` arrangement, `{sur}`
surroundings, and the kind's own nouns `{a}` (the usual one) and `{b}` (the other), in the right number.
The first template of a kind is the typical one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

from bita.datasets.synthetic.facts import Facts

NUMBERS = ("one", "two", "three", "four", "five", "six")
COLOURS = ("white", "gray", "red", "blue", "green", "brown", "yellow")
CAPTIONS_PER_IMAGE = 5

SURROUNDINGS = {
    "lawn": "a meadow",
    "bare ground": "bare ground",
    "trees": "many trees",
    "houses": "some houses",
    "buildings": "large buildings",
    "road": "a road",
    "water": "the water",
    "forest": "dense woods",
    "open sea": "on the open sea",
    "coast": "near the coast",
}
ARRANGEMENTS = {
    "in a row": ("in a row", "in a line"),
    "in two rows": ("in two rows", "in two lines"),
    "scattered": ("scattered around", "scattered about"),
    "in a circle": ("in a circle", "in a ring"),
    "in strips": ("in strips", "in long strips"),
    "in squares": ("in squares", "in large squares"),
    "winding": ("winding", "curved"),
    "straight": ("straight", "straight"),
}


@dataclass(frozen=True)
class Words:
    """How a kind of scene is told: nouns as (singular, plural) pairs, templates, and words that give it away."""

    nouns: tuple[tuple[str, str], tuple[str, str]]
    templates: tuple[str, ...]
    marks: tuple[str, ...]
    """Regular expressions; the kind is read off a caption by the first kind in `WORDS` with one that matches."""


WORDS: dict[str, Words] = {
    "airport": Words(
        (("airplane", "airplanes"), ("plane", "planes")),
        (
            "{n} {c} {a} {are} parked {arr} at the airport next to {sur} .",
            "there {are} {n} {c} {a} parked {arr} at the airport .",
            "{n} {c} {b} {are} {arr} on the apron of an airport next to {sur} .",
            "an airport with {n} {c} {a} parked {arr} is next to {sur} .",
            "{n} {c} {a} {are} stopped {arr} at the airport with {sur} around .",
            "we can see {n} {c} {b} parked {arr} at the airport .",
        ),
        ("airport", "(air)?planes?"),
    ),
    "harbour": Words(
        (("boat", "boats"), ("boat", "boats")),
        (
            "{n} {c} {a} {are} docked {arr} at the pier of a harbour next to {sur} .",
            "there {are} {n} {c} {a} docked {arr} in the harbour next to {sur} .",
            "a harbour with {n} {c} {a} docked {arr} at the pier .",
            "{n} {c} {a} {are} moored {arr} at the pier of a harbour near {sur} .",
            "in the harbour {n} {c} {a} {are} docked {arr} at the pier .",
        ),
        ("harbour", "boats?", "pier"),
    ),
    "ships": Words(
        (("ship", "ships"), ("cargo ship", "cargo ships")),
        (
            "{n} {c} {a} {are} sailing {arr} {sur} .",
            "there {are} {n} {c} {a} sailing {arr} {sur} .",
            "{n} {c} {b} {are} {arr} {sur} .",
            "we can see {n} {c} {b} sailing {arr} {sur} .",
            "{n} {c} {a} {are} {arr} on the calm sea .",
        ),
        ("ships?", "sailing"),
    ),
    "storage tanks": Words(
        (("storage tank", "storage tanks"), ("round tank", "round tanks")),
        (
            "{n} {c} {a} {are} {arr} next to {sur} .",
            "there {are} {n} {c} {a} {arr} next to {sur} .",
            "{n} {c} {a} {are} standing {arr} with {sur} nearby .",
            "{n} {c} {b} {are} {arr} next to {sur} .",
            "we can see {n} {c} {a} {arr} near {sur} .",
            "{n} round {c} {a} {are} {arr} .",
        ),
        ("tanks?",),
    ),
    "tennis courts": Words(
        (("tennis court", "tennis courts"), ("court", "courts")),
        (
            "{n} {c} {a} {are} arranged {arr} next to {sur} .",
            "there {are} {n} {c} {a} arranged {arr} next to {sur} .",
            "{n} {c} {a} {are} {arr} and close to {sur} .",
            "{n} {a} with {c} ground {are} arranged {arr} near {sur} .",
            "we can see {n} {c} {a} arranged {arr} .",
        ),
        ("tennis", "courts?"),
    ),
    "baseball fields": Words(
        (("baseball field", "baseball fields"), ("baseball diamond", "baseball diamonds")),
        (
            "{n} {a} {are} arranged {arr} next to {sur} .",
            "there {are} {n} {a} arranged {arr} next to {sur} .",
            "{n} {b} {are} {arr} and close to {sur} .",
            "{n} {a} with a diamond {are} {arr} near {sur} .",
            "we can see {n} {b} arranged {arr} near {sur} .",
        ),
        ("baseball", "diamonds?"),
    ),
    "stadium": Words(
        (("stadium", "stadiums"), ("football field", "football fields")),
        (
            "a stadium with a football field and a {c} track is next to {sur} .",
            "there is a stadium with a {c} track and a football field next to {sur} .",
            "a football field with a {c} track around it is in a stadium near {sur} .",
            "a stadium with a {c} track is close to {sur} .",
            "we can see a stadium with a football field and a {c} track .",
        ),
        ("stadiums?", "football", "track"),
    ),
    "farmland": Words(
        (("field", "fields"), ("field", "fields")),
        (
            "a piece of {c} farmland is divided {arr} with {sur} beside it .",
            "there is a piece of {c} farmland divided {arr} with {sur} .",
            "{c} farmland is divided {arr} and goes along {sur} .",
            "the {c} farmland is arranged {arr} next to {sur} .",
            "many {c} fields of farmland are arranged {arr} next to {sur} .",
        ),
        ("farmland",),
    ),
    "circular fields": Words(
        (("circular field", "circular fields"), ("circular crop field", "circular crop fields")),
        (
            "{n} {c} {a} {are} arranged {arr} next to {sur} .",
            "there {are} {n} {c} {a} arranged {arr} next to {sur} .",
            "{n} {c} {b} {are} {arr} and close to {sur} .",
            "{n} {c} {a} {are} {arr} with {sur} nearby .",
            "we can see {n} {c} {b} arranged {arr} .",
        ),
        ("circular", "crop"),
    ),
    "bridge": Words(
        (("bridge", "bridges"), ("road bridge", "road bridges")),
        (
            "{n} {a} {are} over a {c} river with {sur} on both banks .",
            "there {are} {n} {a} over a {c} river with {sur} on both banks .",
            "{n} {b} {are} built over the {c} river next to {sur} .",
            "a {c} river with {n} {a} over it is surrounded by {sur} .",
            "{n} {a} with cars {are} over a {c} river .",
        ),
        ("bridges?",),
    ),
    "river": Words(
        (("river", "rivers"), ("river", "rivers")),
        (
            "a {arr} river with {c} water flows through {sur} .",
            "there is a {arr} river with {c} water flowing through {sur} .",
            "a {c} {arr} river has {sur} on both banks .",
            "the {arr} river with {c} water is surrounded by {sur} .",
            "a {arr} {c} river flows through {sur} .",
        ),
        ("river",),
    ),
    "residential area": Words(
        (("house", "houses"), ("home", "homes")),
        (
            "{n} {a} with {c} {roof} {are} {arr} along a street in a residential area with {sur} .",
            "there {are} {n} {a} with {c} {roof} {arr} in a residential area with {sur} .",
            "a residential area with {n} {a} with {c} {roof} {arr} along a street .",
            "{n} {b} with {c} {roof} {are} {arr} along a street and near {sur} .",
            "in the residential area {n} {a} with {c} {roof} {are} {arr} .",
        ),
        ("residential", "roofs?", "homes?"),
    ),
    "parking lot": Words(
        (("row of cars", "rows of cars"), ("line of cars", "lines of cars")),
        (
            "a parking lot with {n} {a} is next to {sur} .",
            "there {are} {n} {a} in the parking lot next to {sur} .",
            "{n} {a} {are} parked in a parking lot near {sur} .",
            "{n} {b} {are} parked in a parking lot close to {sur} .",
            "we can see a parking lot with {n} {a} near {sur} .",
        ),
        ("parking",),
    ),
    "intersection": Words(
        (("road", "roads"), ("street", "streets")),
        (
            "{n} {a} meet at an intersection with cars and {sur} around .",
            "there is an intersection where {n} {a} meet next to {sur} .",
            "an intersection of {n} {b} is surrounded by {sur} .",
            "{n} {b} with some cars meet at an intersection near {sur} .",
            "we can see {n} {a} meet at an intersection with {sur} around .",
        ),
        ("intersection",),
    ),
    "roundabout": Words(
        (("road", "roads"), ("street", "streets")),
        (
            "{n} {a} meet at a roundabout with cars and {sur} around .",
            "there is a roundabout where {n} {a} meet next to {sur} .",
            "a roundabout with {n} {b} is surrounded by {sur} .",
            "{n} {b} meet at a round roundabout with grass in the middle near {sur} .",
            "we can see {n} {a} meet at a roundabout with {sur} around .",
        ),
        ("roundabout",),
    ),
    "forest": Words(
        (("clearing", "clearings"), ("open place", "open places")),
        (
            "{n} {c} {a} {are} {arr} in a dense forest .",
            "there {are} {n} {c} {a} {arr} in the dense forest .",
            "a dense forest with {n} {c} {a} {arr} .",
            "{n} {c} {b} {are} {arr} in a forest with tall trees .",
            "we can see {n} {c} {a} {arr} in a dense forest .",
        ),
        ("forest", "clearings?"),
    ),
    "greenhouses": Words(
        (("greenhouse", "greenhouses"), ("glass house", "glass houses")),
        (
            "{n} long {c} {a} {are} arranged {arr} next to {sur} .",
            "there {are} {n} long {c} {a} arranged {arr} next to {sur} .",
            "{n} {c} {a} {are} {arr} and close to {sur} .",
            "{n} {c} {a} with bare soil between them {are} {arr} near {sur} .",
            "we can see {n} long {c} {a} arranged {arr} .",
        ),
        ("greenhouses?",),
    ),
    "solar panels": Words(
        (("row of solar panels", "rows of solar panels"), ("line of solar panels", "lines of solar panels")),
        (
            "{n} {a} {are} built next to {sur} .",
            "there {are} {n} {a} built next to {sur} .",
            "a solar farm with {n} {a} is next to {sur} .",
            "{n} {b} {are} in a solar farm close to {sur} .",
            "we can see {n} {a} with {sur} nearby .",
        ),
        ("solar",),
    ),
    "ponds": Words(
        (("pond", "ponds"), ("small lake", "small lakes")),
        (
            "{n} {c} {a} {are} lying {arr} next to {sur} .",
            "there {are} {n} {c} {a} lying {arr} next to {sur} .",
            "{n} {a} with {c} water {are} {arr} and surrounded by {sur} .",
            "{n} {c} {b} {are} {arr} next to {sur} .",
            "we can see {n} {c} {a} lying {arr} near {sur} .",
        ),
        ("ponds?", "lakes?"),
    ),
    "beach": Words(
        (("beach", "beaches"), ("beach", "beaches")),
        (
            "a beach with sand and white waves is between the {c} sea and {sur} .",
            "there is a beach with sand between the {c} sea and {sur} .",
            "white waves of the {c} sea wash the sand of a beach near {sur} .",
            "the {c} sea is next to a beach with {sur} behind it .",
            "we can see a sand beach between the {c} sea and {sur} .",
        ),
        ("beach", "sand", "waves"),
    ),
}


def render(template: str, facts: Facts, rng: random.Random | None = None) -> str:
    """Return one sentence; without `rng` in the most usual words."""
    words = WORDS[str(facts.kind)]
    many = int(facts.count != 1)
    arrangement = ARRANGEMENTS[facts.arrangement] if facts.arrangement else ("", "")
    usual = rng is None or rng.random() < 0.75
    text = template.format(
        n=NUMBERS[facts.count - 1] if facts.count else "",
        c=facts.colour or "",
        are="are" if many else "is",
        arr=arrangement[0] if usual else arrangement[1],
        sur=SURROUNDINGS[facts.surroundings] if facts.surroundings else "",
        roof="roofs" if many else "roof",
        a=words.nouns[0][many],
        b=words.nouns[1][many],
    )
    return " ".join(text.split())


def typical_caption(facts: Facts) -> str:
    """Return the oracle: the true facts in the kind's typical sentence."""
    return render(WORDS[str(facts.kind)].templates[0], facts)


def five_captions(facts: Facts, seed: str) -> list[str]:
    """Return the references of a scene, all different, the typical sentence nearly always among them."""
    rng = random.Random(f"{seed} captions")
    templates = WORDS[str(facts.kind)].templates
    captions: list[str] = []
    while len(captions) < CAPTIONS_PER_IMAGE:
        weights = [3 if k == 0 else 2 if k == 1 else 1 for k in range(len(templates))]
        caption = render(rng.choices(templates, weights)[0], facts, rng)
        if caption not in captions:
            captions.append(caption)
    return captions


def _first(text: str, choices: Iterable[str]) -> str | None:
    found = re.search(r"\b(" + "|".join(choices) + r")\b", text)
    return found[1] if found else None


_ARRANGED = {phrase: name for name, phrases in ARRANGEMENTS.items() for phrase in phrases}
_SURROUNDED = {phrase: name for name, phrase in SURROUNDINGS.items()}


def facts_in_caption(text: str) -> Facts:
    """Return the facts that a caption states, read off its words; also for captions that a model made up."""
    text = " ".join(text.lower().split())
    kind = next((kind for kind, words in WORDS.items() if _first(text, words.marks)), None)
    arrangement = _first(text, sorted(_ARRANGED, key=len, reverse=True))
    surroundings = re.findall(r"\b(" + "|".join(_SURROUNDED) + r")\b", text)
    bare = re.sub(r"in two (rows|lines)|white waves", "", text)
    number = _first(bare, NUMBERS)
    return Facts(
        kind,
        NUMBERS.index(number) + 1 if number else None,
        _first(bare, COLOURS),
        _ARRANGED[arrangement] if arrangement else None,
        _SURROUNDED[surroundings[-1]] if surroundings else None,
    )
