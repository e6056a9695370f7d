"""Compare this code with a recorded copy of the published model, item by item.

    .venv/bin/python scripts/parity.py DIR

DIR is laid out as `tests/fixtures/parity`: two checkpoints, what they gave, two tokenizers, a language model. Every
item is counted: each value in `expected.json`, each tensor in the two `*_expected.pt` and the two checkpoints. An item
that nothing here read is a failure. Exit code 0 only if all agree: forward values within 1e-5·max(1, max|ref|),
gradients within 1e-4·max|ref| + 1e-7, losses within 1e-5, token ids and texts exactly.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
from parity_record import Record, table
from torch import Tensor, nn

from bita.batch import Batch
from bita.build import build_model
from bita.commands import command_line, program
from bita.config.parts import BridgeSize, ModelConfig
from bita.config.run import RunConfig
from bita.errors import ConfigError, UserError
from bita.models.base import BitaModel
from bita.models.bita_itc import BitaITC
from bita.models.bita_lm import BitaLM
from bita.models.language.generation import GenerationSettings
from bita.processors.text import CaptionProcessor
from bita.registry import schedules
from bita.runners.optim import BETA1, build_optimizer, decays
from bita.weights.layouts import published
from bita.weights.load import load_checkpoint

VIT_SIZES = ("input_resolution", "patch_size", "width", "layers", "heads", "blocks")
BERT_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def check_text(record: Record) -> None:
    """The text processor, case by case, with and without prompts."""
    words = record.value("text_processor.max_words")
    for names in _grouped(record.json("text_processor.cases"), 2):
        record.same(names[1], CaptionProcessor(max_words=words)(record.use(names[0])))
    for names in _grouped(record.json("text_processor.prompted"), 3):
        processor = CaptionProcessor(record.use(names[0]), words, joint="glued")
        record.same(names[2], processor(record.use(names[1])))
    raw, texts = record.json("stage1.raw_captions"), record.json("stage1.texts")
    if len(raw) != len(texts):
        record.check(raw[0], False, f"{len(raw)} captions, {len(texts)} texts")
    for caption, text in zip(raw, texts, strict=False):
        record.same(text, CaptionProcessor(max_words=words)(record.use(caption)))


def _grouped(names: list[str], size: int) -> list[list[str]]:
    return [names[i : i + size] for i in range(0, len(names), size)]


def check_schedules(record: Record) -> None:
    """Learning rates, step by step."""
    count = len({re.match(r"expected.json lr_schedules\[(\d+)\]", n)[1] for n in record.json("lr_schedules")})  # type: ignore[index]
    for index in range(count):
        path = f"lr_schedules[{index}]"
        args = {n.rsplit(".", 1)[1]: record.use(n) for n in record.json(f"{path}.args")}
        run = RunConfig(
            init_lr=args.pop("init_lr"),
            min_lr=args.pop("min_lr"),
            warmup_lr=args.pop("warmup_start_lr"),
            warmup_steps=args.pop("warmup_steps"),
            lr_decay_rate=args.pop("decay_rate", None),
            max_epoch=record.value(f"{path}.epochs"),
        )
        steps = record.value(f"{path}.steps_per_epoch")
        schedule = schedules.get(record.value(f"{path}.name")).from_run(run, steps)
        ours = [schedule.lr_at(epoch, step) for epoch in range(run.max_epoch) for step in range(steps)]
        theirs = record.value(f"{path}.lr")
        worst = max(
            (abs(a - b) / max(abs(b), 1e-12) for a, b in zip(ours, theirs, strict=False)), default=1.0
        )
        agrees = len(ours) == len(theirs) and worst <= 1e-9 and not args
        record.check(f"expected.json {path}.lr", agrees, f"{len(ours)} steps, relative Δ {worst:.1e}")
        for name in record.json(f"{path}.note"):
            record.check(name, True, "a note")


def model_config(record: Record, arch: str) -> ModelConfig:
    """Return the configuration that the recorded sizes describe."""
    size = {key: record.value(f"sizes.{key}") for key in ("queries", "itc_dim")}
    vit = {key: record.value(f"sizes.vit.{key}") for key in VIT_SIZES}
    bert = {key: record.value(f"sizes.bert.{key}") for key in BERT_SIZES}
    record.check("expected.json sizes.vit.layers", vit["blocks"] <= vit["layers"], "at least the blocks kept")
    stage = "stage1" if arch == "bita_former" else "stage2"
    return ModelConfig(
        arch=arch,
        vit_model="clip_L",
        vit_depth=vit["blocks"],
        vit_args={"embed_dim": vit["width"], "num_heads": vit["heads"], "patch_size": vit["patch_size"]},
        image_size=vit["input_resolution"],
        bridge_size=BridgeSize(
            hidden_size=bert["hidden_size"],
            layers=bert["num_hidden_layers"],
            heads=bert["num_attention_heads"],
            intermediate_size=bert["intermediate_size"],
            max_positions=record.value("sizes.bert_max_position_embeddings"),
        ),
        num_query_token=size["queries"],
        embed_dim=size["itc_dim"],
        max_txt_len=record.value(f"sizes.{stage}_max_txt_len"),
        text_model=None,
        text_tokenizer=str(record.folder / "tokenizers/bert"),
        opt_model=str(record.folder / "opt_model"),
        opt_tokenizer=str(record.folder / "tokenizers/opt"),
    )


def load_model(record: Record, stage: str) -> BitaModel:
    """Build a stage's model, load its checkpoint, and check each tensor on its way in and out again."""
    cfg = model_config(record, "bita_former" if stage == "stage1" else "bita_opt")
    model = build_model(cfg, load_weights=False) if stage == "stage1" else BitaLM.from_config(cfg)
    load_checkpoint(model, record.folder / f"{stage}_checkpoint.pth")
    ours = published(model.state_dict())
    for name in [n for n in record.items if n.startswith(f"{stage}_checkpoint/")]:
        back = ours.get(name.split("/", 1)[1])
        if back is None and name.endswith("position_ids"):  # stage 2 keeps the buffer, not the embedding
            back = torch.arange(cfg.bridge_size.max_positions)[None]
        record.same(name, back)
    return model.eval()


