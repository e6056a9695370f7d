"""The typed shape of a configuration: every key a YAML file or ``--options`` may set, with its default.

Nothing here imports torch, so that a mistake in a configuration is answered in a second.
A default lives once: here, or in the model's own YAML under ``configs/models/`` where sizes belong together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Quantization = Literal["none", "int8", "int4"]


@dataclass
class BridgeSize:
    """Sizes of the transformer that reads the image for the language model (BERT-base by default)."""

    hidden_size: int = 768
    layers: int = 12
    heads: int = 12
    intermediate_size: int = 3072
    dropout: float = 0.1
    max_positions: int = 512
    cross_attention_every: int | None = None
    """Cross-attention in layers 0, n, 2n, …; None: 1 with the IFT, 2 with the Q-Former, as published."""


@dataclass
class LossWeights:
    """What each loss of stage 1 counts; 0 leaves it out. None: 1 with the Q-Former, 0 with the IFT."""

    itc: float = 1.0
    """Image-text contrast."""
    itm: float | None = None
    """Image-text matching, against the hardest wrong partners."""
    itg: float | None = None
    """Image-grounded captioning; needs a causal mask, which the Fourier mix cannot have."""

    def in_force(self, bridge: str) -> dict[str, float]:
        """The losses that count with a bridge, and how much."""
        default = float(bridge == "qformer")
        wanted = {"itc": self.itc, "itm": self.itm, "itg": self.itg}
        weights = {name: default if weight is None else weight for name, weight in wanted.items()}
        return {name: weight for name, weight in weights.items() if weight}


@dataclass
class LoraSize:
    """Low-rank weights beside the frozen language model's (LoRA, arXiv 2106.09685, through `peft`)."""

    r: int = 16
    """Rank."""
    alpha: float = 32.0
    """Their product counts with alpha / r."""
    dropout: float = 0.05
    target_modules: list[str] | None = None
    """Endings of the names of linear layers, such as [q_proj, v_proj]; None: those that peft has for the family."""


@dataclass
class ModelConfig:
    """Architecture, sizes and where the weights come from."""

    arch: str = "bita_former"
    model_type: str = "pretrain_vitL"

    # Where weights come from. `init_from` is ours; the other four are the published spelling of the same wish.
    init_from: str | None = None
    pretrained: str | None = None
    finetuned: str | None = None
    load_pretrained: bool | None = None
    load_finetuned: bool | None = None

    # Vision encoder: `clip_L`, `eva_clip_g`, or `timm:NAME`.
    vit_model: str = "clip_L"
    vit_depth: int | None = None
    """Blocks kept; None keeps what the encoder's name stands for (clip_L: 21)."""
    vit_weights: str | None = None
    """File or folder with the encoder's weights, in any layout of docs/models.md; None starts fresh."""
    vit_args: dict[str, Any] = field(default_factory=dict)
    """Overrides handed to timm, such as embed_dim, num_heads, patch_size."""
    vit_layers: list[int] = field(default_factory=list)
    """Numbers, from 1, of the blocks whose outputs are read together; empty: the last one's."""
    vit_layers_merge: Literal["concat", "sum"] = "concat"
    image_size: int | None = None
    """Side in pixels; None is the encoder's own (`clip_L`: 224). Learned positions are resized for another one."""
    drop_path_rate: float = 0.0
    use_grad_checkpoint: bool = False
    vit_precision: Literal["auto", "fp16", "bf16", "fp32"] = "auto"
    """Of the frozen encoder on a GPU; `auto` is what autocast uses there."""
    freeze_vit: bool = True

    # Bridge between image and language.
    bridge: Literal["ift", "qformer"] = "ift"
    bridge_size: BridgeSize = field(default_factory=BridgeSize)
    init_map: Literal["qformer_to_ift"] | None = None
    """Lets an IFT start from a Q-Former's file: what both have is taken, self-attention is left out."""
    num_query_token: int = 32
    embed_dim: int = 256
    max_txt_len: int = 32
    text_model: str | None = "bert-base-uncased"
    """Folder or hub name whose BERT weights initialise the bridge; None starts fresh."""
    text_tokenizer: str | None = "bert-base-uncased"
    text_vocab_size: int = 30523
    """Rows of the word embedding, the added [DEC] token included."""
    itc_positives: Literal["pair", "same_caption", "same_image"] = "pair"
    """Which captions of a batch count as right for an image: only its own (`pair`, published), every equal one
    (`same_caption`), or all of the same image (`same_image`, for `captions_per_image`)."""
    itc_gather_grad: bool = False
    word_loss_weight: float = 0.0
    """Weight of a loss that tells the caption's words from the mean image token. It starts an encoder that is trained
    from scratch, which learns little through fresh query tokens alone; published: none."""
    label_smoothing: float = 0.1
    """Of the contrastive and the captioning loss."""
    loss_weights: LossWeights = field(default_factory=LossWeights)

    # Language model.
    opt_model: str | None = "facebook/opt-2.7b"
    """Folder, .gguf file or hub name of any causal language model; None builds `opt_config` with fresh weights."""
    opt_config: dict[str, Any] = field(default_factory=dict)
    """Sizes used when `opt_model` is None or when no weights are loaded: keys of transformers' configuration of that
    `model_type`. Another model_type than the defaults' replaces their sizes, all of them."""
    opt_tokenizer: str | None = None
    """Folder or hub name of the tokenizer; None takes `opt_model`."""
    freeze_lm: bool = True
    lm_precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """`auto`: 16 bit on a GPU when frozen, else float32; or `fp32`, `fp16`, `bf16`, on a CPU too."""
    lm_quantize: Quantization = "none"
    """For evaluation and captioning: the language model's linear layers in 8 bit (torchao) or 4 bit (bitsandbytes)."""
    lora: LoraSize | None = None
    """Weights of the frozen language model's own that learn; None: it learns nothing, as published."""
    prompt: str = ""
    prompt_joint: Literal["space", "glued"] = "space"
    """What joins prompt and caption in training: `space`, or `glued` for weights trained that way."""
    apply_lemmatizer: bool = False


