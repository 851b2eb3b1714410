"""An AR model becomes another family: what is new in its weights, and attention that opens by and by."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import redraft
from redraft.cli import main
from redraft.config import AdaptConfig
from redraft.families.base import build, full_view
from redraft.hub.folder import load_model
from redraft.network.init import initialised
from redraft.network.padding import Padded
from redraft.network.sizes import Shape
from redraft.network.transformer import Transformer
from redraft.noise.counter_rng import Key
from redraft.training.adapt import Opening, adapted, opening
from redraft.types import Attention, View
from tests.hub.models import folder
from tests.rounding import CLOSE, in_float64
from tests.small_runs import corpus

V, L = 9, 12
WORDS = ["--steps", "2", "--train.batch", "4", "--train.threads", "1", "--evaluate.rows", "4", "--evaluate.draws", "1"]


@pytest.fixture(scope="module")
def network() -> Transformer:
    return in_float64(initialised(Shape("llama", 2, 2, 16, 24, V, 0), 0))


def text() -> torch.Tensor:
    return torch.randint(0, V, (2, L), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_closed_is_causal_and_open_is_full(network: Transformer) -> None:
    view = full_view(text())
    causal = network.trunk(View(view.tokens, view.positions, Attention.CAUSAL))
    assert torch.allclose(Opening(network, 0.0, Key.of(0)).trunk(view), causal, **CLOSE)
    assert torch.allclose(Opening(network, 1.0, Key.of(0)).trunk(view), network.trunk(view), **CLOSE)
    config = AdaptConfig(open=0.5)
    assert opening(network, config, 0.5, Key.of(0)) is network
    assert opening(network, None, 0.0, Key.of(0)) is network


@torch.no_grad()
def test_a_share_of_the_pairs_is_open_and_the_same_for_every_row(network: Transformer) -> None:
    seen = []

    class Told(Transformer):
        def trunk(self, view: View) -> torch.Tensor:
            seen.append(view.attention.dense("cpu"))  # type: ignore[union-attr]
            return view.tokens[..., None].double()

    long = full_view(torch.zeros(3, 60, dtype=torch.int64))
    Opening(Told(network.shape), 0.25, Key.of(0)).trunk(long)
    mask = seen[0]
    ahead = torch.ones(60, 60).triu(1).bool()
    assert mask.shape[0] == 1 and bool(mask[0][~ahead].all())
    pairs = int(ahead.sum())
    spread = (0.25 * 0.75 / pairs) ** 0.5
    assert abs(float(mask[0][ahead].double().mean()) - 0.25) < 6 * spread


@torch.no_grad()
@pytest.mark.parametrize("name", ["bd3lm", "esolm"])
def test_opening_adds_to_a_familys_own_pattern(network: Transformer, name: str) -> None:
    """Nobody sees what the family's pattern hides; and no row sees its padding."""
    family = build(name, {}, V)
    if name == "bd3lm":
        view = family.view(text())  # type: ignore[attr-defined]
    else:
        order = torch.rand(2, L, generator=torch.Generator().manual_seed(1)).argsort(1)
        view = family.view(text().gather(1, order), order, torch.tensor([3, 5]))  # type: ignore[attr-defined]
    opened = Opening(network, 1.0, Key.of(0)).trunk(view)
    assert torch.allclose(opened, network.trunk(view), **CLOSE)
    padded = Padded(network, torch.tensor([L - 2, L]))
    assert torch.allclose(Opening(padded, 1.0, Key.of(0)).trunk(view), padded.trunk(view), **CLOSE)


def test_the_row_of_the_mask_is_the_mean_of_the_others() -> None:
    weights = {"embedding": torch.randn(V + 1, 4), "norm.weight": torch.ones(4)}
    made = adapted(weights, AdaptConfig())
    assert torch.equal(made["embedding"][:-1], weights["embedding"][:-1])
    assert torch.allclose(made["embedding"][-1], weights["embedding"][:-1].mean(0))
    assert torch.equal(adapted(weights, AdaptConfig(mask="keep"))["embedding"], weights["embedding"])


