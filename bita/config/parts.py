"""The keys of the package's own parts, a dataclass a part; without torch, as all of the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, make_dataclass
from typing import Any, ClassVar, Literal

from bita import registry
from bita.config.keys import Arguments, Fault, FilePath, key, keys_of, name_of, names_of, own_keys_of
from bita.config.run import RunConfig
from bita.config.schema import (
    ArchConfig,
    BridgeConfig,
    MetricConfig,
    ProcessorConfig,
    ScheduleConfig,
    TaskConfig,
)

Quantization = Literal["none", "int8", "int4"]


@dataclass(kw_only=True)
class BridgeSize(BridgeConfig):
    """Sizes of a transformer that reads the image for the language model (BERT-base by default)."""

    from_bert: ClassVar = True

    layers: int = key(12, at_least=1)
    heads: int = key(12, at_least=1)
    intermediate_size: int = key(3072, at_least=1)
    dropout: float = key(0.1, at_least=0, below=1)
    max_positions: int = key(512, at_least=1)
    cross_attention_every: int | None = key(None, at_least=1)
    """Cross-attention in layers 0, n, 2n, …; None: 1 with the IFT, 2 with the Q-Former, as published."""

    def faults(self) -> Iterator[Fault]:
        """Heads that do not divide the width."""
        if self.hidden_size % self.heads:
            yield "heads", f"{self.heads} heads do not divide hidden_size, {self.hidden_size}"


@dataclass(kw_only=True)
class IFTSize(BridgeSize):
    """Sizes of the IFT, whose Fourier mix has no causal mask."""


@dataclass(kw_only=True)
class QFormerSize(BridgeSize):
    """Sizes of the Q-Former."""

    losses: ClassVar = ("itc", "itm", "itg")
    writes: ClassVar = True


@dataclass(kw_only=True)
class LoraSize:
    """Low-rank weights beside the frozen language model's (LoRA, arXiv 2106.09685, through `peft`)."""

    r: int = key(16, at_least=1)
    """Rank."""
    alpha: float = key(32.0, above=0)
    """Their product counts with alpha / r."""
    dropout: float = key(0.05, at_least=0, below=1)
    target_modules: list[str] | None = None
    """Endings of the names of linear layers, such as [q_proj, v_proj]; None: those that peft has for the family."""


@dataclass(kw_only=True)
class ModelConfig(ArchConfig):
    """Keys of our two architectures, of stage 1 and of the stages with a language model.

    They stand flat and side by side under `model`, since published files, and the runs recorded so far, hold those of
    both whatever the architecture; each reads its own.
    """

    # Stage 1.
    embed_dim: int = key(256, at_least=1)
    text_tokenizer: FilePath | None = "bert-base-uncased"
    text_vocab_size: int = key(30523, at_least=1)
    """Rows of the word embedding, the added [DEC] token included."""
    itc_positives: Literal["pair", "same_caption", "same_image"] = "pair"
    """Which captions of a batch count as right for an image: only its own (`pair`, published), every equal one
    (`same_caption`), or all of the same image (`same_image`, for `captions_per_image`)."""
    itc_gather_grad: bool = False
    word_loss_weight: float = key(0.0, at_least=0)
    """Weight of a loss that tells the caption's words from the mean image token. It starts an encoder that is trained
    from scratch, which learns little through fresh query tokens alone; published: none."""
    label_smoothing: float = key(0.1, at_least=0, below=1)
    """Of stage 1's losses `itc` and `itg`; the language model's loss has none, as published."""
    loss_weights: dict[str, float | None] = names_of(
        registry.losses, {"itc": 1.0, "itm": None, "itg": None}, at_least=0
    )
    """What each loss counts; 0 leaves it out. null: 1 where the bridge was published with it, else 0. Image-text
    contrast `itc`, matching against the hardest wrong partners `itm`, captioning word by word `itg`."""
    loss_args: dict[str, Any] = own_keys_of(registry.losses)
    """Own keys of losses, by name."""

    # Language model.
    decoder: str = name_of(registry.decoders, "transformers")
    """What writes: any causal language model of transformers, or one of your own."""
    decoder_args: Any = keys_of("decoder")
    """Own keys of the decoder."""
    opt_model: FilePath | None = "facebook/opt-2.7b"
    """Folder, .gguf file or hub name of any causal language model; None builds `opt_config` with fresh weights."""
    opt_config: Arguments = key({})
    """Sizes used when `opt_model` is None or when no weights are loaded: keys of transformers' configuration of that
    `model_type`. Another model_type than the defaults' replaces their sizes, all of them."""
    opt_tokenizer: FilePath | None = None
    """Folder or hub name of the tokenizer; None takes `opt_model`."""
    freeze_lm: bool = True
    frozen_lm_dropout: bool = False
    """Whether the language model's own dropout (OPT: 0.1) acts in training though its weights are frozen. Published:
    true. LoRA's has its own key."""
    lm_precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """`auto`: 16 bit on a GPU when frozen, else float32; or `fp32`, `fp16`, `bf16`, on a CPU too."""
    lm_quantize: Quantization = "none"
    """For evaluation and captioning: the language model's linear layers in 8 bit (torchao) or 4 bit (bitsandbytes)."""
    lora: LoraSize | None = None
    """Weights of the frozen language model's own that learn; None: it learns nothing, as published."""

    def losses(self) -> dict[str, float]:
        """Return the losses of stage 1 that count, and how much, in the registry's order."""
        published = registry.bridges.config(self.bridge).losses
        weights = {
            name: float(name in published) if weight is None else weight
            for name, weight in self.loss_weights.items()
        }
        return {name: weights[name] for name in registry.losses if weights.get(name)}

    def faults(self) -> Iterator[Fault]:
        """See `ArchConfig.faults`."""
        yield from super().faults()
        if self.lora is not None and not self.freeze_lm:
            yield "lora", "is for a frozen language model; set model.freeze_lm=true"
        losses, bridge = self.losses(), registry.bridges.config(self.bridge)
        if "itg" in losses and not bridge.writes:
            yield (
                "loss_weights.itg",
                f"captioning needs a causal mask, which the bridge {self.bridge} has not; set 0, or "
                "model.bridge=qformer",
            )
        if not losses.keys() - {"itg"}:
            problem = "without itc and itm the queries' last layer learns nothing; set one of them above 0"
            yield "loss_weights", problem


