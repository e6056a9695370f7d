"""A user's own published file, and published spellings of keys."""

from __future__ import annotations

from pathlib import Path

from tests.config.conftest import MINIMAL

PUBLISHED = (Path(__file__).parents[1] / "fixtures/resolved/published.yaml").read_text()


def test_a_published_file_works_with_one_warning_a_key(project, caplog):
    Path("checkpoint_best.pth").touch()
    cfg = project(PUBLISHED)
    assert cfg.model.init_from == "checkpoint_best.pth"
    entry = cfg.datasets["ucm_caption"]
    assert entry.vis_processor["train"].name == "bita_image_train"
    assert entry.vis_processor["eval"].name == "bita_image_eval"
    assert entry.vis_processor["eval"].std == [1.0, 1.0, 1.0]
    assert entry.text_processor["train"].name == "bita_caption"
    assert entry.text_processor["train"].prompt == "a photo of"
    assert entry.build_info.annotations["test"].ground_truth == "ucm/annotations/test_gt.json"
    assert (cfg.run.init_lr, cfg.run.warmup_lr, cfg.env.cache_root) == (1e-5, 1e-8, "/data/cache")
    mentioned = sorted(message.split(" (")[0] for message in caplog.messages)
    assert mentioned == [
        "datasets.ucm_caption.build_info.annotations.train.md5",
        "datasets.ucm_caption.build_info.annotations.train.url",
        "datasets.ucm_caption.data_type",
        "datasets.ucm_caption.dataset_card",
        "datasets.ucm_caption.text_processor.train.name",
        "datasets.ucm_caption.vis_processor.eval.name",
        "datasets.ucm_caption.vis_processor.train.name",
        "model.apply_lemmatizer",
        "run.dist_url",
        "run.distributed",
        "run.use_dist_eval_sampler",
        "run.world_size",
    ]


def test_a_warning_says_where_and_why(project, caplog):
    project(
        MINIMAL.replace(
            "  ucm_caption:", "  ucm_caption: {data_type: images}\n  rsicd_caption: {data_type: images}"
        )
    )
    assert caplog.messages == [
        "datasets.ucm_caption.data_type (my.yaml:5) and 1 more: has no effect here, all datasets are of images"
    ]


def test_a_prompt_that_is_not_the_models_is_mentioned(project, caplog):
    project(MINIMAL, "datasets.ucm_caption.text_processor.train.prompt='an image of'")
    assert "'an image of' is not model.prompt, 'a photo of'" in caplog.text
