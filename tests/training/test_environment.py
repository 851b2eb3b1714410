"""The environment is input: what says who is who among ranks is whole, or refused by name; alone is alone."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from redraft.errors import UserError
from redraft.training.distributed import environment
from redraft.training.distributed.environment import NAMES, Told, local_rank, told

WHOLE = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
WHOLE |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def test_what_torchrun_says_is_read() -> None:
    assert told(WHOLE) == Told(1, 4, 1, 2, "localhost:29500")
    assert local_rank(WHOLE) == 1 and local_rank({}) is None and local_rank({"LOCAL_RANK": ""}) is None


@pytest.mark.parametrize("kept", [some for n in range(7) for some in itertools.combinations(NAMES, n)])
@pytest.mark.parametrize("left", ["absent", "empty"])
def test_a_part_of_a_world_is_alone_or_refused_with_what_is_set_and_how_to_run(
    kept: tuple[str, ...], left: str
) -> None:
    """Over every subset: never another exception, never ranks that are waited for in vain."""
    given = {name: WHOLE[name] for name in kept} | ({n: "" for n in NAMES if n not in kept} if left == "empty" else {})
    needed = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    if needed <= set(kept):
        assert told(given) is not None
    elif not {"RANK", "WORLD_SIZE"} & set(kept):
        assert told(given) is None
    else:
        with pytest.raises(UserError, match=r"torchrun.*env -u") as refused:
            told(given)
        assert all(f"{name}={WHOLE[name]}" in str(refused.value) for name in kept)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "MASTER_ADDR"])
@pytest.mark.parametrize("value", ["abc", "-1", "1.5", "\u0663", "9" * 30])
def test_a_number_that_is_none_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"{name}.* is not a"):
        told(WHOLE | {name: value})


def test_a_rank_beyond_its_world_is_refused() -> None:
    with pytest.raises(UserError, match="ranks are 0 to"):
        told(WHOLE | {"RANK": "4"})


def test_a_world_of_one_needs_no_address() -> None:
    assert told({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}) is None


def test_one_place_reads_who_is_who() -> None:
    source = Path(environment.__file__).parents[1]
    readers = [path for path in source.rglob("*.py") if any(f'environ.get("{n}"' in path.read_text() for n in NAMES)]
    assert readers == []  # environment.py loops over their names


def test_a_port_in_use_gets_advice_that_fits() -> None:
    program = "from redraft.training.distributed.ranks import joined\nwith joined(5): pass"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        world = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        done = subprocess.run(
            [sys.executable, "-c", program], env=os.environ | world, capture_output=True, text=True, check=False
        )
    assert "is in use" in done.stderr and "--master-port" in done.stderr