def check_stage_1(record: Record) -> None:
    """The contrastive model: values, loss, gradients, four optimizer steps."""
    model = load_model(record, "stage1")
    assert isinstance(model, BitaITC)
    assert model.tokenizer is not None
    record.same("expected.json sizes.bert_vocab_before_DEC", len(model.tokenizer) - 1)
    images, texts = record.use("stage1_expected/images"), record.texts("stage1.texts")
    ids = model.tokenize(texts)
    record.same("stage1_expected/text_ids", ids)
    record.same("stage1_expected/text_mask", (ids != model.tokenizer.pad_token_id).long())
    with torch.no_grad():
        record.close("stage1_expected/vit_out", model.visual_encoder(images))
        tokens = model.encode_image(images)
        record.close("stage1_expected/ln_vision_out", tokens)
        record.close("stage1_expected/query_out", model.query_image(tokens))
        record.close("stage1_expected/image_feats", model.image_features(images))
        record.close("stage1_expected/text_cls_maxlen", model.bridge(text_ids=ids)[:, 0])
        longest = ids[:, : int((ids != model.tokenizer.pad_token_id).sum(dim=1).max())]
        record.close("stage1_expected/text_embeds_longest", model.bridge(text_ids=longest))
        record.close("stage1_expected/multimodal_query", model.joint_features(tokens, longest))
        record.close("stage1_expected/itm_score", model.match_scores(images, ids))
    check_learning(record, model, "stage1", "loss_itc", {"image": images, "text": texts, "image_id": []})


