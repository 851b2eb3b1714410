"""The library's contract: load, log_p, score, sample, in the shapes and meanings that are promised."""

from __future__ import annotations

import json
import math
import os
import pickle
import warnings
from pathlib import Path

import pytest
import torch

import redraft
from redraft.cli import main
from redraft.errors import UserError
from redraft.hub.model import MARK, Model
from redraft.registry import FAMILIES
from redraft.runs.claim import open_run
from redraft.runs.run import carry_out
from redraft.types import Canvas
from tests.rounding import CLOSE, in_float64
from tests.small_runs import corpus, tiny

BYTES = 257
pytestmark = pytest.mark.filterwarnings("ignore:.* of a row in training:UserWarning")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One trained model of every registered family."""
    source, out = corpus(tmp_path_factory.mktemp("prose")), {}
    for family in FAMILIES:
        out[family] = tmp_path_factory.mktemp("models") / family
        for _ in carry_out(open_run(tiny(source, family=family, budget={"steps": 60}), out[family]), out[family]):
            pass
    return out


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Model:
    return redraft.load(folders[request.param], "cpu")


def test_loaded_model_says_what_it_is(model: Model, folders: dict[str, Path]) -> None:
    assert model.family.name in FAMILIES and model.tokenizer.size == BYTES
    tensors = sum(p.numel() for p in model.network.parameters())
    assert sum(model.parameters.values()) == tensors and "embedding" in model.parameters
    again = redraft.load(str(folders[model.family.name]), "cpu")
    ids = torch.randint(0, 256, (2, 9))
    assert torch.equal(model.log_p(ids), again.log_p(ids))


def test_log_p_is_normalised_over_text_ids(model: Model) -> None:
    ids = torch.randint(0, 256, (3, 11), generator=torch.Generator().manual_seed(0))
    in_float64(model.network)
    log_p = model.log_p(ids, t=torch.tensor([0.1, 0.5, 0.9])) if model.family.name == "duo" else model.log_p(ids)
    assert log_p.shape == (3, 11, BYTES)
    assert torch.allclose(log_p.exp().sum(-1), torch.ones(3, 11).double(), **CLOSE)


def test_ar_log_p_is_of_the_next_token_and_adds_up_to_the_score(folders: dict[str, Path]) -> None:
    model = redraft.load(folders["ar"], "cpu")
    in_float64(model.network)
    text = "the of and a t"
    ids = torch.as_tensor(model.tokenizer.encode(text))[None]
    rows = model.log_p(ids)
    first = model.network.head(model.network.trunk(model.family.view(torch.tensor([[model.family.bos_id]]))))[0, 0]  # type: ignore[attr-defined]
    nats = -first.log_softmax(-1)[ids[0, 0]] - rows[0, :-1].gather(1, ids[0, 1:, None]).sum()
    (score,) = model.score(text)
    assert score.nats == pytest.approx(nats.item(), rel=1e-9)
    assert (score.standard_error, score.exact, score.tokens, score.bytes) == (0.0, True, len(text), len(text))


@pytest.mark.parametrize("family", ["mdlm", "esolm"])
def test_visible_tokens_are_certain_and_masks_are_predicted(family: str, folders: dict[str, Path]) -> None:
    model = redraft.load(folders[family], "cpu")
    ids = torch.randint(0, 256, (2, 8))
    ids[:, 3] = model.family.mask_id  # type: ignore[attr-defined]
    log_p = model.log_p(ids).exp()
    visible = torch.arange(8) != 3
    assert (log_p[:, visible].gather(-1, ids[:, visible, None]) == 1).all()
    assert log_p[:, 3].max() < 0.99


def test_esolm_log_p_in_an_order_sees_only_what_comes_before(folders: dict[str, Path]) -> None:
    model = redraft.load(folders["esolm"], "cpu")
    in_float64(model.network)
    mask = model.family.mask_id  # type: ignore[attr-defined]
    ids = torch.randint(0, 256, (1, 6))
    ids[0, [1, 4]] = mask
    order = torch.tensor([[5, 0, 4, 2, 3, 1]])
    before = model.log_p(ids, order=order)
    changed = ids.clone()
    changed[0, 2] = (ids[0, 2] + 1) % 256  # after position 4 in the order, before position 1
    after = model.log_p(changed, order=order)
    assert torch.allclose(before[0, 4], after[0, 4], **CLOSE)
    assert not torch.allclose(before[0, 1], after[0, 1], atol=1e-6)


def test_scores_are_reproducible_bounds_with_errors(model: Model) -> None:
    texts = ["the of and a to", "in is you that it he was for on are as with his they"]
    scores, again = model.score(texts, draws=16), model.score(texts, draws=16)
    assert scores == again and [s.tokens for s in scores] == [len(t) for t in texts]
    for s in scores:
        assert s.nats > 0 and math.isfinite(s.bits_per_byte)
        assert (s.standard_error == 0) == (model.family.name == "ar")


def test_samples_keep_their_prompt_and_length(model: Model) -> None:
    in_float64(model.network)  # alone and in company no near tie falls another way
    texts = model.sample("the ", n=3, length=24, steps=8, seed=1)
    assert isinstance(texts, list) and len(texts) == 3 and all(t.startswith("the ") for t in texts)
    assert (
        texts == model.sample("the ", n=3, length=24, steps=8, seed=1) != model.sample("the ", n=3, length=24, seed=2)
    )
    assert texts[:1] == model.sample("the ", n=1, length=24, steps=8, seed=1)


def test_a_canvas_is_as_long_as_a_row_of_training_unless_said(model: Model) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        *_, final = model.sample("a", n=1, steps=2, stream=True)
    assert final.tokens.shape[1] == model.canvas().tokens.shape[1] == model.length


def test_streamed_canvases_end_in_the_samples(model: Model) -> None:
    frames = list(model.sample("the ", n=2, length=20, steps=8, stream=True))
    assert len(frames) > 1 and all((f.tokens[:, :4] == frames[0].tokens[:, :4]).all() for f in frames)  # type: ignore[union-attr]
    assert [model.text(row, 4) for row in frames[-1].tokens] == model.sample("the ", n=2, length=20, steps=8)  # type: ignore[union-attr]


def test_a_canvas_on_its_way_is_text_with_a_mark_for_what_is_not_written(model: Model) -> None:
    """Marks only ever become text; a uniform-state model has none to begin with. The last canvas is the sample."""
    settings = {"n": 2, "length": 20, "steps": 8}
    shown = [model.show(canvas) for canvas in model.sample("the ", stream=True, **settings)]  # type: ignore[arg-type]
    assert shown[-1] == model.sample("the ", **settings)  # type: ignore[arg-type]
    assert all(text.startswith("the ") for texts in shown for text in texts)
    frames = list(model.sample("the ", stream=True, **settings))  # type: ignore[arg-type]
    left = [int((canvas.tokens[0] >= model.family.vocab).sum()) for canvas in frames]  # type: ignore[union-attr]
    assert left[-1] == 0 and (left[0] > 0) == bool(model.family.spare)
    if model.family.exported not in ("uniform", "hybrid", "stationary"):  # those may hide again what they had written
        assert left == sorted(left, reverse=True)
    marks = [texts[0].count(MARK) for texts in shown]
    assert all(mark <= n for mark, n in zip(marks, left, strict=True)) and (max(marks) > 0) == bool(model.family.spare)


def test_an_unwritten_canvas_is_all_marks_between_prompt_and_suffix(model: Model) -> None:
    assert model.show(model.canvas("é ", 1, 9, " end")) == ["é ░░ end"]
    assert model.show(model.canvas("a", 2, 3), "_") == ["a__", "a__"]


def test_text_after_a_gap_keeps_its_space_and_half_a_character_swallows_nothing(model: Model) -> None:
    canvas, ids = model.canvas("", 1, 6), torch.tensor([[0xC3, 999, 0xA9, 999, 32, 97]])
    tokens = ids.where(ids < 256, model.family.vocab)
    assert model.show(Canvas(tokens, canvas.fixed)) == ["\ufffd░\ufffd░ a"]


def test_a_length_beyond_training_is_remarked_in_one_line(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = redraft.load(folders["ar"], "cpu")
    for length, beyond in ((model.length, False), (model.length + 1, True)):
        main(["sample", str(folders["ar"]), "--length", str(length), "--json"])
        said = capsys.readouterr()
        table = json.loads(said.out)
        assert (table["length"], table["trained_length"], table["beyond_training"]) == (length, model.length, beyond)
        assert said.err.count("\n") == beyond and (f"more than the {model.length} of a row" in said.err) == beyond
    with pytest.warns(UserWarning, match=f"are more than the {model.length} of a row in training"):
        model.sample("a", n=1, length=model.length + 1, steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.sample("a", n=1, length=model.length, steps=1)


def test_infilling_keeps_both_ends_or_says_who_can(model: Model) -> None:
    settings = {"n": 2, "length": 20, "steps": 6, "suffix": " end"}
    if model.family.name == "ar":
        with pytest.raises(UserError, match="cannot fill in"):
            model.sample("the ", **settings)  # type: ignore[arg-type]
        return
    frames = list(model.sample("the ", stream=True, **settings))  # type: ignore[arg-type]
    final = [model.tokenizer.decode(row) for row in frames[-1].tokens.tolist()]  # type: ignore[union-attr]
    assert all(t.startswith("the ") and t.endswith(" end") for t in final)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:500]),
            "does not hold",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04" + pickle.dumps({"a": 1})), "does not hold"),
        (lambda f: (f / "model.safetensors").unlink(), "does not hold"),
        (lambda f: (f / "config.json").unlink(), "no finished model"),
        (lambda f: (f / "config.json").write_text('{"model_type": "llama"}'), "not a redraft model"),
        (lambda f: (f / "config.json").write_text("{"), "cannot read"),
    ],
    ids=["truncated", "pickle", "weights missing", "unfinished", "foreign", "torn"],
)
def test_damaged_or_foreign_folder_is_one_line(break_it, says, folders, tmp_path) -> None:  # type: ignore[no-untyped-def]
    import shutil

    copy = tmp_path / "model"
    shutil.copytree(folders["mdlm"], copy)
    break_it(copy)
    with pytest.raises(UserError, match=says) as caught:
        redraft.load(copy, "cpu")
    assert "\n" not in str(caught.value)


def test_missing_folder_is_named() -> None:
    with pytest.raises(UserError, match="no such model folder: nowhere"):
        redraft.load("nowhere")


def test_importing_redraft_loads_no_torch() -> None:
    import subprocess
    import sys

    program = "import sys, redraft; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "False"
