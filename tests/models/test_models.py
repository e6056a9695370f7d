"""What the two models promise beyond the recorded numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bita.batch import Batch
from bita.models.base import BitaModel
from bita.models.bita_itc import BitaITC
from bita.models.bita_lm import BitaLM
from bita.models.contrast import caption_number, top1_accuracy
from bita.models.language.decoder import IGNORED
from bita.models.language.generation import GenerationSettings
from bita.models.language.tokenizers import Remembered
from bita.weights.load import load_checkpoint
from tests.weights.test_weights import PARITY, small, stage_1, stage_2

TEXTS = ["a pale house", "two ferries in a harbour", "a pale house", "some fields"]


def batch(texts: list[str], seed: int = 0) -> Batch:
    images = torch.randn(len(texts), 3, 56, 56, generator=torch.Generator().manual_seed(seed))
    return {"image": images, "text": texts, "image_id": list(range(len(texts)))}


def test_a_batch_of_one_works_in_both_stages() -> None:
    for model in (stage_1(freeze_vit=False), stage_2()):
        output = model(batch(TEXTS[:1]))
        output["loss"].backward()
        assert output["loss"].isfinite()


def test_frozen_parts_stay_frozen_in_training() -> None:
    model = stage_2().train()
    assert model.training
    assert model.ift.training
    assert not model.visual_encoder.training
    assert not model.opt_model.training
    model(batch(TEXTS))["loss"].backward()
    assert all(p.grad is None for p in [*model.visual_encoder.parameters(), *model.opt_model.parameters()])
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []  # DistributedDataParallel needs every trained weight used


def test_dropout_of_the_frozen_language_model_is_a_key() -> None:
    """Without it, as it is by default, two passes in training mode differ in the bridge's dropout alone."""
    prefix = torch.randn(4, 4, 40, generator=torch.Generator().manual_seed(0))
    for wanted in (False, True):
        model = stage_2(frozen_lm_dropout=wanted).train()
        ids, labels = model.tokenize(TEXTS)
        first, second = (model.caption_loss(prefix, ids, labels) for _ in range(2))
        assert torch.equal(first, second) != wanted
        assert not any(p.requires_grad for p in model.opt_model.parameters())
        assert not model.visual_encoder.training
        assert not model.eval().opt_model.training


def test_every_trained_weight_of_stage_1_gets_a_gradient() -> None:
    model = stage_1(freeze_vit=False).train()
    model(batch(TEXTS))["loss"].backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_equal_captions_are_not_counted_as_wrong() -> None:
    """With `same_caption`, two pairs that share a caption are right for each other."""
    torch.manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(4, 3, 8), dim=-1)
    texts = torch.nn.functional.normalize(torch.randn(4, 8), dim=-1)
    texts[2] = texts[0]
    model = stage_1(itc_positives="same_caption", label_smoothing=0.0)
    groups = torch.tensor([caption_number(text) for text in TEXTS])
    loss = model.contrast(images, texts, groups)["loss"]

    scores = (images @ texts.T).amax(dim=1) / 0.07  # (4, 4)
    target = torch.tensor([[0.5, 0, 0.5, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1]])
    by_hand = (
        -(target * scores.log_softmax(1)).sum(1).mean() - (target * scores.T.log_softmax(1)).sum(1).mean()
    )
    assert torch.allclose(loss, by_hand / 2, atol=1e-6)


def test_captions_of_one_image_are_not_counted_as_wrong() -> None:
    """With `same_image` the ids decide; by hand, with the target written out."""
    given: Batch = {**batch(TEXTS), "image_id": [7, 7, 1, 2]}
    model = stage_1(itc_positives="same_image", label_smoothing=0.0).eval()
    with torch.no_grad():
        loss = model(given)["loss"]
        images = model.image_features(given["image"])
        texts = model.text_features(model.tokenize(given["text"]))
    scores = (images @ texts.T).amax(dim=1) / model.temp.detach()
    target = torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    rows, columns = scores.log_softmax(1), scores.T.log_softmax(1)
    by_hand = -((target * rows).sum(1).mean() + (target * columns).sum(1).mean()) / 2
    assert float(loss) == pytest.approx(float(by_hand), abs=1e-5)
    assert float(loss) != pytest.approx(-float(rows.diag().mean() + columns.diag().mean()) / 2, abs=1e-4)


