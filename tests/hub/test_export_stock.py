"""What was converted comes out with the same tensors, in a layout that others read; what was trained here reads there too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import redraft
from redraft.errors import UserError
from redraft.hub.convert.convert import convert
from redraft.hub.convert.layouts.plan import Choices
from redraft.hub.export.export import export
from redraft.hub.folder import ModelConfig, save_model
from redraft.hub.model import Model
from redraft.network.init import initialised
from redraft.network.sizes import Scaling, Shape
from redraft.text.tokenizers.tokenizer import Bytes
from tests.hub import foreign
from tests.hub.test_convert_causal import DIFFUSION, MADE, changed, made, texts

transformers = pytest.importorskip("transformers")

BYTES = 257


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("stock")
    for name in MADE:
        made(name, torch.float32).save_pretrained(where / name)
    return {name: where / name for name in MADE}


def passed_through(source: Path, tmp: Path, target: str = "hf", **choices: Any) -> Path:
    convert(source, tmp / "ours", tokenizer="bytes", choices=Choices(**choices))
    return export(tmp / "ours", target, tmp / "out")


def same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@torch.no_grad()
@pytest.mark.parametrize("name", MADE)
def test_converted_and_exported_it_is_the_same_folder(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Bit for bit; transformers opens it without code, and computes the same."""
    out = passed_through(folders[name], tmp_path)
    same_tensors(load_file(folders[name] / "model.safetensors"), load_file(out / "model.safetensors"))
    assert not list(out.glob("*.py"))
    stock, theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval(), made(name, torch.float32)
    kind = "LlamaForCausalLM" if name == "mistral" else type(theirs).__name__
    assert type(stock).__name__ == kind
    assert (stock(texts()).logits - theirs(texts()).logits).abs().max() <= 1e-5 * theirs(texts()).logits.abs().max()


@pytest.mark.parametrize("name", MADE)
def test_exported_and_converted_it_is_the_same_model(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    out = passed_through(folders[name], tmp_path)
    convert(out, tmp_path / "again")
    ours, again = (redraft.load(tmp_path / part, "cpu") for part in ("ours", "again"))
    assert again.network.shape == ours.network.shape and again.family == ours.family
    same_tensors(ours.network.state_dict(), again.network.state_dict())


@pytest.mark.parametrize("name", ["smollm2", "qwen2", "qwen3", "mistral", "linear", "yarn", "llama 3.1"])
def test_gguf_goes_through_too(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    spoken = tmp_path / "tokenizer.json"
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    words = {c: i for i, c in enumerate([*"abcdefgh", "ab"])}
    spoken.write_text(json.dumps({"version": "1.0", "added_tokens": [], "pre_tokenizer": level, "decoder": level,
                                  "model": {"type": "BPE", "vocab": words, "merges": ["a b"]}}))  # fmt: skip
    convert(folders[name], tmp_path / "ours", tokenizer=str(spoken))
    out = export(tmp_path / "ours", "gguf", tmp_path / "out")
    convert(out / "model.gguf", tmp_path / "again")
    ours, again = (redraft.load(tmp_path / part, "cpu") for part in ("ours", "again"))
    assert again.network.shape == ours.network.shape and again.family == ours.family
    same_tensors(ours.network.state_dict(), again.network.state_dict())
    assert again.tokenizer.encode("abba").tolist() == ours.tokenizer.encode("abba").tolist()


def test_dream_comes_out_as_dream(folders: dict[str, Path], tmp_path: Path) -> None:
    base, config, _ = DIFFUSION["dream"]
    source = changed(folders, base, tmp_path / "in", config)
    out = passed_through(source, tmp_path)
    same_tensors(load_file(source / "model.safetensors"), load_file(out / "model.safetensors"))
    said = json.loads((out / "config.json").read_text())
    assert (said["model_type"], said["mask_token_id"], said["vocab_size"]) == ("Dream", 299, 300)


def test_llada_comes_out_as_llada(tmp_path: Path) -> None:
    weights = foreign.llada_weights(BYTES + 1, groups=2)
    source = foreign.save_folder(tmp_path / "in", weights, foreign.llada_config(weights, groups=2, mask_token_id=257))
    out = passed_through(source, tmp_path)
    same_tensors(load_file(source / "model.safetensors"), load_file(out / "model.safetensors"))
    convert(out, tmp_path / "again", tokenizer="bytes")
    ours, again = (redraft.load(tmp_path / part, "cpu") for part in ("ours", "again"))
    same_tensors(ours.network.state_dict(), again.network.state_dict())
    assert again.network.shape.keys == 2


OURS = {
    "llama": Shape("llama", 2, 4, 32, 48, BYTES, 0, kv_heads=2, eps=1e-6, scaling=Scaling("linear", 2.0)),
    "tied qwen2": Shape("llama", 2, 4, 32, 48, BYTES, 0, qkv_bias=True, tied=True),
    "qwen3": Shape("llama", 2, 4, 32, 48, BYTES, 0, qk_norm=True, head_dim=12),
    "gpt2": Shape("gpt2", 2, 4, 32, 48, BYTES, 0, tied=True, context=32),
}


def saved(into: Path, family: str, shape: Shape, **options: Any) -> Model:
    network, noise = initialised(shape, 0), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=noise))
    save_model(into, ModelConfig(family, options, shape, 24, Bytes().fingerprint, {}), network.eval(), Bytes())
    return redraft.load(into, "cpu")


