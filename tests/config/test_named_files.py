"""Files and weights that a configuration names: looked for where they are needed, spelled in five ways."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.conftest import MINIMAL


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("model.init_from=no/run", "model.init_from (--options): checkpoint no/run: no such file or folder; train"),
        ("model.pretrained=no/run", "model.init_from (--options): checkpoint no/run: no such file or folder"),
        ("model.init_from=empty", "model.init_from (--options): checkpoint empty: holds no finished checkpoint"),
        ("model.init_from=my.yaml", "model.init_from (--options): checkpoint my.yaml: not a weights file"),
        ("model.vit_weights=clip.pth", "model.vit_weights (--options): clip.pth: no such file"),
        ("model.opt_model=/no/opt", "model.opt_model (--options): /no/opt: no such folder"),
        ("model.opt_tokenizer=${env.cache_root}/opt", "model.opt_tokenizer (--options): data/opt: no such folder"),
        ("run.resume=last", "run.resume (--options): checkpoint last: no such file or folder (or write auto)"),
        ("run.resume_ckpt_path=no.pth", "run.resume (--options): checkpoint no.pth: no such file or folder"),
    ],
)  # fmt: skip
def test_a_file_that_is_missing(project, problem, caplog, option, expected):
    Path("empty").mkdir()
    assert problem(MINIMAL, option).startswith(expected)
    project(MINIMAL, option, need_files=False)
    assert expected in caplog.text


def test_what_may_lie_elsewhere_is_not_looked_for(project):
    cfg = project(
        MINIMAL, "model.pretrained=https://host/w.pth", "model.opt_model=facebook/opt-6.7b", "run.resume=auto"
    )
    assert cfg.model.init_from == "https://host/w.pth"


@pytest.fixture
def weights(project):
    """Two files of weights in the current folder."""
    for name in ("a.pth", "b.pth"):
        Path(name).touch()


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["init_from=a.pth"], "a.pth"),
        (["pretrained=a.pth"], "a.pth"),
        (["finetuned=a.pth"], "a.pth"),
        (["pretrained=a.pth", "load_pretrained=true"], "a.pth"),
        (["finetuned=b.pth", "load_finetuned=true", 'pretrained=""'], "b.pth"),
        (["pretrained=a.pth", "load_pretrained=false"], None),
        (["pretrained=a.pth", "load_pretrained=false", "finetuned=b.pth", "load_finetuned=true"], "b.pth"),
        (["pretrained=a.pth", "init_from=a.pth"], "a.pth"),
        (["load_pretrained=false", "load_finetuned=false"], None),
        (['init_from=""', 'pretrained=""', 'finetuned=""'], None),
    ],
)
def test_where_weights_come_from(project, options, expected):
    model = project(MINIMAL, *(f"model.{option}" for option in options)).model
    assert model.init_from == expected
    assert (model.pretrained, model.finetuned, model.load_pretrained, model.load_finetuned) == (None,) * 4


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["pretrained=a.pth", "finetuned=b.pth"],
            "finetuned b.pth (--options), pretrained a.pth (--options); keep one",
        ),
        (["pretrained=a.pth", "finetuned=b.pth", "load_finetuned=true", "load_pretrained=true"], "keep one"),
        (["pretrained=a.pth", "finetuned=b.pth", "load_finetuned=true"], "keep one"),
        (
            ["init_from=a.pth", "finetuned=b.pth"],
            "init_from a.pth (--options), finetuned b.pth (--options); keep one",
        ),
        (
            ["load_pretrained=true"],
            "model.load_pretrained (--options): is true, but model.pretrained names no file",
        ),
        (
            ["load_finetuned=true", 'finetuned=""', "init_from=a.pth"],
            "is true, but model.finetuned names no file",
        ),
    ],
)
def test_weights_that_contradict_each_other(problem, options, expected):
    assert expected in problem(MINIMAL, *(f"model.{option}" for option in options))


@pytest.mark.usefixtures("weights")
def test_weights_that_are_switched_off_are_mentioned(project, caplog):
    project(MINIMAL, "model.pretrained=a.pth", "model.load_pretrained=false")
    assert "model.pretrained (--options): not used, since model.load_pretrained is false" in caplog.messages


@pytest.mark.usefixtures("weights")
def test_resume_has_two_spellings(project, problem):
    run = project(MINIMAL, "run.resume_ckpt_path=a.pth").run
    assert (run.resume, run.resume_ckpt_path) == ("a.pth", None)
    assert project(MINIMAL, "run.resume_ckpt_path=null").run.resume is None
    message = problem(MINIMAL, "run.resume_ckpt_path=a.pth", "run.resume=b.pth")
    assert message == "run.resume_ckpt_path (--options): a.pth and run.resume=b.pth differ; keep one"
