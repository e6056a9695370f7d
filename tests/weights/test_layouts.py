"""Every layout of weights gives the numbers of an independent implementation, and goes back unchanged."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, CLIPConfig, CLIPModel, CLIPVisionModel

from bita.build import build_model
from bita.models.bita_itc import BitaITC
from bita.models.bita_lm import BitaLM
from bita.weights.layouts import CLIP_RULES, HUGGING_FACE_RULES, VisionLayout, published, vision_names
from bita.weights.load import load_bert, load_checkpoint, load_vision
from tests.weights.clip_files import BLOCKS, EVA, PATCH, SIZE, WIDTH, State, as_timm, by_hand, openai, saved
from tests.weights.test_weights import PARITY, stage_1

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import parity


class Archive(nn.Module):
    """Tensors by dotted names, as OpenAI's files hold them: modules in a TorchScript archive."""

    def __init__(self, state: State) -> None:
        super().__init__()
        for name, tensor in state.items():
            *path, last = name.split(".")
            module: nn.Module = self
            for piece in path:
                if not hasattr(module, piece):
                    module.add_module(piece, nn.Module())
                module = getattr(module, piece)
            module.register_parameter(last, nn.Parameter(tensor.clone(), requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        return x


def torchscript(clip: CLIPVisionModel, folder: Path) -> Path:
    torch.jit.save(torch.jit.trace(Archive(openai(clip)), torch.zeros(1)), folder / "ViT-L-14.pt")
    return folder / "ViT-L-14.pt"


def whole_clip(clip: CLIPVisionModel, folder: Path) -> Path:
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 9,
    }
    whole = CLIPModel(CLIPConfig(vision_config=clip.config.to_dict(), text_config=text))
    whole.vision_model.load_state_dict(clip.state_dict())
    whole.save_pretrained(folder)
    return folder


def sharded(clip: CLIPVisionModel, folder: Path) -> Path:
    clip.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def wrapped(state: State) -> dict[str, object]:
    """As training programs save: under `state_dict`, with the wrapper of distributed training."""
    return {
        "epoch": 3,
        "name": "run",
        "state_dict": {f"module.{name}": tensor for name, tensor in state.items()},
    }


def whole_model(state: State) -> dict[str, object]:
    return {
        "model": {f"visual_encoder.{name}": tensor for name, tensor in state.items()}
        | {"temp": torch.ones(())}
    }


FILES: dict[str, tuple[str, Callable[[CLIPVisionModel, Path], Path]]] = {
    "lavis": ("CLIP, LAVIS", lambda clip, to: saved(by_hand(clip), to)),
    "openai": ("CLIP, OpenAI or OpenCLIP", lambda clip, to: saved(openai(clip), to)),
    "openai archive": ("CLIP, OpenAI or OpenCLIP", torchscript),
    "openclip run": ("CLIP, OpenAI or OpenCLIP", lambda clip, to: saved(wrapped(openai(clip)), to)),
    "openclip over timm": (
        "CLIP, OpenCLIP over timm",
        lambda clip, to: saved({f"visual.trunk.{n}": t for n, t in as_timm(clip).items()}, to),
    ),
    "timm": ("timm", lambda clip, to: saved(as_timm(clip), to)),
    "transformers vision": (
        "CLIP, Hugging Face vision model",
        lambda clip, to: (clip.save_pretrained(to), to)[1],
    ),
    "transformers shards": ("CLIP, Hugging Face vision model", sharded),
    "transformers whole": ("CLIP, Hugging Face", whole_clip),
    "blip-2": ("CLIP, in a whole model", lambda clip, to: saved(whole_model(by_hand(clip)), to)),
}


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize("kind", FILES)
def test_clip_in_every_layout_is_transformers_clip(
    kind: str, clip: CLIPVisionModel, images: Tensor, tmp_path: Path
) -> None:
    layout, write = FILES[kind]
    path = write(clip, tmp_path)
    with torch.no_grad():
        wanted = clip(images, output_hidden_states=True).hidden_states
        for depth in (2, 3, 4):
            model = stage_1(vit_depth=depth).eval()
            report = load_vision(model, path)
            assert report.layout == layout
            assert report.loaded["visual_encoder"] == report.total["visual_encoder"] == 5 + 12 * depth
            got = model.visual_encoder(images)
            assert (got - wanted[depth]).abs().max() <= 1e-5 * max(1, wanted[depth].abs().max())


def test_sixteen_bit_files_load(clip: CLIPVisionModel, tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        model = stage_1()
        load_vision(model, saved({name: tensor.to(dtype) for name, tensor in openai(clip).items()}, tmp_path))
        got = model.state_dict()["visual_encoder.trunk.blocks.1.attn.qkv.weight"]
        assert torch.equal(
            got, by_hand(clip)["transformer.resblocks.1.attn.in_proj_weight"].to(dtype).float()
        )


def same(got: State, wanted: State) -> None:
    assert got.keys() == wanted.keys()
    assert [n for n in got if got[n].dtype != wanted[n].dtype or not torch.equal(got[n], wanted[n])] == []


def test_clip_goes_back_to_openai_and_transformers(clip: CLIPVisionModel, tmp_path: Path) -> None:
    model = stage_1(vit_depth=BLOCKS)
    load_vision(model, saved(by_hand(clip), tmp_path))
    ours = model.state_dict()
    without_final_norm = {n: t for n, t in by_hand(clip).items() if "ln_post" not in n}
    same(
        vision_names(ours, VisionLayout("", "visual.", "", CLIP_RULES)),
        {f"visual.{n}": t for n, t in without_final_norm.items()},
    )
    theirs = {n: t for n, t in clip.state_dict().items() if "post_layernorm" not in n}
    same(vision_names(ours, VisionLayout("", "", "", HUGGING_FACE_RULES)), theirs)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_published_files_go_in_and_out_unchanged(stage: str) -> None:
    cfg = parity.model_config(parity.Record(PARITY), "bita_former" if stage == "stage1" else "bita_opt")
    model = build_model(cfg, load_weights=False) if stage == "stage1" else BitaLM.from_config(cfg)
    load_checkpoint(model, PARITY / f"{stage}_checkpoint.pth")
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("opt_model.")}
    original = torch.load(PARITY / f"{stage}_checkpoint.pth", weights_only=True)["model"]
    same(published(own, max_positions=cfg.bridge_size.max_positions), original)


class PlainEva(nn.Module):
    """EVA's ViT in plain torch, under the names of LAVIS's eva_vit_g.pth (BEiT's names)."""

    def __init__(self, state: State, blocks: int, heads: int) -> None:
        super().__init__()
        self.state, self.blocks, self.heads = state, blocks, heads

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(
            x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps=1e-6
        )

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def forward(self, images: Tensor) -> Tensor:
        state = self.state
        patches = F.conv2d(
            images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH
        )
        x = patches.flatten(2).transpose(1, 2)
        x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], dim=1) + state["pos_embed"]
        for n in range(self.blocks):
            block = f"blocks.{n}."
            y = self.norm(x, f"{block}norm1") @ state[f"{block}attn.qkv.weight"].T
            q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in y.chunk(3, dim=-1))
            q = q + state[f"{block}attn.q_bias"].view(self.heads, 1, -1)
            v = v + state[f"{block}attn.v_bias"].view(self.heads, 1, -1)
            attention = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)
            x = x + self.linear((attention @ v).transpose(1, 2).flatten(2), f"{block}attn.proj")
            y = self.linear(self.norm(x, f"{block}norm2"), f"{block}mlp.fc1")
            y = y * 0.5 * (1 + torch.erf(y / 2**0.5))
            x = x + self.linear(y, f"{block}mlp.fc2")
        return x


