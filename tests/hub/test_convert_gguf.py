"""GGUF files: the same network as the folder of `transformers`, quantised or not; headers that lie are one line."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import redraft
from redraft.errors import UserError
from redraft.hub.convert.convert import convert
from redraft.hub.convert.layouts.plan import Choices
from redraft.hub.model import Model
from tests.hub.test_convert_causal import MADE, made, texts
from tests.rounding import in_float64

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

PARTS = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
         "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}  # fmt: skip


def named(name: str) -> str:
    if not name.startswith("model.layers."):
        return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}.get(
            name, "output.weight"
        )
    _, _, layer, part = name.split(".", 3)
    stem, _, kind = part.rpartition(".")
    return f"blk.{layer}.{PARTS[stem]}.{kind}"


def neighbours(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of queries and keys: the halves of a head interleaved."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def written(
    name: str,
    path: Path,
    quantised: bool = False,
    more: dict[str, Any] | None = None,
    divisors: np.ndarray | None = None,
) -> Path:
    """A tiny model of transformers as a GGUF file."""
    model, arch = made(name, torch.float32), MADE[name][0].lower()
    config = model.config
    writer = gguf.GGUFWriter(path, arch)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if arch == "qwen3":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    for key, value in (more or {}).items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", divisors)
    for of, tensor in model.state_dict().items():
        if of == "lm_head.weight" and config.tie_word_embeddings:
            continue
        data = tensor.numpy()
        if arch == "llama" and ("q_proj" in of or "k_proj" in of):
            data = neighbours(data, config.num_attention_heads if "q_proj" in of else config.num_key_value_heads)
        kind = gguf.GGMLQuantizationType.Q8_0
        if quantised and data.ndim > 1 and data.shape[1] % 32 == 0:
            writer.add_tensor(named(of), gguf.quantize(np.ascontiguousarray(data), kind), raw_dtype=kind)
        else:
            writer.add_tensor(named(of), np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def converted(source: Path, into: Path, **choices: Any) -> Model:
    convert(source, into, tokenizer="bytes", choices=Choices(**choices))
    return redraft.load(into, "cpu")


@torch.no_grad()
@pytest.mark.parametrize("name", ["smollm2", "qwen2", "qwen3"])
def test_log_p_is_that_of_transformers(name: str, tmp_path: Path) -> None:
    model = converted(written(name, tmp_path / "m.gguf"), tmp_path / "out")
    in_float64(model.network)
    expected = made(name)(texts()).logits.log_softmax(-1)
    assert (model.log_p(texts()) - expected).abs().max() <= 2e-5 * expected.abs().max()


@torch.no_grad()
def test_quantised_rows_are_what_the_package_makes_of_them(tmp_path: Path) -> None:
    model = converted(written("smollm2", tmp_path / "m.gguf", quantised=True), tmp_path / "out")
    plain, kind = made("smollm2", torch.float32).state_dict(), gguf.GGMLQuantizationType.Q8_0
    through = lambda x: torch.from_numpy(gguf.dequantize(gguf.quantize(x.numpy(), kind), kind))
    ours = model.network.state_dict()
    for part, at in zip("qkv", ours["blocks.0.qkv.weight"].split([32, 16, 16]), strict=True):
        assert torch.equal(at, through(plain[f"model.layers.0.self_attn.{part}_proj.weight"]))
    assert torch.equal(ours["embedding"][:-1], through(plain["model.embed_tokens.weight"]))


TOKENS = ["<|endoftext|>", *(chr(c) for c in range(ord("a"), ord("z") + 1)), "Ġ", "Ċ", "th", "Ġth"]
SPOKEN = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": TOKENS,
          "tokenizer.ggml.token_type": [3] + [1] * (len(TOKENS) - 1), "tokenizer.ggml.merges": ["t h", "Ġ th"],
          "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 0}  # fmt: skip


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    source = written("smollm2", tmp_path / "m.gguf", more=SPOKEN)
    done = convert(source, tmp_path / "out")
    model = redraft.load(tmp_path / "out", "cpu")
    assert done.plan.options == {"bos": 0}
    assert model.tokenizer.size == 300
    assert model.tokenizer.encode("a then").tolist() == [TOKENS.index(t) for t in ("a", "Ġth", "e", "n")]
    assert model.tokenizer.eos == 0


def put(data: bytes, at: int, form: str, value: int) -> bytes:
    return data[:at] + struct.pack(form, value) + data[at + struct.calcsize(form) :]


def swapped(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) >= 1 and len(old) == len(new)
    return data.replace(old, new)


def grown(data: bytes, name: bytes) -> bytes:
    """The first size of a tensor as an enormous one."""
    return put(data, data.index(name) + len(name) + 4, "<Q", 1 << 50)


TRICKS = {
    "not a GGUF": (lambda d: b"GGML" + d[4:], "does not begin"),
    "an old version": (lambda d: put(d, 4, "<I", 1), "version is 1"),
    "billions of tensors": (lambda d: put(d, 8, "<Q", 1 << 60), "tensors"),
    "more tensors than there are": (lambda d: put(d, 8, "<Q", 1000), "GGUF file"),
    "billions of keys": (lambda d: put(d, 16, "<Q", 1 << 60), "keys"),
    "a key without end": (lambda d: put(d, 24, "<Q", 1 << 62), "ends within its header"),
    "cut in the header": (lambda d: d[:100], "ends within its header"),
    "cut in the data": (lambda d: d[:-40], "ends before its tensors"),
    "another architecture": (lambda d: swapped(d, b"llama", b"rwkv7"), "architecture 'rwkv7'"),
    "a tensor as large as the world": (lambda d: grown(d, b"blk.0.attn_q.weight"), "rows or columns"),
    "a tensor of another name": (lambda d: swapped(d, b"blk.1.attn_q.w", b"blk.1.attn_x.w"), "lacks layers.1.self_attn.q"),
    "an unknown format": (lambda d: put(d, d.index(b"output_norm.weight") + 18 + 12, "<I", 99), "format of number 99"),
    "tensors in one place": (lambda d: put(d, d.index(b"output_norm.weight") + 18 + 16, "<Q", 0), "overlap"),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written("smollm2", tmp_path_factory.mktemp("gguf") / "m.gguf").read_bytes()


@pytest.mark.parametrize("trick", TRICKS)
def test_headers_that_lie_are_one_line(trick: str, whole: bytes, tmp_path: Path) -> None:
    change, said = TRICKS[trick]
    (tmp_path / "m.gguf").write_bytes(change(whole))
    with pytest.raises(UserError) as error:
        converted(tmp_path / "m.gguf", tmp_path / "out")
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_any_byte_of_the_header_changed_is_read_or_one_line(whole: bytes, tmp_path: Path) -> None:
    for at in range(0, 1200, 23):
        (tmp_path / "m.gguf").write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            converted(tmp_path / "m.gguf", tmp_path / str(at))
        except UserError as error:
            assert "\n" not in str(error)


SPEECH = {
    "an unknown split": ({"tokenizer.ggml.pre": "klingon"}, "'klingon'"),
    "an unknown kind": ({"tokenizer.ggml.model": "rwkv"}, "'rwkv'"),
    "merges that are none": ({"tokenizer.ggml.merges": ["th"]}, "merges"),
}


@pytest.mark.parametrize("trick", SPEECH)
def test_a_tokenizer_that_is_not_known_is_one_line(trick: str, tmp_path: Path) -> None:
    more, said = SPEECH[trick]
    source = written("smollm2", tmp_path / "m.gguf", more=SPOKEN | more)
    with pytest.raises(UserError, match=said):
        convert(source, tmp_path / "out")


def divisors(name: str) -> np.ndarray:
    """By what Llama 3's files divide the frequencies, from the frequencies of transformers."""
    config = made(name, torch.float32).config
    plain = config.rope_parameters["rope_theta"] ** (-torch.arange(0, 8, 2) / 8)
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    return (plain / scaled).float().numpy()


