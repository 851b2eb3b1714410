"""Tables of runs: every format gives the same points, every mistake one clear line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from redraft.errors import UserError
from redraft.scaling.fit import fit
from redraft.scaling.records import load_points, with_budgets
from tests.planted import planted_points

HEADER = "family,params,tokens,flops,loss,extra\n"
GOOD = "ar,1e6,2e7,1.2e14,3.1,x\n"


def table(folder: Path, text: str, name: str = "runs.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_every_format_gives_the_same_points(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"family": "ar", "params": n, "tokens": 2e7, "flops": 1.2e14, "loss": 3.1, "seed": 1} for n in (1e6, 2e6)]
    lines = ["\t".join(rows[0]), *("\t".join(str(v) for v in row.values()) for row in rows)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    paths = [
        tmp_path / "a.parquet",
        table(tmp_path, json.dumps(rows), "a.json"),
        table(tmp_path, "\n\n".join(map(json.dumps, rows)), "a.jsonl"),
        table(tmp_path, "\n".join(lines), "a.tsv"),
        table(tmp_path, "\ufeff" + "\n".join(lines).replace("\t", ", "), "a.csv"),
    ]
    first, *others = map(load_points, paths)
    assert len(first) == 2 and first[0].seed == 1
    assert all(points == first for points in others)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no runs"),
        (HEADER, "holds no runs"),
        ("family,params\nar,1e6\n", "lacks column tokens, flops, loss; it has family, params"),
        (HEADER + GOOD + "ar,1e6,many,1.2e14,3.1,x\n", "row 2: column 'tokens' is 'many', not a number"),
        (
            HEADER + GOOD + "ar,1e6,2e7,1.2e14,nan,x\n",
            "row 2: column 'loss' is nan; it must be a finite number above 0",
        ),
        (HEADER + "ar,1e6,2e7,-3,3.1,x\n", "row 1: column 'flops' is -3.0; it must be"),
        (HEADER + "ar,1e6,2e7,1.2e14,,x\n", "row 1: column 'loss' is empty"),
        (HEADER + "ar,1e6\n", "row 1: column 'tokens' is empty"),
        (HEADER + GOOD + GOOD, "twice"),
        (
            "family,params,tokens,flops,loss,budget\nar,1e6,2e7,1.2e14,3,6\n",
            "column 'budget' is 6 but 'flops' is 1.2e+14",
        ),
        ("family,params,tokens,flops,loss,convention\nar,1,2,3,4,6ND\nmdlm,1,2,3,4,full\n", "differ in convention"),
        ("family,params,tokens,flops,loss,tokenizer\nar,1,2,3,4,bytes\nmdlm,1,2,3,4,bpe\n", "differ in tokenizer"),
        ("family,params,tokens,flops,loss,loss_kind\nar,1,2,3,4,exact\nar,2,2,3,4,bound\n", "mixes exact losses and"),
    ],
)
def test_a_mistake_in_a_table_is_one_clear_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        load_points(table(tmp_path, text))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.parquet", b"PAR1 and then nothing", "not a readable parquet file"),
        ("a.json", b"{}", "must hold a JSON list"),
        ("a.json", b"[1]", "row 1 must be a JSON object"),
        ("a.json", b"[{", "is not JSON"),
        ("a.jsonl", b'{"family": "ar"\n', "line 1 is not JSON"),
        ("a.jsonl", b'{"family": "ar", "params": true, "tokens": 1, "flops": 1, "loss": 1}', "'params' is True, not a"),
        ("a.xlsx", b"", "has no known ending"),
        ("a.csv", b"family\xff", "is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        load_points(tmp_path / name)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_missing_paths_and_empty_studies_are_user_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(UserError):
            load_points(path)


def test_a_study_directory_gives_its_arms_and_not_its_judge(study: Path) -> None:
    points = load_points(study)
    assert {p.family for p in points} == {"ar", "mdlm", "duo", "esolm", "mdlm-nelbo"}
    assert {p.variant_of for p in points if p.family == "mdlm-nelbo"} == {"mdlm"}
    assert {p.convention for p in points} == {"blocks+head"}


def test_empty_cells_may_be_nan_and_seeds_may_be_written_as_numbers(tmp_path: Path) -> None:
    """As data frames write them."""
    text = "family,params,tokens,flops,loss,seed,loss_se,loss_kind\nar,1e6,2e7,1.2e14,3.1,1.0,nan,\n"
    (point,) = load_points(table(tmp_path, text))
    assert (point.seed, point.loss_se, point.loss_kind) == (1, None, None)
    with pytest.raises(UserError, match=r"column 'seed' is '1.5', not an integer"):
        load_points(table(tmp_path, text.replace("1.0", "1.5")))


def test_counts_under_other_conventions_are_read(tmp_path: Path) -> None:
    text = "family,params,tokens,flops,loss,convention,params:full,flops:full,flops:half\n"
    text += "ar,1e6,2e7,1.2e14,3.1,6ND,2e6,3e14,6e13\n"
    (point,) = load_points(table(tmp_path, text))
    told = {name: (count.params, count.flops) for name, count in point.counts.items()}
    assert told == {"6ND": (1e6, 1.2e14), "full": (2e6, 3e14), "half": (1e6, 6e13)}
    with pytest.raises(UserError, match=r"column 'params:full' is -2000000.0; it must be a finite number above 0"):
        load_points(table(tmp_path, text.replace("2e6", "-2e6")))


def test_a_study_directory_counts_its_runs_under_every_convention(study: Path) -> None:
    for p in load_points(study):
        assert set(p.counts) == {"6ND", "blocks+head"}
        assert p.counts["blocks+head"].params == p.params and p.counts["6ND"].flops == p.budget


def test_budgets_cluster_within_fifteen_percent() -> None:
    flops = [1e18, 1.1e18, 1.3e18, 9e18, 9.9e18]
    points = [replace(p, flops=c, budget=None) for p, c in zip(planted_points(), flops)]
    budgets = [p.budget for p in with_budgets(points)]
    assert len(set(budgets)) == 3 and budgets[0] == budgets[1] != budgets[2] and budgets[3] == budgets[4]


def test_fit_refuses_what_it_cannot_do() -> None:
    with pytest.raises(UserError, match="no runs"):
        fit([])
    with pytest.raises(UserError, match="Did you mean 'mdlm'"):
        fit(planted_points(), reference="mdml")
    with pytest.raises(UserError, match="too few"):
        fit(planted_points(), resamples=3)