def eva_state(blocks: int) -> State:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return 0.2 * torch.randn(*shape, generator=generator)

    hidden = 139  # 32 · 6144/1408, as the published ratio gives
    state = {
        "cls_token": draw(1, 1, WIDTH),
        "pos_embed": draw(1, 1 + (SIZE // PATCH) ** 2, WIDTH),
        "patch_embed.proj.weight": draw(WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": draw(WIDTH),
    }
    for n in range(blocks):
        shapes = {
            "norm1.weight": (WIDTH,), "norm1.bias": (WIDTH,), "norm2.weight": (WIDTH,), "norm2.bias": (WIDTH,),
            "attn.q_bias": (WIDTH,), "attn.v_bias": (WIDTH,), "attn.qkv.weight": (3 * WIDTH, WIDTH),
            "attn.proj.weight": (WIDTH, WIDTH), "attn.proj.bias": (WIDTH,),
            "mlp.fc1.weight": (hidden, WIDTH), "mlp.fc1.bias": (hidden,),
            "mlp.fc2.weight": (WIDTH, hidden), "mlp.fc2.bias": (WIDTH,),
        }  # fmt: skip
        state |= {f"blocks.{n}.{name}": draw(*shape) for name, shape in shapes.items()}
    return state


def test_eva_is_the_plain_one_and_goes_back(images: Tensor, tmp_path: Path) -> None:
    state = eva_state(3)
    head = {
        "norm.weight": torch.ones(WIDTH),
        "norm.bias": torch.ones(WIDTH),
        "head.weight": torch.ones(2, WIDTH),
    }
    for depth in (2, 3):
        model = stage_1(**EVA, vit_depth=depth).eval()
        report = load_vision(model, saved(state | head, tmp_path))
        assert report.layout == "EVA-g, LAVIS or timm"
        with torch.no_grad():
            wanted, got = PlainEva(state, depth, 4)(images), model.visual_encoder(images)
        assert (got - wanted).abs().max() <= 1e-5 * max(1, wanted.abs().max())
    whole = published(model.state_dict())
    same(
        {n.removeprefix("visual_encoder."): t for n, t in whole.items() if n.startswith("visual_encoder.")},
        state,
    )
    other = stage_1(**EVA, vit_depth=3)
    load_checkpoint(other, saved({"model": whole}, tmp_path))
    same(other.state_dict(), model.state_dict())


def test_bert_gives_embeddings_and_feed_forward(tmp_path: Path) -> None:
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    torch.manual_seed(0)
    model = stage_1()
    assert isinstance(model, BitaITC)
    vocabulary = len(model.ift.word_embedding.weight) - 1  # without [DEC]
    bert = BertForMaskedLM(BertConfig(**sizes, vocab_size=vocabulary, max_position_embeddings=40)).eval()
    bert.save_pretrained(tmp_path)
    dec = model.ift.word_embedding.weight[-1].clone()
    report = load_bert(model, str(tmp_path))
    assert "cross-attention and Fourier norms fresh" in str(report)
    model.eval()
    ids = torch.randint(0, vocabulary, (2, 7), generator=torch.Generator().manual_seed(0))
    hidden = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = (
            bert.bert.embeddings.word_embeddings(ids) + bert.bert.embeddings.position_embeddings.weight[:7]
        )
        embedded = model.ift.word_embedding(ids) + model.ift.position_embedding.weight[:7]
        assert torch.equal(embedded, plain)
        for own, theirs in zip(model.ift.layers, bert.bert.encoder.layer, strict=True):
            wanted = theirs.output(theirs.intermediate(hidden), hidden)
            assert torch.allclose(own.text_ffn(hidden), wanted, atol=1e-5)
            assert torch.allclose(own.query_ffn(hidden), wanted, atol=1e-5)
        transformed = bert.cls.predictions.transform(hidden)
        head = model.mlm_head
        assert torch.allclose(head.norm(F.gelu(head.dense(hidden))), transformed, atol=1e-5)
    assert torch.equal(model.ift.word_embedding.weight[-1], dec)