S = "llama.rope.scaling."
SCALED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3 by its table": ("llama 3.1", {}),
    "yarn": ("yarn", {f"{S}type": "yarn", f"{S}factor": 4.0, f"{S}original_context_length": 16}),
    "yarn as its defaults": (
        "yarn", {f"{S}type": "yarn", f"{S}factor": 4.0, f"{S}original_context_length": 16, f"{S}yarn_ext_factor": 1.0,
                 f"{S}attn_factor": 1.0, f"{S}yarn_beta_fast": 32.0, f"{S}yarn_beta_slow": 1.0},
    ),
    "linear": ("linear", {f"{S}type": "linear", f"{S}factor": 4.0}),
    "linear without a type": ("linear", {f"{S}factor": 4.0}),
    "linear in the old way": ("linear", {"llama.rope.scale_linear": 4.0}),
    "a factor of no type": ("smollm2", {f"{S}type": "none", f"{S}factor": 4.0}),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("case", SCALED)
def test_scaled_angles_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    name, more = SCALED[case]
    table = divisors(name) if name == "llama 3.1" else None
    model = converted(written(name, tmp_path / "m.gguf", more=more, divisors=table), tmp_path / "out")
    assert (model.network.shape.scaling is None) == (name == "smollm2")
    in_float64(model.network)
    expected = made(name)(texts()).logits.log_softmax(-1)
    assert (model.log_p(texts()) - expected).abs().max() <= 2e-5 * expected.abs().max()


