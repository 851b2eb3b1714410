"""Tables from elsewhere: a column once, and a cell that holds nothing holds nothing in every spelling."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from redraft.errors import UserError
from redraft.scaling.import_runs import import_records
from redraft.scaling.records import NOTHING, load_points, missing

RX = "run=(?P<family>[a-z]+)-(?P<params>[0-9e.]+)-(?P<tokens>[0-9e.]+)"
HEAD = '"Step","ar-1e7-1e9 - val/loss"\n'


@pytest.mark.parametrize("order", list(itertools.permutations(["", 3.4, 3.1])))
@pytest.mark.parametrize("spelling", ["NaN", "nan", "N/A", "NA", "null", "None", ""])
def test_what_is_missing_is_missing_wherever_it_stands(spelling: str, order: tuple[Any, ...], tmp_path: Path) -> None:
    cells = [spelling if cell == "" else cell for cell in order]
    (tmp_path / "h.csv").write_text(HEAD + "".join(f'"{i}","{cell}"\n' for i, cell in enumerate(cells)))
    there = [cell for cell in order if cell != ""]
    for take, value in (("min", 3.1), ("last", there[-1])):
        assert float(import_records(tmp_path / "h.csv", RX, take=take).rows[0]["loss"]) == value
    assert missing(spelling) and spelling.lower() in NOTHING


def test_a_history_ends_with_the_last_loss_that_was_logged(tmp_path: Path) -> None:
    rows = [{"_step": i, "val_loss": v, "family": "ar", "params": 1e7, "tokens": 1e9} for i, v in ((0, 5.0), (1, 3.1))]
    (tmp_path / "h.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in [*rows, {**rows[0], "val_loss": float("nan")}])
    )
    assert import_records(tmp_path / "h.jsonl", "loss=val_loss").rows[0]["loss"] == 3.1


def test_a_cell_that_is_no_number_is_named(tmp_path: Path) -> None:
    (tmp_path / "h.csv").write_text(HEAD + '"0","3.0"\n"1","crashed"\n')
    with pytest.raises(UserError, match="'crashed', which is no number"):
        import_records(tmp_path / "h.csv", RX, take="min")


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_two_columns_of_one_name_are_refused(kind: str, tmp_path: Path) -> None:
    path, names, cells = tmp_path / f"t.{kind}", ["family", "loss", "loss"], ["ar", 3.0, 2.0]
    if kind in ("csv", "tsv"):
        comma = "," if kind == "csv" else "\t"
        path.write_text(f"{comma.join(names)}\n{comma.join(map(str, cells))}\n")
    elif kind == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_arrays([pa.array([cell]) for cell in cells], names=names), path)
    else:
        one = '{"family": "ar", "loss": 3.0, "loss": 2.0}'
        path.write_text(f"[{one}]" if kind == "json" else f"{one}\n")
    with pytest.raises(UserError, match="'loss' more than once"):
        load_points(path)


def test_a_missing_column_says_how_to_set_a_constant(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("params,flops,loss\n1e6,6e14,3.0\n")
    with pytest.raises(UserError, match=r"--columns tokens=COLUMN.* constant, as in family=ar"):
        load_points(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("params,tokens,flops,loss\n1e6,1e8,6e14,3.0\n")
    assert load_points(tmp_path / "t.csv")[0].family == "t"  # a table of one family needs no column
    assert import_records(tmp_path / "t.csv", "family=ar").rows[0]["family"] == "ar"