@dataclass(kw_only=True)
class FormerConfig(ModelConfig):
    """Keys of stage 1, `bita_former`."""

    model_types: ClassVar = {
        "pretrain": ("bita_pretrain.yaml",),
        "pretrain_vitL": ("bita_pretrain_vitL.yaml",),
        "pretrain_qformer_vitL": ("bita_pretrain_vitL.yaml", "bita_qformer.yaml"),
        "pretrain_tiny": ("bita_pretrain_tiny.yaml",),
        "pretrain_small": ("bita_pretrain_small.yaml",),
    }
    folders: ClassVar = {"text_tokenizer": "text_tokenizer"}

    def one_positive(self) -> bool:
        """See `ArchConfig.one_positive`."""
        return self.itc_positives == "pair"

    def faults(self) -> Iterator[Fault]:
        """See `ArchConfig.faults`; the bridge reads the captions."""
        yield from super().faults()
        longest = getattr(self.bridge_size, "max_positions", self.max_txt_len)
        if self.max_txt_len > longest:
            yield "max_txt_len", f"is more than bridge_size.max_positions, {longest}"


@dataclass(kw_only=True)
class CaptionerConfig(ModelConfig):
    """Keys of stages 2 and 3, `bita_opt`."""

    model_types: ClassVar = {
        "pretrain_opt2.7b": ("bita_pretrain_opt2.7b.yaml",),
        "pretrain_opt6.7b": ("bita_pretrain_opt6.7b.yaml",),
        "caption_opt2.7b": ("bita_caption_opt2.7b.yaml",),
        "caption_opt6.7b": ("bita_caption_opt6.7b.yaml",),
        "caption_rsicd_opt2.7b": ("bita_caption_opt2.7b.yaml",),
        "pretrain_qformer_opt2.7b": ("bita_pretrain_opt2.7b.yaml", "bita_qformer.yaml"),
        "caption_qformer_opt2.7b": ("bita_caption_opt2.7b.yaml", "bita_qformer.yaml"),
        "caption_tiny": ("bita_caption_tiny.yaml",),
        "caption_small": ("bita_caption_small.yaml",),
    }
    folders: ClassVar = {"opt_model": "language_model", "opt_tokenizer": "tokenizer"}
    writes_captions: ClassVar = True
    has_language_model: ClassVar = True

    def for_export(self, image_size: int) -> None:
        """See `ArchConfig.for_export`; the language model comes from its folder, as if it had never been trained."""
        super().for_export(image_size)
        self.freeze_lm, self.lora = True, None


