"""Small datasets in the published and in the framework's own layouts, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bita.config.schema import BuildInfo, DatasetConfig, EnvConfig, SplitConfig, StorageConfig

SPLITS = ("train", "val", "test")


def write_image(path: Path, seed: int, size: tuple[int, int] = (24, 20)) -> Path:
    """Write a picture that no other seed gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR).save(path)
    return path


def karpathy_record(name: str, index: int, split: str, captions: list[str]) -> dict[str, Any]:
    sentences = [
        {"raw": raw, "tokens": raw.split(), "imgid": index, "sentid": k} for k, raw in enumerate(captions)
    ]
    return {"filename": name, "imgid": index, "split": split, "sentences": sentences, "sentids": []}


def ucm_source(folder: Path, per_split: int = 2) -> Path:
    """A UCM-Captions folder as published: 1.tif … with five captions each."""
    records = []
    for index in range(3 * per_split):
        write_image(folder / "imgs" / f"{index + 1}.tif", index)
        captions = [f"Image {index} has caption {k} ." for k in range(5)]
        records.append(karpathy_record(f"{index + 1}.tif", index, SPLITS[index // per_split], captions))
    (folder / "dataset.json").write_text(json.dumps({"images": records, "dataset": "ucm"}))
    return folder


def nwpu_record(name: str, index: int, split: str, captions: list[str]) -> dict[str, Any]:
    keys = ["raw", *(f"raw_{k}" for k in range(1, 5))]
    return {"filename": name, "imgid": index, "split": split, **dict(zip(keys, captions, strict=False))}


def nwpu_source(folder: Path) -> Path:
    """An NWPU-Captions folder as published, with every fault that the real one could have.

    Two classes hold files of the same names; airplane/003.jpg is missing, airplane/004.jpg is no image,
    beach/003.jpg has an unknown split, beach/004.jpg four captions, beach/005.jpg none.
    """
    content: dict[str, list[dict[str, Any]]] = {}
    for category in ("airplane", "beach"):
        records = []
        for index in range(6):
            name = f"{index:03}.jpg"
            captions = [f"a {category} {index} seen {k} times" for k in range(5)]
            if (category, index) != ("airplane", 3):
                write_image(folder / "NWPU_images" / category / name, index + 100 * (category == "beach"))
            records.append(nwpu_record(name, index, SPLITS[index % 3], captions))
        content[category] = records
    (folder / "NWPU_images/airplane/004.jpg").write_bytes(b"\xff\xd8 no image")
    content["beach"][3]["split"] = "tset"
    del content["beach"][4]["raw_4"]
    content["beach"][5].update(dict.fromkeys(("raw", "raw_1", "raw_2", "raw_3", "raw_4"), ""))
    (folder / "dataset_nwpu.json").write_text(json.dumps(content))
    return folder


def prepared(root: Path, images: int = 12, captions: int = 5, splits: tuple[str, ...] = SPLITS) -> Path:
    """A prepared dataset: every split has `images` images with `captions` captions each."""
    (root / "annotations").mkdir(parents=True)
    for number, split in enumerate(splits):
        records = []
        for index in range(images):
            image_id = number * images + index
            write_image(root / "images" / f"{image_id}.png", image_id, (24, 24))
            records += [
                {
                    "image": f"{image_id}.png",
                    "caption": f"Image {image_id} caption {k} .",
                    "image_id": image_id,
                }
                for k in range(captions)
            ]
        (root / "annotations" / f"{split}.json").write_text(json.dumps(records))
    return root


def entry(**options: Any) -> DatasetConfig:
    """The configuration entry of a prepared dataset at `env.cache_root`."""
    annotations = {split: SplitConfig(storage=f"annotations/{split}.json") for split in SPLITS}
    return DatasetConfig(**{"build_info": BuildInfo(annotations, StorageConfig("images")), **options})


def env(root: Path) -> EnvConfig:
    return EnvConfig(str(root))