def test_the_gathered_side_is_constant_unless_asked() -> None:
    images = torch.nn.functional.normalize(torch.randn(3, 2, 8), dim=-1)
    texts = torch.nn.functional.normalize(torch.randn(3, 8), dim=-1)
    gradients = {}
    for with_grad in (False, True):
        model = stage_1(itc_gather_grad=with_grad)
        own = texts.clone().requires_grad_()
        model.contrast(images, own)["loss"].backward()
        gradients[with_grad] = own.grad
    assert not torch.allclose(gradients[False], gradients[True])


def test_labels_leave_out_prompt_and_padding() -> None:
    model = stage_2(prompt="a photo of")
    assert model.tokenizer is not None
    ids, labels = model.tokenize(["a photo of two ferries", "a photo of a pale house nearby"])
    prompt = len(model.tokenizer("a photo of").input_ids)
    assert (labels[:, :prompt] == IGNORED).all()
    assert (labels[ids == model.tokenizer.pad_token_id] == IGNORED).all()
    newline = model.tokenizer("\n", add_special_tokens=False).input_ids[0]
    assert [row[row != IGNORED][-1].item() for row in labels] == [newline, newline]


def test_caption_loss_equals_the_language_models_own() -> None:
    """Logits only where a label is, no mask: the same loss as transformers computes with everything."""
    model = stage_2().eval()
    data = batch(TEXTS)
    ids, labels = model.tokenize(data["text"])
    prefix = model.prefix(data["image"])
    inputs = torch.cat([prefix, model.opt_model.get_input_embeddings()(ids)], dim=1)
    mask = torch.cat([torch.ones(4, 4), (ids != 1).float()], dim=1).long()
    full = torch.cat([torch.full((4, 4), IGNORED), labels], dim=1)
    theirs = model.opt_model(inputs_embeds=inputs, attention_mask=mask, labels=full).loss
    assert torch.allclose(model.caption_loss(prefix, ids, labels), theirs, atol=1e-5)


def test_greedy_agrees_with_transformers() -> None:
    model = stage_2().eval()
    images = batch(TEXTS)["image"]
    ids = model.generate_ids(images, GenerationSettings(num_beams=1, max_len=12, min_len=3))
    words = model.opt_model.get_input_embeddings()(torch.tensor([[2]])).expand(4, -1, -1)
    with torch.no_grad():
        theirs = model.opt_model.generate(
            inputs_embeds=torch.cat([model.prefix(images), words], dim=1),
            max_new_tokens=11,
            min_new_tokens=2,
            do_sample=False,
            eos_token_id=202,
            pad_token_id=1,
        )
    for own, row in zip(ids, theirs.tolist(), strict=True):
        assert own[0] == [token for token in row if token != 1]


def test_images_are_encoded_once_for_all_beams() -> None:
    model = stage_2().eval()
    seen: list[int] = []
    model.visual_encoder.register_forward_hook(lambda _m, args, _o: seen.append(len(args[0])))
    model.generate(batch(TEXTS)["image"], GenerationSettings(num_beams=5))
    assert seen == [4]