@dataclass
class ProcessorConfig:
    """One image or text processor; keys that a processor does not use stay None."""

    name: str
    image_size: int | None = None
    min_scale: float | None = None
    max_scale: float | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    vertical_flip: bool | None = None
    rotate90: bool | None = None
    color_jitter: float | None = None
    prompt: str | None = None
    max_words: int | None = None
    templates: list[str] | None = None
    """Texts with {caption} in them; in training one is drawn for each caption, in evaluation the first is taken."""


@dataclass
class SplitConfig:
    """Files of one split, relative to `env.cache_root` unless absolute."""

    storage: Any = None
    """Annotation file, or a list of them: a JSON list of {image, caption, image_id}. A file NAME.shards.json is an
    index of tar shards (scripts/data/make_shards.py), for training."""
    ground_truth: str | None = None
    """COCO file with the references of every image, for scoring."""
    url: Any = None
    md5: Any = None


@dataclass
class StorageConfig:
    """A folder, relative to `env.cache_root` unless absolute."""

    storage: str | None = None
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
    captions_per_image: int | None = None
    """None: one record a caption. n: one record an image, which is read and encoded once for n of its captions, drawn
    each time; the same for all training sets, and `run.batch_size_train` counts images."""
    bands: list[int] | None = None
    """Three band numbers, from 1, of multi-band images; None takes the file's own colours."""
    jpeg_draft: bool = False
    """Decode large JPEGs at 1/2, 1/4 or 1/8 of their size where the crop still has enough pixels."""
    synthetic: dict[str, int] = field(default_factory=dict)
    """Only for `synthetic_caption`: number of images (train, val, test), seed and size of the generated scenes."""


@dataclass
class RunConfig:
    """How a run goes."""

    task: str = "image_text_pretrain"
    runner: str = "runner_base"
    output_dir: str = "output/run"
    name: str | None = None
    seed: int = 42
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Of several processes: `ddp`, each with the whole model; `fsdp`, each with its share of the language model."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes CUDA when there is one; or `cpu`, `cuda`."""
    amp: bool = True
    deterministic: bool = False
    evaluate: bool = False
    resume: str | None = None
    """`auto`: go on from the newest complete checkpoint of the run directory; or a path; None: start anew."""
    resume_ckpt_path: str | None = None

    train_splits: list[str] = field(default_factory=lambda: ["train"])
    valid_splits: list[str] = field(default_factory=list)
    test_splits: list[str] = field(default_factory=list)
    train_dataset_ratios: dict[str, float] | None = None

    max_epoch: int = 5
    batch_size_train: int = 16
    batch_size_eval: int = 16
    num_workers: int = 4
    accum_grad_iters: int = 1
    clip_grad_norm: float | None = None

    lr_sched: str = "linear_warmup_cosine_lr"
    init_lr: float = 1e-4
    min_lr: float = 0.0
    warmup_lr: float = 1e-6
    warmup_steps: int = 0
    lr_decay_rate: float | None = None
    weight_decay: float = 0.05
    beta2: float = 0.999

    num_beams: int = 5
    max_len: int = 22
    min_len: int = 5
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    num_captions: int = 1
    use_nucleus_sampling: bool = False
    top_p: float = 0.9
    temperature: float = 1.0
    report_metric: bool = True
    validate_every: int = 1
    """Validate after every n-th epoch, and after the last."""

    log_freq: int = 50
    save_every_steps: int | None = None
    save_every_minutes: float | None = None
    keep_last: int = 2
    """Checkpoints kept besides the best one."""
    cache_features: int | None = None
    """n: what the frozen encoder says of n random views of each image is kept on the disk and read in their turn, epoch
    by epoch; None: every epoch draws and encodes new ones, as published."""
    on_bad_image: Literal["error", "skip"] = "error"
    """What a broken or missing image is: the end, or a record that is left out, counted and listed."""
    max_bad_fraction: float = 0.01
    """With `skip`: stop when more than this share of a split's images was left out."""
    max_bad_steps: int = 10
    """Stop when the loss or gradient of so many steps in a row was not finite; 0: never."""

    world_size: int | None = None
    dist_url: str | None = None
    distributed: bool | None = None
    use_dist_eval_sampler: bool | None = None


@dataclass
class EnvConfig:
    """Where things are on this machine."""

    cache_root: str = "data"
    """Relative paths of datasets start here."""
    spice_dir: str | None = None
    """Folder with SPICE's two CoreNLP 3.6.0 jars (docs/metrics.md); without them SPICE is not computed."""
    dataset_configs: list[str] = field(default_factory=list)
    """Further folders of YAML files that describe datasets, like `configs/datasets`."""


@dataclass
class Config:
    """A whole configuration, resolved."""

    model: ModelConfig
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
