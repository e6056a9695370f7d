"""The typed shape of a configuration: the keys that all parts share, which a YAML file or `--options` may set.

A part's own keys stand in its `Config` (`bita.config.parts` for those of the package). Nothing here imports torch, so
that a mistake in a configuration is answered in a second. A default lives once: here, or in the model's own YAML under
`configs/models/` where sizes belong together; and so does a key's range.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from bita import registry
from bita.config.keys import REPLACED, Fault, FilePath, WithParts, key, keys_of, name_of
from bita.config.run import RunConfig


@dataclass(kw_only=True)
class BridgeConfig:
    """What every bridge between image and language has under `model.bridge_size`."""

    losses: ClassVar[tuple[str, ...]] = ("itc",)
    """The losses of stage 1 that count 1 unless `model.loss_weights` says otherwise."""
    from_bert: ClassVar[bool] = False
    """Whether it starts from the weights of `model.text_model`."""
    writes: ClassVar[bool] = False
    """Whether it can write a caption word by word after the queries, as the loss `itg` needs."""

    hidden_size: int = key(768, at_least=1)
    """Width of the query tokens."""


@dataclass(kw_only=True)
class ArchConfig(WithParts):
    """What every architecture has under `model`: vision encoder, bridge, and where the weights come from."""

    chosen_by: ClassVar = (registry.models, "arch")
    model_types: ClassVar[dict[str, tuple[str, ...]] | None] = None
    """`model_type` → files in configs/models/bita, later ones win; None: any name, without a file."""
    folders: ClassVar[dict[str, str]] = {}
    """Keys that name a folder or a name of the hub → where in a run or an exported folder a copy of it is kept."""
    writes_captions: ClassVar[bool] = False
    has_language_model: ClassVar[bool] = False
    """Whether there is one to cut up among processes (`run.parallel: fsdp`)."""

    arch: str = name_of(registry.models, "bita_former")
    model_type: FilePath = "pretrain_vitL"

    # Where weights come from. `init_from` is ours; the other four are the published spelling of the same wish.
    init_from: FilePath | None = None
    pretrained: FilePath | None = None
    finetuned: FilePath | None = None
    load_pretrained: bool | None = None
    load_finetuned: bool | None = None

    # Vision encoder. Depth, layers, drop path and gradient checkpointing are for those of timm, where `clip_L` and
    # `eva_clip_g` are built too: published keys stand flat.
    vit_model: str = name_of(registry.encoders, "clip_L")
    """`clip_L`, `eva_clip_g`, `timm:NAME`, or one of your own."""
    vit_args: Any = keys_of("vit_model")
    """Own keys of the encoder; for those of timm overrides handed to it, such as embed_dim, num_heads, patch_size.
    These, like `vit_depth`, `vit_layers` and `vit_weights`, are of one encoder: another one does not inherit them."""
    vit_depth: int | None = key(None, at_least=1)
    """Blocks kept; None keeps what the encoder's name stands for (clip_L: 21)."""
    vit_weights: FilePath | None = None
    """File or folder with the encoder's weights, in any layout of docs/models.md; None starts fresh."""
    vit_layers: list[int] = key([], at_least=1)
    """Numbers, from 1, of the blocks whose outputs are read together; empty: the last one's."""
    vit_layers_merge: Literal["concat", "sum"] = "concat"
    image_size: int | None = key(None, at_least=1)
    """Side in pixels; None is the encoder's own (`clip_L`: 224). Learned positions are resized for another one."""
    drop_path_rate: float = key(0.0, at_least=0, below=1)
    use_grad_checkpoint: bool = False
    vit_precision: Literal["auto", "fp16", "bf16", "fp32"] = "auto"
    """Of the frozen encoder on a GPU; `auto` is what autocast uses there."""
    freeze_vit: bool = True

    # Bridge between image and language.
    bridge: str = name_of(registry.bridges, "ift")
    bridge_size: Any = keys_of("bridge")
    """Own keys of the bridge."""
    init_map: Literal["qformer_to_ift"] | None = None
    """Lets an IFT start from a Q-Former's file: what both have is taken, self-attention is left out."""
    num_query_token: int = key(32, at_least=1)
    text_model: FilePath | None = "bert-base-uncased"
    """Folder or hub name whose BERT weights initialise the bridge; None starts fresh."""

    # Captions.
    max_txt_len: int = key(32, at_least=1)
    prompt: str = ""
    prompt_joint: Literal["space", "glued"] = "space"
    """What joins prompt and caption in training: `space`, or `glued` for weights trained that way."""
    apply_lemmatizer: bool = False

    def faults(self) -> Iterator[Fault]:
        """Keys that do not suit each other."""
        layers = self.vit_layers
        if sorted(set(layers)) != layers:
            yield "vit_layers", f"must be numbers of blocks or stages, rising from 1, not {layers}"

    def one_positive(self) -> bool:
        """Return whether an image's other captions count as wrong ones for it."""
        return False

    def encoder_settings(self) -> list[tuple[str, str]]:
        """Return what decides, beside its weights and the image's size, what the vision encoder says of an image."""
        keys = ("vit_model", "vit_args", "vit_layers", "vit_layers_merge")
        return [(name, str(getattr(self, name))) for name in keys]

    def for_export(self, image_size: int) -> None:
        """Leave only what holds in an exported folder: no paths to weights; a copy is kept where `folders` says."""
        self.image_size = image_size
        self.init_from = self.vit_weights = self.text_model = None
        for name, folder in self.folders.items():
            setattr(self, name, folder)


