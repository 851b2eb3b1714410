"""A causal model of `transformers` is the same function here; what was made of one for diffusion reads the same tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import redraft
from redraft.errors import UserError
from redraft.hub.convert.convert import Converted, convert
from redraft.hub.convert.layouts.plan import Choices
from redraft.hub.model import Model
from redraft.types import Canvas, last
from tests.rounding import in_float64

transformers = pytest.importorskip("transformers")

V, L = 300, 11
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": V,
         "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 256, "pad_token_id": 0}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "rope_theta": 500000.0}  # fmt: skip
# Class, and what differs from SMALL.
MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"num_key_value_heads": 4, "rms_norm_eps": 1e-5, "tie_word_embeddings": False}),
    "smollm2": ("Llama", {"num_key_value_heads": 2, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
                          "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}}),
    "llama 3.1": ("Llama", {"num_key_value_heads": 2, "rope_parameters": LLAMA3, "tie_word_embeddings": False}),
    "yarn": ("Llama", {"num_key_value_heads": 2, "rope_parameters": YARN, "tie_word_embeddings": False}),
    "linear": ("Llama", {"num_key_value_heads": 2, "tie_word_embeddings": False,
                         "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    "mistral": ("Mistral", {"num_key_value_heads": 1, "head_dim": 12, "sliding_window": None}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2, "rms_norm_eps": 1e-6, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": False}),
    "gpt2": ("GPT2", {"tie_word_embeddings": True}),
}  # fmt: skip


def made(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """A random model of transformers; biases and norms are no zeros and ones."""
    kind, more = MADE[name]
    settings = {**SMALL, **more}
    if kind == "GPT2":
        names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
                 "max_position_embeddings": "n_positions", "intermediate_size": "n_inner"}  # fmt: skip
        settings = {names.get(key, key): value for key, value in settings.items()}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**settings)
    model = getattr(transformers, f"{kind}{'LMHeadModel' if kind == 'GPT2' else 'ForCausalLM'}")(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("causal")
    for name in MADE:
        made(name, torch.float32).save_pretrained(where / name)
    return {name: where / name for name in MADE}


def converted(source: Path, into: Path, **choices: Any) -> tuple[Converted, Model]:
    done = convert(source, into, tokenizer="bytes", choices=Choices(**choices))
    return done, redraft.load(into, "cpu")


def texts(rows: int = 2) -> Tensor:
    return torch.randint(0, V, (rows, L), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
@pytest.mark.parametrize("name", MADE)
def test_log_p_is_that_of_transformers(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """In float64 on both sides, but for their rotary angles, which are float32: 11 places off by 2^-24 each, through the
    network. Without BOS, as these tokenizers have none."""
    theirs, (_, model) = made(name), converted(folders[name], tmp_path / "out")
    in_float64(model.network)
    assert model.family.bos == "none"  # type: ignore[attr-defined]
    expected = theirs(texts()).logits
    found = model.network.head(model.network.trunk(model.family.view(texts())))  # type: ignore[attr-defined]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    log_p = model.log_p(texts())
    assert (log_p - expected.log_softmax(-1)).abs().max() <= 2e-5 * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("name", MADE)
def test_a_score_is_the_loss_of_transformers(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    theirs, (_, model) = made(name), converted(folders[name], tmp_path / "out")
    in_float64(model.network)
    text = "a text of bytes"
    ids = torch.tensor([list(text.encode())])
    score = model.score(text)[0]
    assert score.tokens == len(text) - 1
    assert score.nats == pytest.approx(float(theirs(ids, labels=ids).loss) * score.tokens, rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", MADE)
def test_greedy_generation_is_theirs_with_a_cache(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    theirs, (_, model) = made(name), converted(folders[name], tmp_path / "out")
    in_float64(model.network)
    prompt = texts(1)[:, :4]
    expected = theirs.generate(
        prompt, max_new_tokens=12, do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0,
        attention_mask=torch.ones_like(prompt),
    )  # fmt: skip
    canvas = Canvas(torch.cat([prompt, torch.full((1, 12), V)], 1), torch.arange(16)[None] < 4)
    found = last(model.frames(canvas, model.denoiser(temperature=0.0), "", 1, 0)).tokens
    assert found.tolist() == expected.tolist()


def test_shapes_are_kept_as_they_are(folders: dict[str, Path], tmp_path: Path) -> None:
    shapes = {name: converted(folders[name], tmp_path / name)[1].network.shape for name in MADE}
    assert [shapes[name].keys for name in ("llama", "smollm2", "mistral", "qwen3")] == [4, 2, 1, 2]
    assert [name for name, shape in shapes.items() if shape.tied] == ["smollm2", "qwen2", "gpt2"]
    assert [shapes[name].head for name in ("mistral", "qwen3", "qwen2")] == [12, 16, 8]
    assert {shape.vocab for shape in shapes.values()} == {V}


def test_bos_comes_from_the_tokenizer_unless_it_is_given(folders: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "llama"
    source.mkdir()
    for file in folders["llama"].iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    (source / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))
    assert converted(source, tmp_path / "a")[0].plan.options == {"bos": 1}
    assert converted(source, tmp_path / "b", bos=-1)[0].plan.options == {"bos": "none"}
    assert converted(source, tmp_path / "c", bos=7)[0].plan.options == {"bos": 7}
    with pytest.raises(UserError, match="--bos 300"):
        converted(source, tmp_path / "d", bos=300)


def changed(folders: dict[str, Path], name: str, into: Path, config: dict[str, Any], **tensors: Tensor | None) -> Path:
    """A copy with other facts and tensors; None: without."""
    into.mkdir()
    table = json.loads((folders[name] / "config.json").read_text())
    (into / "config.json").write_text(json.dumps({**table, **config}))
    held = load_file(folders[name] / "model.safetensors") | {k.replace("__", "."): v for k, v in tensors.items()}
    save_file({k: v for k, v in held.items() if v is not None}, into / "model.safetensors", {"format": "pt"})
    return into


DIFFUSION = {
    "dream": ("qwen2", {"model_type": "Dream", "mask_token_id": 299}, {"shift": True}),
    "diffullama": ("llama", {"architectures": ["DiscreteDiffusionModel"], "mask_token_id": 299}, {"shift": True}),
    "sdar": ("qwen3", {"model_type": "sdar", "mask_token_id": 299}, {"block": 4}),
}


@torch.no_grad()
@pytest.mark.parametrize("name", DIFFUSION)
def test_diffusion_models_of_their_blocks_predict_what_those_do(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """The masked one with attention both ways, its row l their row l - 1; [MASK] is their id, and stays in the softmax."""
    base, config, options = DIFFUSION[name]
    done, model = converted(changed(folders, base, tmp_path / "in", config), tmp_path / "out")
    in_float64(model.network)
    assert (done.plan.format, {k: v for k, v in done.plan.options.items() if k in options}) == (name, options)
    tokens = texts(1)
    tokens[0, [3, 4, 8]] = 299
    if name == "sdar":
        may = torch.arange(L)[:, None] // 4 >= torch.arange(L) // 4
        expected = made(base)(tokens, attention_mask=_additive(may)).logits
    else:
        logits = made(base)(tokens, attention_mask=_additive(torch.ones(L, L, dtype=torch.bool))).logits
        expected = torch.cat([logits[:, :1], logits[:, :-1]], 1)
    found, hidden = model.log_p(tokens), tokens[0] == 299
    off = (found - expected.log_softmax(-1))[0, hidden].abs().max()
    assert off <= 2e-5 * expected.abs().max()


def _additive(may: Tensor) -> Tensor:
    return torch.zeros(1, 1, L, L, dtype=torch.float64).masked_fill(~may, -torch.inf)


BROKEN: dict[str, tuple[str, dict[str, Any], dict[str, Tensor | None], str]] = {
    "a missing tensor": ("qwen2", {}, {"model__layers__1__self_attn__k_proj__bias": None}, "lacks layers.1.self_attn.k_proj"),
    "an extra tensor": ("llama", {}, {"model__layers__1__extra__weight": torch.zeros(3)}, "layers.1.extra.weight"),
    "a wrong shape": ("llama", {}, {"model__norm__weight": torch.ones(31)}, "norm.weight of shape"),
    "integers": ("llama", {}, {"model__norm__weight": torch.ones(32, dtype=torch.int64)}, "no format of weights"),
    "an unknown model": ("llama", {"model_type": "mamba"}, {}, "model_type 'mamba'"),
    "no depth": ("llama", {"num_hidden_layers": None}, {}, "num_hidden_layers"),
    "an enormous depth": ("llama", {"num_hidden_layers": 1 << 40}, {}, "num_hidden_layers"),
    "a negative width": ("llama", {"hidden_size": -32}, {}, "hidden_size"),
    "heads that do not fit": ("llama", {"num_key_value_heads": 3}, {}, "kv_heads"),
    "no epsilon": ("llama", {"rms_norm_eps": 0.0}, {}, "norms add 0"),
    "a sliding window": ("mistral", {"sliding_window": 16}, {}, "sliding_window of 16"),
    "layers that slide": ("qwen3", {"layer_types": ["sliding_attention"] * 2}, {}, "sliding_attention"),
    "unknown scaling": ("llama", {"rope_parameters": {"rope_type": "longrope"}}, {}, "'longrope'"),
    "biases on the way out": ("llama", {"attention_bias": True}, {}, "attention_bias"),
    "another activation": ("llama", {"hidden_act": "gelu"}, {}, "hidden_act"),
    "quantised": ("llama", {"quantization_config": {"bits": 4}}, {}, "quantization_config"),
    "another activation of GPT-2": ("gpt2", {"activation_function": "relu"}, {}, "activation_function"),
    "GPT-2 without positions": ("gpt2", {}, {"transformer__wpe__weight": None}, "wpe.weight"),
    "not finite": ("llama", {}, {"model__norm__weight": torch.full((32,), float("nan"))}, "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("trick", BROKEN)
def test_what_is_not_whole_or_known_is_one_line(trick: str, folders: dict[str, Path], tmp_path: Path) -> None:
    name, config, tensors, said = BROKEN[trick]
    source = changed(folders, name, tmp_path / "in", config, **tensors)
    with pytest.raises(UserError) as error:
        converted(source, tmp_path / "out")
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_window_that_is_not_narrower_changes_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    source = changed(folders, "mistral", tmp_path / "in", {"sliding_window": 16})
    assert converted(source, tmp_path / "out", length=16)[1].length == 16


def test_a_head_that_is_stored_beside_its_equal_is_tied(folders: dict[str, Path], tmp_path: Path) -> None:
    head = load_file(folders["smollm2"] / "model.safetensors")["model.embed_tokens.weight"]
    equal = changed(folders, "smollm2", tmp_path / "a", {}, lm_head__weight=head.clone())
    other = changed(folders, "smollm2", tmp_path / "b", {}, lm_head__weight=head + 1)
    assert converted(equal, tmp_path / "c")[1].network.shape.tied
    assert not converted(other, tmp_path / "d")[1].network.shape.tied
