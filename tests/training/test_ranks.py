"""How a rank ends: what is asked of it when, what it says, and which status it leaves."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from redraft.errors import ASKED, LOST_RANK, MISTAKE, UserError
from redraft.runs.claim import open_run
from redraft.runs.run import carry_out, read_record
from redraft.text.shards.prepare import prepare
from redraft.text.shards.shards import spot
from redraft.text.tokenizers.tokenizer import Bytes
from redraft.training.checkpoint import STATE, cursor_of
from redraft.training.distributed.ranks import Preempted, Ranks, joined, rank_zero_errors
from redraft.training.journal import read_events
from tests.processes import ended, start
from tests.small_runs import corpus, tiny
from tests.training.spawned import environment, free_port


def ends(how: str) -> None:
    """A rank that ends so."""
    with joined(60) as ranks, rank_zero_errors(ranks):
        if how == "unknown":
            raise KeyError("what nobody thought of")
        if how == "mistake":
            raise UserError("no such thing")
        if how == "lost":
            raise RuntimeError("[gloo/pair.cc:1] Connection closed by peer. More")
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("a first rank that nobody looks after leaves at once")


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        ("unknown", 1, "KeyError: 'what nobody thought of'"),
        ("mistake", MISTAKE, "redraft: no such thing"),
        ("lost", LOST_RANK, "redraft: a rank was lost (Connection closed by peer)"),
        ("asked", ASKED, "redraft: interrupted; the same command continues"),
    ],
)
def test_a_rank_ends_there_and_then_with_a_status_that_says_why(
    how: str, status: int, said: str, tmp_path: Path
) -> None:
    """No teardown that waits for others: on an accelerator it would never come back."""
    rank = start(ends, how, said=tmp_path / "said", **environment(0, 1, free_port()))
    found, told = ended(rank), (tmp_path / "said").read_text()
    assert (found, said in told) == (status, True), told
    assert ("Traceback" in told) == (how == "unknown")


def test_while_a_run_looks_after_its_signals_they_wait_for_it() -> None:
    first, other = (Ranks(rank, 2, 2, control=object()) for rank in (0, 1))
    other.ask(signal.SIGTERM)
    with first.handling_signals():
        first.ask(signal.SIGTERM)
        first.ask(signal.SIGTERM)
    assert len(first.asked) == 2 and len(other.asked) == 1
    first.ask(signal.SIGTERM)  # it is leaving
    with pytest.raises(Preempted):
        Ranks(0, 2, 2).ask(signal.SIGTERM)
    impatient = Ranks()
    with pytest.raises(Preempted), impatient.handling_signals():
        impatient.ask(signal.SIGINT)
        impatient.ask(signal.SIGINT)


@pytest.fixture
def in_front() -> Iterator[None]:
    """Signals as of a program that a terminal started: a shell lets what it starts in the background ignore Ctrl-C."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("in_front")
def test_a_run_in_the_background_goes_on_ignoring_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ranks = Ranks()
    with ranks.handling_signals():
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN and not ranks.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert ranks.asked == [signal.SIGTERM]


@pytest.mark.usefixtures("in_front")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_run_that_is_interrupted_saves_where_it_is(number: int, tmp_path: Path) -> None:
    """Not at its last checkpoint; and the rest is that of a run which was left alone."""
    source, folder = corpus(tmp_path / "prose"), tmp_path / "run"
    config = tiny(source, budget={"steps": 40}, train={"save_every": 1000})
    setup, seen = open_run(config, folder), list[int]()
    with pytest.raises(KeyboardInterrupt):
        for record in carry_out(setup, folder):
            seen.append(record.step)
            os.kill(os.getpid(), number)
    assert seen == [10] and cursor_of(folder / STATE).step == 10
    assert read_events(folder / "journal.jsonl")[-1]["text"] == "asked to leave after step 10, which is saved"
    seen += [record.step for record in carry_out(open_run(config, folder), folder)]
    assert seen == [10, 20, 30, 40]
    list(carry_out(open_run(config, tmp_path / "alone"), tmp_path / "alone"))
    assert read_record(folder)["loss"] == read_record(tmp_path / "alone")["loss"]


def test_ranks_that_do_not_meet_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(0, 2, free_port()).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"the ranks did not find each other .*GLOO_SOCKET_IFNAME"), joined(1.0):
        pass


def test_a_look_at_some_shards_tells_other_data(tmp_path: Path) -> None:
    source = corpus(tmp_path / "prose")
    made = prepare(str(source), Bytes(), tmp_path / "made", shard_tokens=200)
    before = spot(made)
    assert spot(prepare(str(source), Bytes(), tmp_path / "again", shard_tokens=200)) == before
    shard = made.split("train").shards[0].path
    whole = shard.read_bytes()
    shard.write_bytes(bytes(2) + whole[2:])
    assert spot(made) != before
    shard.unlink()
    with pytest.raises(OSError, match="No such file"):
        spot(made)
