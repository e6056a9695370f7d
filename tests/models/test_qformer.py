"""The Q-Former agrees with independent implementations, pass by pass; weights come from BLIP-2's files and go back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    OPTConfig,
)

from bita.models.base import BitaModel
from bita.models.bita_itc import BitaITC
from bita.models.qformer import QFormer
from bita.weights.layouts import TRUNK, published
from bita.weights.load import load_bert, load_checkpoint
from tests.weights.test_weights import equal, refused, stage_1, stage_2

WIDTH, QUERIES = 24, 4
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TEXT = torch.tensor([[2, 7, 9, 11, 5, 3], [2, 8, 3, 0, 0, 0], [2, 4, 6, 10, 3, 0]])
"""Three captions, padded on the right with 0."""


def qformer_stage_1(**changes: object) -> BitaITC:
    model = stage_1(bridge="qformer", **changes)
    randomise(model)
    return model.eval()


def randomise(model: torch.nn.Module) -> None:
    """Weights that leave no bias or norm at its start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)


def their_config(vocab_size: int, *, text: bool = True) -> Blip2Config:
    qformer = Blip2QFormerConfig(
        **SIZES,
        vocab_size=vocab_size,
        max_position_embeddings=40,
        encoder_hidden_size=32,
        cross_attention_frequency=2,
        use_qformer_text_input=text,
    )
    vision = Blip2VisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=28,
        layer_norm_eps=1e-5,
    )
    opt = OPTConfig(
        vocab_size=300, hidden_size=16, word_embed_proj_dim=16, num_hidden_layers=1, num_attention_heads=2
    )
    return Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        text_config=opt,
        num_query_tokens=QUERIES,
        image_text_hidden_size=16,
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[BitaITC, Blip2ForImageTextRetrieval]:
    """Ours, with the weights of transformers' model read from its own file."""
    ours = qformer_stage_1()
    assert ours.tokenizer is not None
    theirs = Blip2ForImageTextRetrieval(their_config(len(ours.tokenizer))).eval()
    randomise(theirs)
    file = tmp_path_factory.mktemp("blip2") / "model.pth"
    vision = {name: tensor for name, tensor in ours.state_dict().items() if name.startswith(TRUNK)}
    torch.save(theirs.state_dict() | vision, file)
    report = str(load_checkpoint(ours, file))
    assert "[BLIP-2 in transformers]" in report
    assert "Q-Former 58/58" in report, report
    return ours, theirs


def image_tokens() -> Tensor:
    return torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(2))


def both(
    pair: tuple[BitaITC, Blip2ForImageTextRetrieval], text: Tensor | None, mask: Tensor | None
) -> Tensor:
    """transformers' Q-Former on queries and text."""
    _, theirs = pair
    queries = theirs.query_tokens.expand(3, -1, -1)
    inputs = theirs.embeddings(input_ids=text, query_embeds=queries)
    output = theirs.qformer(inputs, QUERIES, attention_mask=mask, encoder_hidden_states=image_tokens())
    return output.last_hidden_state


def test_query_pass_equals_transformers(pair: tuple[BitaITC, Blip2ForImageTextRetrieval]) -> None:
    ours = pair[0].query_image(image_tokens())
    assert torch.allclose(ours, both(pair, None, None), atol=1e-5)
    again, seen = bridge(pair[0]).read(pair[0].query_tokens.expand(3, -1, -1), image_tokens())
    assert torch.equal(ours, again)
    assert len(seen) == 2


def test_text_pass_equals_transformers_and_padding_is_not_read(
    pair: tuple[BitaITC, Blip2ForImageTextRetrieval],
) -> None:
    ours, theirs = pair
    expected = theirs.qformer(theirs.embeddings(TEXT), 0, attention_mask=(TEXT != 0).long()).last_hidden_state
    output = ours.bridge(text_ids=TEXT)
    assert torch.allclose(output[TEXT != 0], expected[TEXT != 0], atol=1e-5)
    assert torch.allclose(output[1, :3], ours.bridge(text_ids=TEXT[1:2, :3])[0], atol=1e-6)


def test_joint_pass_equals_transformers(pair: tuple[BitaITC, Blip2ForImageTextRetrieval]) -> None:
    """Queries and text in both directions, and the matching score on top."""
    ours, theirs = pair
    mask = torch.cat([torch.ones(3, QUERIES), TEXT != 0], dim=1).long()
    expected = both(pair, TEXT, mask)
    joint = ours.joint_features(image_tokens(), TEXT)
    assert torch.allclose(joint, expected[:, :QUERIES], atol=1e-5)
    assert torch.allclose(ours.itm_head(joint), theirs.itm_head(expected[:, :QUERIES]), atol=1e-5)


def test_writing_equals_one_pass_under_a_multimodal_causal_mask(
    pair: tuple[BitaITC, Blip2ForImageTextRetrieval],
) -> None:
    ours, _ = pair
    total = QUERIES + TEXT.shape[1]
    allowed = torch.zeros(total, total, dtype=torch.bool)
    allowed[:, :QUERIES] = True
    allowed[QUERIES:, QUERIES:] = torch.ones(TEXT.shape[1], TEXT.shape[1]).tril().bool()
    expected = both(pair, TEXT, allowed.expand(3, 1, total, total))
    queries, seen = bridge(ours).read(ours.query_tokens.expand(3, -1, -1), image_tokens())
    written = bridge(ours).write(TEXT, seen)
    assert torch.allclose(queries, expected[:, :QUERIES], atol=1e-5)
    assert torch.allclose(written[TEXT != 0], expected[:, QUERIES:][TEXT != 0], atol=1e-5)