@torch.no_grad()
@pytest.mark.parametrize("bos", ["spare", 3, "none"])
@pytest.mark.parametrize("name", OURS)
def test_what_was_trained_here_is_read_there(name: str, bos: str | int, tmp_path: Path) -> None:
    model = saved(tmp_path / "run", "ar", OURS[name], bos=bos)
    stock = transformers.AutoModelForCausalLM.from_pretrained(export(tmp_path / "run", "hf", tmp_path / "out")).eval()
    ids = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(1))
    read = model.family.shifted(ids)  # type: ignore[attr-defined]
    ours = model.network.head(model.network.trunk(model.family.view(read)))  # type: ignore[attr-defined]
    assert (stock(read).logits[..., :BYTES] - ours).abs().max() <= 1e-5 * ours.abs().max()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    if bos != 3:  # an id that is a byte here has no name as a special token
        assert tokenizer("ab").input_ids == [*([BYTES] if bos == "spare" else []), 97, 98]


@pytest.mark.parametrize("shift", [False, True])
def test_a_masked_model_becomes_lladas_or_dreams(shift: bool, tmp_path: Path) -> None:
    """Read again here, it predicts the same text; its [MASK] is id V."""
    model = saved(tmp_path / "run", "mdlm", Shape("llama", 2, 4, 32, 48, BYTES, 0, kv_heads=2), shift=shift)
    out = export(tmp_path / "run", "hf", tmp_path / "out")
    done = convert(out, tmp_path / "again")
    assert done.plan.format == ("dream" if shift else "llada")
    again, ids = redraft.load(tmp_path / "again", "cpu"), torch.randint(0, 256, (2, 9))
    ids[:, 3:6] = BYTES
    found, expected = again.log_p(ids)[:, 3:6, :BYTES].log_softmax(-1), model.log_p(ids)[:, 3:6]
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(("family", "shape", "target", "why"), [
    ("ar", Shape("llama", 1, 4, 32, 48, BYTES, 0, qkv_bias=True, qk_norm=True), "hf", "both network"),
    ("mdlm", Shape("llama", 1, 4, 32, 48, BYTES, 0, qk_norm=True), "hf", "llada has no network.qk_norm"),
    ("esolm", Shape("llama", 1, 4, 32, 48, BYTES, 0), "hf", "no layout of others for family 'esolm'"),
    ("ar", OURS["tied qwen2"], "llama", "its layout is qwen2"),
    ("ar", OURS["gpt2"], "gguf", "llama blocks"),
    ("ar", OURS["llama"], "transformers", r"does not know network\.kv_heads"),
])  # fmt: skip
def test_what_no_layout_holds_is_one_line(family: str, shape: Shape, target: str, why: str, tmp_path: Path) -> None:
    saved(tmp_path / "run", family, shape)
    with pytest.raises(UserError, match=why):
        export(tmp_path / "run", target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("scaling", "more"), [
    (Scaling("llama3", 2.0, original=16), {"qkv_bias": True}),
    (Scaling("yarn", 2.0, original=16, attention=0.5), {}),
])  # fmt: skip
def test_a_scaling_that_gguf_cannot_say_is_refused(scaling: Scaling, more: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    saved(tmp_path / "run", "ar", Shape("llama", 1, 2, 16, 24, BYTES, 0, scaling=scaling, **more))
    with pytest.raises(UserError, match=r"cannot say the scaling of the rotary angles: .*(qwen2|attention)"):
        export(tmp_path / "run", "gguf", tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_text_beyond_learned_positions_is_refused(tmp_path: Path) -> None:
    model = saved(tmp_path / "run", "ar", OURS["gpt2"])
    assert model.sample("ab", n=1, length=32)
    with pytest.raises(UserError, match="33 tokens are more than the 32 positions"):
        model.sample("ab", n=1, length=33)
    with pytest.raises(UserError, match="40 tokens are more than the 32 positions"):
        model.log_p(torch.zeros(1, 40, dtype=torch.int64))