def check_learning(record: Record, model: BitaModel, stage: str, loss_name: str, batch: Batch) -> None:
    """Loss and gradients on a batch, which weights are trained, then four steps of the optimizer."""
    loss = model(batch)["loss"]
    loss.backward()
    record.close(f"{stage}_expected/{loss_name}", loss, tolerance=1e-5)
    record.close(f"expected.json {stage}.{loss_name}", loss, tolerance=1e-5)

    gradients = published({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    recorded = {n.split("/grad/")[1] for n in record.items if n.startswith(f"{stage}_expected/grad/")}
    for name in sorted(recorded | gradients.keys()):
        key = f"{stage}_expected/grad/{name}"
        if name in recorded:
            record.gradient(key, gradients.get(name))
        elif not name.endswith(("position_ids", "predictions.decoder.weight", "predictions.decoder.bias")):
            record.check(key, False, "a gradient here that the record does not have")

    idle = ("itm_head.", "mlm_head.")  # counted as trained in the record, without a loss
    ours = published({n: p for n, p in model.named_parameters() if p.requires_grad or n.startswith(idle)})
    for name in record.json(f"{stage}.trainable"):
        trained = record.use(name)
        record.check(name, ours.pop(trained, None) is not None, "trained here too")
    for name in ours:
        if not name.endswith("position_ids") and "predictions.decoder" not in name:
            record.check(f"expected.json {stage}.trainable {name}", False, "trained here alone")
    check_steps(record, model, f"expected.json {stage}.loss_over_4_adamw_steps", batch)


def check_steps(record: Record, model: BitaModel, name: str, batch: Batch) -> None:
    """The loss before each step of AdamW on one batch."""
    record.same("expected.json optimizer.name", "AdamW")
    beta1, beta2 = record.value("optimizer.betas")
    record.check("expected.json optimizer.betas", beta1 == BETA1, f"first beta {BETA1}")
    rule = record.value("optimizer.no_decay")
    limit, words = int(re.findall(r"ndim < (\d+)", rule)[0]), re.findall(r"'(\w+)'", rule)
    flat, deep = (nn.Parameter(torch.zeros([1] * n)) for n in (limit - 1, limit))
    follows = decays("x", deep) and not decays("x", flat) and not any(decays(f"a.{w}.b", deep) for w in words)
    record.check("expected.json optimizer.no_decay", follows, "the same rule")

    run = RunConfig(
        init_lr=record.value("optimizer.lr"), weight_decay=record.value("optimizer.weight_decay"), beta2=beta2
    )
    optimizer = build_optimizer(model, run)
    losses = []
    for _ in record.use(name):
        loss = model(batch)["loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    record.close(name, torch.tensor(losses, dtype=torch.float64), tolerance=1e-5)


def check_stage_2(record: Record) -> None:
    """The captioning model: values, losses, gradients, generated ids and texts."""
    model = load_model(record, "stage2")
    assert isinstance(model, BitaLM)
    opt = model.opt_model.config.to_dict()
    for name in record.json("sizes.opt"):
        record.same(name, opt[name.rsplit(".", 1)[1]])
    images = record.use("stage1_expected/images")
    if "stage2_expected/images" in record.items:
        record.same("stage2_expected/images", images)
    with torch.no_grad():
        query_output = model.query_image(model.encode_image(images))
        record.close("stage2_expected/query_out", query_output)
        record.close("stage2_expected/opt_prefix", model.prefix(images))

    beside = BitaLM.from_config(
        replace(model.cfg, opt_tokenizer=None)
    )  # the tokenizer that lies with the weights
    texts = record.texts("stage1.texts")
    same = all(torch.equal(a, b) for a, b in zip(beside.tokenize(texts), model.tokenize(texts), strict=True))
    record.check("opt_model/tokenizer", same, "the same ids as tokenizers/opt")
    check_generation(record, model, "stage2", images)
    check_caption_losses(record, model, images)
    check_learning(record, model, "stage2", "loss_lm", {"image": images, "text": texts, "image_id": []})


def check_caption_losses(record: Record, model: BitaLM, images: Tensor) -> None:
    """With a prompt: the losses with the caption glued on, and after a space; and what is generated."""
    model.cfg.prompt = record.value("caption.prompt")
    for kind, joint in (("nospace", "glued"), ("space", "space")):
        processor = CaptionProcessor(model.cfg.prompt, joint=joint)
        texts = [processor(caption) for caption in record.texts("stage1.raw_captions")]
        with torch.no_grad():
            loss = model({"image": images, "text": texts, "image_id": []})["loss"]
        record.close(f"stage2_expected/caption_loss_{kind}", loss, tolerance=1e-5)
        record.close(f"expected.json caption.loss_{kind}", loss, tolerance=1e-5)
    check_generation(record, model, "caption", images)
    model.cfg.prompt = ""


def check_generation(record: Record, model: BitaLM, part: str, images: Tensor) -> None:
    """Generated ids and texts, for every recorded setting; the settings stand in the item's name."""
    assert model.tokenizer is not None
    stop_id = model.tokenizer("\n", add_special_tokens=False).input_ids[0]
    if record.json(f"{part}.eos_id"):
        record.same(f"expected.json {part}.eos_id", stop_id)
    prefix = f"expected.json {part}.generate_ids."
    for setting in sorted({n[len(prefix) :].split("[")[0] for n in record.items if n.startswith(prefix)}):
        beams, longest, shortest = map(int, re.findall(r"\d+", setting))
        settings = GenerationSettings(num_beams=beams, max_len=longest, min_len=shortest)
        ids = [captions[0] for captions in model.generate_ids(images, settings)]
        texts = [model.decode([row])[0] for row in ids]
        for index in range(len(record.json(f"{part}.generate_ids.{setting}"))):
            row = f"{setting}[{index}]"
            ours = [model.opt_model.config.bos_token_id, *ids[index]]
            ours += [model.opt_model.config.pad_token_id] * (
                len(record.value(f"{part}.generate_ids.{row}")) - len(ours)
            )
            record.same(f"{prefix}{row}", ours)
            record.same(f"expected.json {part}.generate.{row}", texts[index])


def compare(folder: Path) -> Record:
    """Run every comparison on a parity folder."""
    record = Record(folder)
    check_text(record)
    check_schedules(record)
    check_stage_1(record)
    check_stage_2(record)
    for name in record.items.keys() - record.findings.keys():
        record.check(name, False, "not read by this program")
    return record


@program
def main() -> int:
    """The command line."""
    parser = command_line(__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    try:
        record = compare(folder)
    except ConfigError as error:
        raise UserError(f"{folder}: no model can be built from what it records ({error})") from error
    print(table(record))
    return 0 if all(finding.agrees for finding in record.findings.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