@pytest.mark.parametrize(
    "words", [["mdlm", "--family.shift", "true"], ["bd3lm"], ["esolm"], ["duo"]], ids=lambda w: w[0]
)
def test_an_ar_model_becomes_every_family(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At a learning rate of nearly nothing the weights are those of the AR model, but for the row of [MASK]."""
    start, source = folder(tmp_path / "ar", "ar", "llama"), corpus(tmp_path / "prose")
    given = [
        "--from",
        str(start),
        "--data",
        str(source),
        "--family",
        *words,
        "--train.lr",
        "1e-12",
        "--train.adapt.open",
        "0.5",
    ]
    main(["train", "--into", str(tmp_path / "run"), *given, *WORDS])
    assert "Adaptation of" in capsys.readouterr().out
    before, after = (
        dict(load_model(at, torch.device("cpu"))[1].named_parameters()) for at in (start, tmp_path / "run")
    )
    for name, tensor in after.items():
        rows = slice(-1) if name == "embedding" else slice(None)
        assert torch.allclose(tensor[rows], before[name][rows], atol=1e-9)
    spare = before["embedding"][-1] if words[0] == "duo" else before["embedding"][:-1].mean(0)
    assert torch.allclose(after["embedding"][-1], spare, atol=1e-6)
    assert redraft.load(tmp_path / "run", "cpu").sample(n=1, length=8, steps=4)


@pytest.mark.parametrize("family", ["mdlm", "duo"])
def test_adapters_leave_all_but_the_row_of_the_mask(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Merged into the model at the end."""
    pytest.importorskip("peft", reason="LoRA needs peft")
    start, source = folder(tmp_path / "ar", "ar", "llama"), corpus(tmp_path / "prose")
    given = ["--from", str(start), "--data", str(source), "--family", family, "--train.lora.rank", "2", *WORDS]
    main(["train", "--into", str(tmp_path / "run"), *given, "--train.lora.targets", '["qkv"]', "--train.lr", "0.01"])
    row = " and the row of [MASK]" if family == "mdlm" else ""
    assert f"Trained are adapters of rank 2{row} alone." in capsys.readouterr().out
    before, after = (load_file(at / "model.safetensors") for at in (start, tmp_path / "run"))
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert after.keys() == before.keys() and {name for name in changed if "qkv" not in name} <= {"embedding"}
    assert torch.equal(after["embedding"][:-1], before["embedding"][:-1])
    mean = before["embedding"][:-1].mean(0)
    assert ("embedding" in changed) == (family == "mdlm")
    if family == "mdlm":  # two steps of Adam at 1e-2, and no more
        assert 1e-3 < float((after["embedding"][-1] - mean).abs().max()) < 0.021


REFUSED = {
    "AR to AR": (["--family", "ar", "--train.adapt.open", "0.1"], "here ar becomes ar"),
    "a share above one": (["--family", "mdlm", "--train.adapt.open", "1.5"], "train.adapt.open"),
    "another row": (["--family", "mdlm", "--train.adapt.mask", "zero"], "train.adapt.mask"),
    "a shift that is none": (["--family", "mdlm", "--family.shift", "two"], "family.shift"),
    "a shift of blocks": (["--family", "bd3lm", "--family.shift", "true"], "shift"),
}


@pytest.mark.parametrize("trick", REFUSED)
def test_what_cannot_be_adapted_is_one_line(trick: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, said = REFUSED[trick]
    start, source = folder(tmp_path / "ar", "ar", "llama"), corpus(tmp_path / "prose")
    with pytest.raises(SystemExit) as ended:
        main(["train", "--into", str(tmp_path / "run"), "--from", str(start), "--data", str(source), *words, *WORDS])
    assert ended.value.code == 2
    told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("tokenising")]
    assert len(told) == 1 and said in told[0]
    assert not (tmp_path / "run").exists()


def test_without_a_model_there_is_nothing_to_adapt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--family",
        "mdlm",
        "--size",
        "20k",
        "--data",
        str(corpus(tmp_path / "prose")),
        "--train.adapt.open",
        "0.1",
    ]
    with pytest.raises(SystemExit):
        main(["train", "--into", str(tmp_path / "run"), *words, *WORDS])
    assert "--from" in capsys.readouterr().err