ONES = np.ones(4, np.float32)
UNKNOWN: dict[str, tuple[dict[str, Any], np.ndarray | None, str]] = {
    "longrope": ({f"{S}type": "longrope", f"{S}factor": 4.0}, None, "'longrope'"),
    "no kind at all": ({f"{S}type": [1, 2]}, None, "scales rotary angles by"),
    "a factor of nothing": ({f"{S}type": "linear", f"{S}factor": 0.0}, None, "factor"),
    "a factor that is text": ({f"{S}factor": "four"}, None, "numbers that are none"),
    "yarn with other scores": (
        {f"{S}type": "yarn", f"{S}factor": 4.0, f"{S}attn_factor": 0.5},
        None,
        "attn_factor 0.5",
    ),
    "yarn in part": ({f"{S}type": "yarn", f"{S}factor": 4.0, f"{S}yarn_ext_factor": 0.5}, None, "yarn_ext_factor 0.5"),
    "yarn without turns": ({f"{S}type": "yarn", f"{S}factor": 4.0, f"{S}yarn_beta_slow": 0.0}, None, "slow"),
    "a table of another kind": ({}, np.array([1, 3, 2, 8], np.float32), "is not Llama 3's"),
    "a table of nonsense": ({}, np.array([1, np.nan, 8, 8], np.float32), "divide no frequency"),
    "a table of infinity": ({}, np.array([1, 1, 1, np.inf], np.float32), "divide no frequency"),
    "a table that is too long": ({}, np.ones(5, np.float32), "heads of width 8 do not fit"),
    "scaled twice": ({f"{S}type": "linear", f"{S}factor": 4.0}, ONES, "twice"),
}


@pytest.mark.parametrize("trick", UNKNOWN)
def test_a_scaling_that_is_not_known_is_one_line(trick: str, tmp_path: Path) -> None:
    more, table, said = UNKNOWN[trick]
    source = written("smollm2", tmp_path / "m.gguf", more=more, divisors=table)
    with pytest.raises(UserError) as error:
        converted(source, tmp_path / "out")
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_table_of_ones_scales_nothing(tmp_path: Path) -> None:
    source = written("smollm2", tmp_path / "m.gguf", divisors=ONES)
    assert converted(source, tmp_path / "out").network.shape.scaling is None