@dataclass(kw_only=True)
class ProcessorConfig(WithParts):
    """What every image or text processor has; its own keys stand beside. None takes the processor's own default."""

    chosen_by: ClassVar = (registry.processors, "name")

    name: str = name_of(registry.processors)


@dataclass(kw_only=True)
class TaskConfig:
    """What every task has under `run.task_args`: nothing."""

    needs_captions: ClassVar[bool] = False
    """Whether it needs a model that writes captions."""
    writes_in_training: ClassVar[bool] = False
    """Whether a training step writes captions, each process as many words as its own take: with a whole model."""
    best_by: ClassVar[tuple[str, ...]] = ()
    """The scores whose sum decides the best epoch unless `run.best_by` says otherwise; a loss counts less."""
    decides: ClassVar[tuple[str, ...]] = ()
    """Keys of `run` that decide a training step of this task, though they are of evaluation for others."""

    @classmethod
    def scores(cls, run: RunConfig) -> set[str] | None:
        """Names of all scores that an evaluation may give; None: known only once there is one."""
        return None


@dataclass(kw_only=True)
class MetricConfig:
    """What every metric has under its name in `run.metrics`: nothing."""

    scores: ClassVar[tuple[str, ...] | None] = None
    """Names of the scores that it gives; None: known only once they are there."""


@dataclass(kw_only=True)
class ScheduleConfig:
    """What every learning-rate schedule has under `run.lr_sched_args`: nothing; the published keys stand in `run`."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Keys of `run` that must not be null."""


@dataclass
class SplitConfig:
    """Files of one split, relative to `env.cache_root` unless absolute."""

    storage: FilePath | list[FilePath] | None = None
    """Annotation file, or a list of them: a JSON list of {image, caption, image_id}. A file NAME.shards.json is an
    index of tar shards (scripts/make_shards.py), for training."""
    ground_truth: FilePath | None = None
    """COCO file with the references of every image, for scoring."""
    url: Any = None
    md5: Any = None


@dataclass
class StorageConfig:
    """A folder, relative to `env.cache_root` unless absolute."""

    storage: FilePath | None = None
    url: Any = None


@dataclass
class BuildInfo:
    """Where a dataset's files are."""

    annotations: dict[str, SplitConfig] = field(default_factory=dict)
    images: StorageConfig = field(default_factory=StorageConfig)


@dataclass
class DatasetConfig:
    """One dataset: files, processors, loading."""

    dataset_card: str | None = None
    data_type: str | None = None
    build_info: BuildInfo = field(default_factory=BuildInfo)
    vis_processor: dict[str, ProcessorConfig] = field(default_factory=dict)
    text_processor: dict[str, ProcessorConfig] = field(default_factory=dict)
    cache_images: bool = False
    """Decode and resize every image once, and keep it as uint8 (for small images and small machines)."""
    captions_per_image: int | None = key(None, at_least=1)
    """None: one record a caption. n: one record an image, which is read and encoded once for n of its captions, drawn
    each time; the same for all training sets, and `run.batch_size_train` counts images."""
    bands: list[int] | None = key(None, at_least=1)
    """Three band numbers, from 1, of multi-band images; None takes the file's own colours."""
    jpeg_draft: bool = False
    """Decode large JPEGs at 1/2, 1/4 or 1/8 of their size where the crop still has enough pixels."""
    synthetic: Annotated[dict[str, int], REPLACED] = key({}, at_least=0)
    """Only for `synthetic_caption`: number of images (train, val, test), seed and size of the generated scenes."""


@dataclass
class EnvConfig:
    """Where things are on this machine."""

    cache_root: FilePath = "data"
    """Relative paths of datasets start here."""
    spice_dir: FilePath | None = None
    """Folder with SPICE's two CoreNLP 3.6.0 jars (docs/metrics.md); without them SPICE is not computed."""
    dataset_configs: list[FilePath] = field(default_factory=list)
    """Further folders of YAML files that describe datasets, like `configs/datasets`."""


@dataclass
class Config:
    """A whole configuration, resolved."""

    model: ArchConfig
    datasets: dict[str, DatasetConfig]
    run: RunConfig
    env: EnvConfig = field(default_factory=EnvConfig)
    imports: list[str] = field(default_factory=list)
    """Modules to import first, which register classes of one's own."""


@dataclass
class Preprocess:
    """Defaults for the processors of every dataset; stands in a model's YAML, or in a project file."""

    vis_processor: dict[str, ProcessorConfig] = field(default_factory=dict)
    text_processor: dict[str, ProcessorConfig] = field(default_factory=dict)


@dataclass
class ProjectFile(Config):
    """What a project file may hold."""

    preprocess: Preprocess = field(default_factory=Preprocess)