@pytest.mark.parametrize(
    "model",
    [
        lambda: stage_1(itc_positives="same_image", freeze_vit=False, word_loss_weight=1.0),
        lambda: stage_1(bridge="qformer", itc_positives="same_image", freeze_vit=False),
        lambda: stage_2(freeze_vit=False),
    ],
    ids=["ift", "qformer", "lm"],
)
def test_captions_of_an_image_share_one_encoding_and_train_as_pairs_do(
    model: Callable[[], BitaModel],
) -> None:
    """Losses and gradients of 2 images with 3 captions each equal those of the 6 pairs."""
    net = model().eval()  # no dropout, and the hardest negatives
    pairs = batch([f"{number} pale houses" for number in ("two", "three", "four", "five", "six", "ten")])
    pairs["image"] = pairs["image"][:2].repeat_interleave(3, dim=0)
    pairs["image_id"] = [7, 7, 7, 8, 8, 8]
    grouped: Batch = {**pairs, "image": pairs["image"][::3]}
    seen: list[int] = []
    net.visual_encoder.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    found = []
    for data in (pairs, grouped):
        net.zero_grad()
        output = net(data)
        output["loss"].backward()
        found.append(
            {"loss": output["loss"]} | {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
        )
    assert seen == [6, 2]
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_convolutional_encoder_gives_its_map_as_tokens() -> None:
    model = stage_1(vit_model="timm:resnet10t", vit_depth=None, vit_args={}, image_size=64, freeze_vit=False)
    tokens = model.encode_image(torch.randn(2, 3, 64, 64))
    assert tokens.shape == (2, 4, 512)
    features = model.visual_encoder.trunk.eval().forward_features(torch.ones(1, 3, 64, 64))
    assert torch.equal(model.visual_encoder.eval()(torch.ones(1, 3, 64, 64))[0, 1], features[0, :, 0, 1])


def test_activation_checkpointing_changes_no_gradient() -> None:
    plain, wrapped = stage_1(freeze_vit=False), stage_1(freeze_vit=False, use_grad_checkpoint=True)
    wrapped.load_state_dict(plain.state_dict())
    for model in (plain, wrapped):
        model.eval()(batch(TEXTS))["loss"].backward()
    pairs = zip(plain.named_parameters(), wrapped.named_parameters(), strict=True)
    for (name, a), (other, b) in pairs:
        assert name == other
        if a.grad is not None:
            assert torch.allclose(a.grad, b.grad, atol=1e-7), name


def test_a_local_folder_is_read_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert isinstance(stage_1(), BitaITC)
    assert isinstance(
        BitaLM.from_config(small(arch="bita_opt", opt_model=str(Path(PARITY / "opt_model")))), BitaLM
    )


def test_word_loss_reaches_the_encoder_and_stays_in_stage_1(tmp_path: Path) -> None:
    plain = stage_1(freeze_vit=False)
    model = stage_1(freeze_vit=False, word_loss_weight=0.5)
    model.load_state_dict(plain.state_dict(), strict=False)
    with_head, without = (m.eval()(batch(TEXTS)) for m in (model, plain))
    assert torch.allclose(with_head["loss"], without["loss"] + 0.5 * with_head["word_loss"], atol=1e-6)
    assert model.word_head is not None
    tokens = torch.randn(2, 5, 32, requires_grad=True)
    ids = torch.tensor([[2, 7, 9, 3, 0, 0], [2, 8, 3, 0, 0, 0]])
    loss = model.word_head(tokens, ids)
    likely = model.word_head.layers(tokens.mean(dim=1)).log_softmax(dim=1)
    by_hand = (likely[0, [7, 9, 3]].mean() + likely[1, [8, 3]].mean()) / -2
    assert torch.allclose(loss, by_hand, atol=1e-6)
    loss.backward()
    assert torch.allclose(tokens.grad[0, 0], tokens.grad[0, 4])  # every token counts alike
    save_file(model.checkpoint_state(), tmp_path / "model.safetensors")
    assert "text side and contrastive head" in str(load_checkpoint(stage_2(), tmp_path))


def test_right_answers_of_grouped_captions_are_those_of_the_image() -> None:
    scores = torch.tensor([[9.0, 9.0, 0.0], [9.0, 9.0, 0.0], [8.0, 1.0, 0.0]])
    right = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    assert top1_accuracy(scores, right).item() == pytest.approx(2 / 3)


def test_texts_are_tokenized_once_and_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def make(texts: list[str]) -> list[int]:
        calls.append(texts)
        return [len(text) for text in texts]

    monkeypatch.setattr(Remembered, "most", 3)
    lengths = Remembered(make)
    assert lengths(["a", "bb", "a"]) == [1, 2, 1]
    assert lengths(["bb", "ccc"]) == [2, 3]
    assert lengths(["dddd", "a"]) == lengths(["dddd", "a"]) == [4, 1]  # there is no room for a fourth
    assert calls == [["a", "bb"], ["ccc"], ["dddd"], ["dddd"]]
    aligned, writer = stage_1(), stage_2()
    assert aligned.tokenizer is not None
    for texts in (TEXTS, TEXTS[1:3], [*TEXTS, "a new one"]):
        expected = aligned.tokenizer(
            texts, padding="max_length", truncation=True, max_length=aligned.cfg.max_txt_len
        )
        assert aligned.tokenize(texts).tolist() == expected.input_ids
        ids, labels = writer.tokenize(texts)
        fresh = replace(writer.tokens).batch(texts, "", writer.cfg.max_txt_len)
        assert ids.equal(fresh[0])
        assert labels.equal(fresh[1])


@pytest.mark.parametrize("queries", ["ift", "qformer"])
def test_image_tokens_are_cast_once_where_autocast_would(
    queries: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bridge's output is the same bits as where each of its projections casts them for itself."""
    torch.manual_seed(0)
    model = stage_1(bridge=queries).eval()
    tokens = torch.randn(2, 5, model.visual_encoder.width)
    left = []

    def leave(x: torch.Tensor) -> torch.Tensor:
        left.append(x)
        return x

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        once = model.query_image(tokens)
        for module in ("ift", "qformer"):
            monkeypatch.setattr(f"bita.models.{module}.as_autocast", leave)
        each = model.query_image(tokens)
    assert len(left) == 1
    assert once.equal(each)
