"""What the README and docs/ say: every command and snippet runs, every flag, key, file and link is there.

Commands are collected from the texts, so a new one runs here, or the test fails. The shell is real, and so is all that
it starts but Python, which is this process (tests/shell.py); what is too large for a test is smaller, or only
checked: tests/checkout.py says which, and why.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from bita.config.layers import to_yaml
from bita.config.load import load_config
from bita.config.run import RunConfig
from bita.config.schema import EnvConfig
from tests.checkout import STAGES, Checkout
from tests.datasets.makers import write_image
from tests.shell import COMMANDS, ROOT, blocks, run

PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "bita/box/README.md")
}
PROGRAMS = ("bash", "python", ".venv/bin/python", "pip", "curl", "find", "sbatch", *COMMANDS)
COMMAND = re.compile(rf"(?:\$ |[A-Z_]+=\S+ )*(?:{'|'.join(map(re.escape, PROGRAMS))}) \S")
STANDS_FOR = {
    "/path/to/": "path/to/",
    "--cfg-path …": "--cfg-path configs/projects/bita/eval/caption_eval_small_synthetic.yaml",
    "NAME KEY=VALUE": "length words=8 --imports my_part",
    "[KEY=VALUE …]": "",
}
"""What a reader puts in the place of a text."""
WEIGHTS = 'W="--options model.vit_weights=/path/to/clip_vit_L.pth"'
"""What the README sets for the full-size stages; other pages go on with it."""
NO_CODE = ("image ─>", "output/bita/caption/latest/", "weights from FILE", "error: ")
"""What else is set in by four spaces: how it begins."""
ELSEWHERE = {
    r"extending\.md.*(python|yaml)$": "tests/test_extending.py trains, exports and captions with it",
    r"page\.md.*curl": "tests/app/test_load.py asks a service that runs",
}
"""What runs in another test."""
ENDS = {"verify_data.py": 1}
"""A program → its exit code, where it is not 0: these datasets lack images."""
LONG = re.compile(
    r"(ucm_tiny|ucm_small|rsicd_small|box|finetune|decoders)\.sh|parity\.py|saving\.py|loading\.py|captioning\.py|"
    r"MODEL=(tiny|small)|quantize int8|RUN., quantize|scripts/report|docs/metrics\.md:1?\d\b|box/README"
)
"""What takes more than a few seconds."""


@dataclass(frozen=True)
class Piece:
    """A command or snippet, where it stands, and its language."""

    where: str
    code: str
    language: str = "bash"

    def __str__(self) -> str:
        return f"{self.where}:{self.language}"


def pieces() -> Iterator[Piece]:
    for name, text in PAGES.items():
        prose = text
        for line, language, code in blocks(text):
            prose = prose.replace(code, "\n" * code.count("\n"), 1)
            if language or COMMAND.match(code.strip()):
                yield Piece(f"{name}:{line}", code, language or "bash")
        prose = re.sub(r"^```.*$", "", prose, flags=re.M)
        for span in re.finditer(r"`([^`]+)`", prose):
            code = " ".join(span[1].split())
            if COMMAND.match(code):
                yield Piece(f"{name}:{prose[: span.start()].count(chr(10)) + 1}", code)


def as_a_reader(code: str) -> str:
    if "$W" in code and "W=" not in code:
        code = f"{WEIGHTS}\n{code}"
    for said, meant in STANDS_FOR.items():
        code = code.replace(said, meant)
    return code


PIECES = [
    pytest.param(
        piece, id=str(piece), marks=[pytest.mark.long] if LONG.search(f"{piece.where} {piece.code}") else []
    )
    for piece in {as_a_reader(piece.code).strip(): piece for piece in reversed(list(pieces()))}.values()
    if piece.language in ("bash", "python")
    and not any(re.search(p, f"{piece.where} {piece.code} {piece.language}", re.S) for p in ELSEWHERE)
][::-1]


def test_all_that_is_set_as_code_is_known() -> None:
    assert WEIGHTS in PAGES["README.md"]
    for name, text in PAGES.items():
        for line, language, code in blocks(text):
            known = {"bash", "python", "yaml", "bibtex"}
            assert language in known or COMMAND.match(code.strip()) or code.strip().startswith(NO_CODE), (
                f"{name}:{line}: {code}"
            )
    spans = [span for text in PAGES.values() for span in re.findall(r"`([^`\n]+)`", text)]
    bare = [span for span in spans if re.match(r"(scripts/\S+|\S+\.(py|sh)) (?!-)\S", span)]
    assert bare == []  # by what is it run?


@pytest.fixture
def reader(checkout: Checkout) -> Checkout:
    """The checkout, with what the documents name: images, a dataset, runs, and nothing where things are written."""
    folder = checkout.folder
    for name in ("OUT", "OUT.pth", "OUT_HALF", "my_model", "my_model.pth", "MODEL", "kept"):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
    if not (folder / "RUN").exists():
        furnish(folder)
    return checkout


def furnish(folder: Path) -> None:
    """Lay out the names that the documents use."""
    stages = folder / "output/quickstart"
    outputs = {
        f"{of}/{stage}": stage for of in ("bita", "qformer", "opt6.7b", "small_synthetic") for stage in STAGES
    }
    outputs |= {f"{of}/caption": "caption" for of in ("a", "b", "small", "ucm_tiny")}
    for name, stage in {**outputs, "stage1": "pretrain_stage1", "../RUN": "caption"}.items():
        (folder / "output" / name).mkdir(parents=True)  # others' runs may come beside it
        (folder / "output" / name / "latest").symlink_to((stages / stage / "latest").resolve())
    for number, name in enumerate(
        ("image.jpg", "my_aerial_photo.jpg", "a.jpg", "folder/1.png", "images/2.jpg", "images/3.jpg")
    ):
        write_image(folder / name, number, (64, 64))
    shutil.copy(folder / "image.jpg", folder / "IMAGE")
    for name, made in (("UCM", "UCM"), ("RSICD", "RSICD"), ("path/to/UCM_captions", "UCM")):
        (folder / name).symlink_to(folder / "path/to" / made)
    for name in ("clip_vit_L.pth", "model.Q4_1.gguf"):
        (folder / "path/to" / name).touch()
    (folder / "path/to/SmolLM2-135M").symlink_to(ROOT / "tests/fixtures/parity/opt_model")
    rasters(folder)
    own(folder)
    scored(folder)


def rasters(folder: Path) -> None:
    """Scenes of UTM, two dates, and images that are TIFFs."""
    from tests.scenes.makers import UTM, noise, raster

    (folder / "scenes/deep").mkdir(parents=True)
    for name in ("scene.tif", "2023.tif", "2024.tif", "scenes/deep/1.tif", "b.tif", "image.tif"):
        raster(folder / name, noise(height=64, width=300, kind="uint8"), **UTM)


def own(folder: Path) -> None:
    """SOURCE, as published and as a table; FOLDER, 20 images with texts; a project file with a mistake in line 14."""
    (folder / "SOURCE").symlink_to(folder / "path/to/UCM")
    rows = [f"{number}.jpg,a river,{split}" for number, split in enumerate(("train", "val", "test"))]
    (folder / "SOURCE/all.csv").write_text("\n".join(("image,caption,split", *rows)) + "\n")
    for number in range(20):
        write_image(folder / f"SOURCE/pictures/{number}.jpg", number, (40, 40))
        write_image(folder / f"FOLDER/{number}.jpg", number, (40, 40)).with_suffix(".txt").write_text(
            f"there are {number} planes\n{number} planes near a river\n"
        )
    project = {"base": str(ROOT / "configs/projects/bita/train/caption_ft_tiny.yaml")}
    lines = [*to_yaml(project).splitlines(), *["#"] * 11, "run:", "  max_epochs: 3"]
    (folder / "my.yaml").write_text("\n".join(lines) + "\n")


def scored(folder: Path) -> None:
    """Two files of captions for the test split of data/ucm, their references, classes, training captions; a metric."""
    annotations = folder / "data/ucm/annotations"
    shutil.copy(annotations / "test_gt.json", folder / "REFERENCES")
    shutil.copy(annotations / "train.json", folder / "train.json")
    records = json.loads((annotations / "test.json").read_text())
    captions = {record["image_id"]: record["caption"] for record in records}
    for name, more in (("HYPOTHESES", ""), ("OTHER_HYPOTHESES", " and two roads")):
        said = [{"image_id": number, "caption": caption + more} for number, caption in captions.items()]
        (folder / name).write_text(json.dumps(said))
    (folder / "classes.json").write_text(json.dumps(dict.fromkeys(captions, "plane")))
    _, _, metric = PAGES["docs/extending.md"].partition("## A metric")
    (folder / "my_part.py").write_text(blocks(metric)[0][2])


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.usefixtures("forgotten")
def test_a_reader_who_types_it(reader: Checkout, piece: Piece, monkeypatch: pytest.MonkeyPatch) -> None:
    code = as_a_reader(piece.code)
    monkeypatch.syspath_prepend(reader.folder)  # where one's own modules lie
    if "OUT/data" in code and "OUT/caption" not in code:
        (reader.folder / "OUT").mkdir()
        (reader.folder / "OUT/data").symlink_to(reader.folder / "data")
    if piece.language == "python":
        said = run(["-c", code], reader.folder)
    elif code.lstrip().startswith("$ "):
        command, _, answer = code.strip().removeprefix("$ ").partition("\n")
        said = reader(command)
        assert (said.out + said.err).split() == answer.split()
        return
    else:
        said = reader(code)
    assert said.code == next((ends for name, ends in ENDS.items() if name in code), 0), said.out + said.err
    assert "Traceback" not in said.err


SNIPPETS = [p for p in pieces() if p.language == "yaml" and "extending" not in p.where]


@pytest.mark.parametrize("piece", SNIPPETS, ids=str)
def test_a_snippet_of_a_project_file_is_one(piece: Piece, tmp_path: Path) -> None:
    base = {"base": str(ROOT / "configs/projects/bita/train/caption_ft.yaml")}
    (tmp_path / "my.yaml").write_text(to_yaml(base | yaml.safe_load(piece.code)))
    load_config(tmp_path / "my.yaml", need_files=False)


def test_flags_keys_files_and_links_are_there() -> None:
    sources = [p.read_text() for folder in ("bita", "scripts") for p in (ROOT / folder).rglob("*.[ps][yh]*")]
    flags = {flag for text in sources for flag in re.findall(r"--[a-z][a-z0-9-]+", text)} | {"--data-binary"}
    keys = {
        "run": {field.name for field in dataclasses.fields(RunConfig)}
        | {"json", "max_epochs"},  # shown as a mistake
        "env": {field.name for field in dataclasses.fields(EnvConfig)},
    }
    wrong = []
    for name, text in PAGES.items():
        code = " ".join([*re.findall(r"`([^`]+)`", text), *(part for _, _, part in blocks(text))])
        wrong += [(name, flag) for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", code)) - flags]
        for part, key in re.findall(r"(?<![\w./])(run|env)\.([a-z_]+)\b", code):
            wrong += [(name, f"{part}.{key}")] if key not in keys[part] else []
        folders = r"(?<![\w/.])(?:bita|scripts|configs|tests|docs|benchmarks)/[\w/.-]+\.\w+"
        wrong += [(name, path) for path in re.findall(folders, code) if not (ROOT / path).exists()]
        for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([\w-]+))?\)", text):
            path = (ROOT / name).parent / target if target else ROOT / name
            if not path.exists() or (anchor and anchor not in anchors(path)):
                wrong.append((name, f"{target}#{anchor}"))
    assert wrong == []


def anchors(path: Path) -> set[str]:
    """The names of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