@dataclass(kw_only=True)
class ImageConfig(ProcessorConfig):
    """Keys of `bita_image_eval`, and of every processor of images that normalises."""

    image_size: int | None = key(None, at_least=1)
    """Side in pixels; the model's, which is the default too."""
    mean: list[float] | None = key(None, at_least=-10, at_most=10)
    """Of each channel, in 0..1; null: the encoder's."""
    std: list[float] | None = key(None, above=0, at_most=10)

    def faults(self) -> Iterator[Fault]:
        """Another number of channels than three."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != 3:
                yield name, f"wants a number for each of three channels, not {values}"


@dataclass(kw_only=True)
class TrainImageConfig(ImageConfig):
    """Keys of `bita_image_train`."""

    min_scale: float | None = key(None, above=0, at_most=1)
    """Smallest share of the image's area that a crop has."""
    max_scale: float | None = key(None, above=0, at_most=1)
    vertical_flip: bool | None = None
    rotate90: bool | None = None
    color_jitter: float | None = key(None, at_least=0, at_most=1)


@dataclass(kw_only=True)
class CaptionConfig(ProcessorConfig):
    """Keys of `bita_caption`."""

    prompt: str | None = None
    """Text in front of every caption; null: the model's."""
    max_words: int | None = key(None, at_least=1)
    templates: list[str] | None = None
    """Texts with {caption} in them; in training one is drawn for each caption, in evaluation the first is taken."""


@dataclass(kw_only=True)
class CaptioningConfig(TaskConfig):
    """Keys of `captioning`."""

    needs_captions: ClassVar = True
    best_by: ClassVar = ("CIDEr", "Bleu_4")

    @classmethod
    def scores(cls, run: RunConfig) -> set[str] | None:
        """See `TaskConfig.scores`: those of the metrics, where each says which it gives."""
        usual = (BleuConfig, MeteorConfig, RougeConfig, CiderConfig, SpiceConfig)
        found = [config.scores for config in run.metrics.values() or usual]
        return None if None in found else {name for names in found for name in names or ()}


@dataclass(kw_only=True)
class PretrainConfig(TaskConfig):
    """Keys of `image_text_pretrain`."""

    best_by: ClassVar = ("loss",)

    @classmethod
    def scores(cls, run: RunConfig) -> set[str] | None:
        """See `TaskConfig.scores`; which of them there are depends on the losses of the model."""
        recall = {f"{way}_recall@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)}
        return {"loss", "itc_loss", "itg_loss", "mean_recall"} | recall


def _gives(*scores: str) -> type[MetricConfig]:
    """Return the keys of a metric that has none of its own and gives these scores."""
    return make_dataclass("MetricKeys", (), bases=(MetricConfig,), namespace={"scores": scores}, kw_only=True)


BleuConfig = _gives("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4")
MeteorConfig, RougeConfig, CiderConfig = _gives("METEOR"), _gives("ROUGE_L"), _gives("CIDEr")
DiversityConfig = _gives()
"""It says what the captions are like among themselves."""


@dataclass(kw_only=True)
class SpiceConfig(MetricConfig):
    """Keys of `SPICE`."""

    scores: ClassVar = ("SPICE",)
    dir: FilePath | None = None
    """Folder with its two CoreNLP jars; null: `env.spice_dir`."""


@dataclass(kw_only=True)
class InventedConfig(MetricConfig):
    """Keys of `invented`."""

    scores: ClassVar = ("invented", "invented_words")
    words: FilePath | None = None
    """A file of one's own like `bita/metrics/things.yaml`."""


@dataclass(kw_only=True)
class ClipConfig(MetricConfig):
    """Keys of `CLIPScore`."""

    scores: ClassVar = ("CLIPScore", "RefCLIPScore")
    run: FilePath
    """A run of stage 1, whose model sees and reads."""


@dataclass(kw_only=True)
class ScstConfig(CaptioningConfig):
    """Keys of `captioning_scst`, the self-critical stage."""

    writes_in_training: ClassVar = True
    decides: ClassVar = ("max_len",)

    samples: int = key(5, at_least=2)
    """Captions drawn for each image in a step; each is held against the mean of the others."""
    bleu_weight: float = key(0.0, at_least=0)
    """What a caption's BLEU-4 (0 to 1) counts beside its CIDEr-D (0 to 10)."""
    caption_weight: float = key(0.0, at_least=0)
    """What the cross-entropy of the dataset's captions counts beside the reward: it holds the model near them."""


@dataclass(kw_only=True)
class StepScheduleConfig(ScheduleConfig):
    """Keys of `linear_warmup_step_lr`."""

    needs: ClassVar = ("lr_decay_rate",)
