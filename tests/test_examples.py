"""The examples run, and the family of one's own is a family: it obeys the laws, and commands find it once it is installed."""

from __future__ import annotations

import lzma
import random
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import redraft
from redraft import registry
from redraft.cli import main
from redraft.errors import MISTAKE, UserError
from redraft.families.base import DiffusionFamily, build
from redraft.noise.counter_rng import Key
from redraft.types import Batch
from tests.laws import oracles
from tests.laws.test_bound import expected_diffusion_nelbo
from tests.world import ENTROPY, TEXTS, Exact, P, V

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = ["--data", "book.txt", "--size", "3.1k", "--length", "16"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a book in it."""
    rng, words = random.Random(0), "the of and a to in is you that it he was for on are".split()  # noqa: SIM905
    text = "\n\n".join(" ".join(rng.choice(words) for _ in range(60)) for _ in range(100))
    (tmp_path / "book.txt").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return tmp_path


@pytest.fixture
def my_family(here: Path) -> Iterator[ModuleType]:
    """The example's module; the registry forgets it afterwards."""
    import my_family

    yield my_family
    registry.FAMILIES.pop("ardm", None)
    oracles.ORACLES.pop("ardm", None)


def test_quick_comparison_compares(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import quick_comparison

    quick_comparison.main([*SMALL, "--flops", "2e7"])
    assert "nats_per_token" in capsys.readouterr().out


def test_own_text_learns_a_tokenizer_and_states_a_study(here: Path) -> None:
    """The parts of the example that are its own; a study's run and report have tests of their own."""
    import own_text

    from redraft.planning.study import plan_study
    from redraft.text.tokenizers.tokenizer import load_tokenizer

    own_text.learned("book.txt", 300).save("tokenizer.json")
    tokenizer = load_tokenizer("tokenizer.json")
    text = "in the café it was"
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == text and tokenizer.size <= 300
    study = plan_study(own_text.recipe("book.txt", Path("tokenizer.json"), [1e8, 2e8], ["3.1k"], 16))
    assert len(study.runs) == 4


def test_own_text_reads_whatever_training_reads(here: Path) -> None:
    """Compressed, a folder and a glob: the same text gives the same tokenizer."""
    import own_text

    Path("books").mkdir()
    Path("books/book.txt.xz").write_bytes(lzma.compress(Path("book.txt").read_bytes()))
    ways = ("book.txt", "books/book.txt.xz", "books", "books/*.xz")
    assert len({own_text.learned(way, 300).to_str() for way in ways}) == 1


@pytest.mark.parametrize("text", ["absent.txt", "empty", "book.epub", "cut.txt.xz", "binary.txt"])
def test_own_text_says_in_one_line_what_it_cannot_read(
    here: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import own_text

    Path("empty").mkdir()
    Path("book.epub").write_text("a book")
    Path("cut.txt.xz").write_bytes(lzma.compress(Path("book.txt").read_bytes())[:-20])
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SystemExit) as left:
        own_text.main([text, "--into", "studies/own"])
    told = capsys.readouterr().err
    assert left.value.code == MISTAKE and text in told and told.count("\n") == 1
    assert not Path("studies").exists()


def test_my_family_trains_compares_and_samples(my_family: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    my_family.main([*SMALL, "--steps", "3"])
    assert "B: ardm" in capsys.readouterr().out
    model = redraft.load("runs/my-family/ardm", device="cpu")
    assert model.family.name == "ardm" and len(model.sample("the ", n=2, length=12)) == 2


def test_training_by_counts_averages_to_the_bound(my_family: ModuleType) -> None:
    """Both in expectation: the bound by enumeration, the loss by draws, within five standard errors."""
    registry.register("ardm", my_family.ENTRY)
    family = build("ardm", {}, V)
    assert isinstance(family, DiffusionFamily)
    assert expected_diffusion_nelbo(family, Exact(), 8) == pytest.approx(ENTROPY, abs=1e-6)
    rows = TEXTS.repeat(300, 1)
    batch = Batch(rows, torch.ones_like(rows, dtype=torch.bool), torch.arange(len(rows)))
    nats = family.loss(Exact(), batch, key=Key.of(0), progress=0.0).nats.double().sum(1).view(300, len(TEXTS))  # type: ignore[arg-type]
    each = (nats * P).sum(1)
    assert abs(float(each.mean()) - ENTROPY) < 5 * float(each.std()) / len(each) ** 0.5


def test_the_laws_take_it_by_the_documented_module(my_family: ModuleType) -> None:
    import my_family_laws  # noqa: F401

    assert "ardm" in registry.FAMILIES and isinstance(oracles.ORACLES["ardm"](None), Exact)


def test_an_installed_family_is_found_by_its_entry_point(
    my_family: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="unknown family 'ardm'"):
        registry.find("family", registry.FAMILIES, "ardm")
    info = Path("site") / "my_family-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-family\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[redraft.families]\nardm = my_family:ENTRY\n")
    monkeypatch.syspath_prepend(str(Path("site").resolve()))
    main(["plan", "--family", "ardm", "--size", "3.1k", "--steps", "1", "--rate", "1e10"])
    main(["list", "families"])
    assert "masked diffusion trained by counts" in capsys.readouterr().out
    with pytest.raises(UserError, match="a family 'mdlm' already"):
        registry.register("mdlm", my_family.ENTRY)