def test_a_later_token_changes_no_earlier_one() -> None:
    model = qformer_stage_1()
    _, seen = bridge(model).read(model.query_tokens.expand(3, -1, -1), image_tokens())
    before = bridge(model).write(TEXT, seen)
    for place in range(1, TEXT.shape[1]):
        changed = TEXT.clone()
        changed[:, place] = 12
        after = bridge(model).write(changed, seen)
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.allclose(after[:, place], before[:, place])
    both_ways = model.bridge(text_ids=TEXT), model.bridge(text_ids=changed)
    assert not torch.allclose(both_ways[0][0, 0], both_ways[1][0, 0])


def bridge(model: BitaModel) -> QFormer:
    assert isinstance(model.bridge, QFormer)
    return model.bridge


def as_blip_2(model: BitaModel) -> dict[str, Tensor]:
    """A model's tensors as LAVIS saves them: trained ones, tied copies, positions."""
    return {n: t for n, t in published(model.state_dict()).items() if not n.startswith("opt_model.")}


@pytest.mark.parametrize("make", [stage_1, stage_2])
def test_blip_2_files_load_completely_and_go_back(make: type[BitaModel], tmp_path: Path) -> None:
    first, second = make(bridge="qformer"), make(bridge="qformer")
    for parameter in first.query_tokens, *first.bridge.parameters():
        parameter.data.normal_()
    file = as_blip_2(first)
    assert "Qformer.bert.encoder.layer.1.attention.self.query.weight" in file
    assert "Qformer.bert.encoder.layer.0.crossattention.output.LayerNorm.bias" in file
    assert not any("layer.1.crossattention" in name or "Fformer" in name for name in file)
    torch.save({"model": file}, tmp_path / "blip2.pth")
    report = load_checkpoint(second, tmp_path / "blip2.pth")
    assert "[BLIP-2]" in str(report)
    assert report.unused == []
    assert report.loaded["qformer"] == report.total["qformer"]
    assert equal(first, second)
    back = as_blip_2(second)
    assert back.keys() == file.keys()
    assert all(torch.equal(back[n], t) and back[n].dtype == t.dtype for n, t in file.items())


def test_blip_2_of_transformers_starts_stage_2(tmp_path: Path) -> None:
    model = stage_2(bridge="qformer")
    theirs = Blip2ForConditionalGeneration(their_config(30, text=False))
    file = {n: t for n, t in theirs.state_dict().items() if n.startswith(("qformer.", "query_tokens"))}
    file |= {n: t for n, t in model.state_dict().items() if n.startswith((TRUNK, "ln_vision."))}
    torch.save(file, tmp_path / "m.pth")
    report = load_checkpoint(model, tmp_path / "m.pth")
    assert report.loaded["qformer"] == report.total["qformer"]
    assert "opt_proj 0/2 (fresh)" in str(report)


def test_bert_starts_the_qformer_and_reads_text_as_bert_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = stage_1(bridge="qformer").eval()
    assert model.tokenizer is not None
    rows = len(model.tokenizer) - 1
    bert = BertForMaskedLM(BertConfig(**SIZES, vocab_size=rows, max_position_embeddings=40)).eval()
    bert.bert.embeddings.token_type_embeddings.weight.data.zero_()  # the Q-Former has none
    bert.save_pretrained(tmp_path / "bert")
    report = str(load_bert(model, str(tmp_path / "bert")))
    assert "Q-Former 36/58 (queries' feed-forward copied from the text's; cross-attention fresh)" in report
    expected = bert.bert(TEXT, attention_mask=(TEXT != 0).long()).last_hidden_state
    assert torch.allclose(model.bridge(text_ids=TEXT)[TEXT != 0], expected[TEXT != 0], atol=1e-5)
    layer = model.bridge.layers[1]
    assert torch.equal(layer.query_ffn.up.weight, bert.bert.encoder.layer[1].intermediate.dense.weight)


def test_a_qformers_file_enters_an_ift_only_when_that_is_meant(tmp_path: Path) -> None:
    source = stage_1(bridge="qformer")
    randomise(source)
    torch.save(as_blip_2(source), tmp_path / "q.pth")
    assert "hold the Q-Former, and model.bridge is ift" in refused(stage_1(), tmp_path / "q.pth")

    model = stage_1(init_map="qformer_to_ift")
    fresh = model.bridge.layers[1].cross.key.weight.clone()
    report = str(load_checkpoint(model, tmp_path / "q.pth"))
    assert (
        "IFT 38/52 (fresh where the Q-Former has none: Fourier norms, odd layers' cross-attention)" in report
    )
    assert "20 not used (self-attention: 20)" in report
    ours, theirs = model.bridge, source.bridge
    assert torch.equal(ours.layers[0].cross.key.weight, theirs.layers[0].cross.key.weight)
    assert torch.equal(ours.layers[1].query_ffn.up.weight, theirs.layers[1].query_ffn.up.weight)
    assert torch.equal(ours.layers[1].cross.key.weight, fresh)
    assert torch.equal(ours.layers[0].mix.norm.weight, torch.ones(WIDTH))

    torch.save(published(stage_1().state_dict()), tmp_path / "f.pth")
    assert "hold the IFT, and model.bridge is qformer; set model.bridge=ift" in refused(
        stage_1(bridge="qformer"), tmp_path / "f.pth"
    )
