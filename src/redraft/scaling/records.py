"""Data points of a scaling study: one trained run each, read from a table or a study directory.

A table needs the columns params, tokens, flops and loss (nats per token), and family where it holds several; the other
fields of `Point` are read where present and every other column is ignored. Columns such as `params:6ND` and `flops:full`
hold the same run counted under other conventions. Runs that cannot be compared (counted under different conventions, cut by
different tokenizers, trained on different data) are refused, never mixed.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from redraft.errors import UserError, require
from redraft.files import lines, read_text, whereabouts

REQUIRED = ("family", "params", "tokens", "flops", "loss")
POSITIVE = ("params", "tokens", "flops", "loss", "budget", "unique_tokens", "loss_exact", "loss_tight")
NOTHING = ("", "nan", "na", "n/a", "null", "none", "-")
ERRORS = ("loss_se", "loss_exact_se", "loss_tight_se")
NUMBERS = (*POSITIVE, *ERRORS, "bits_per_byte")
TEXTS = ("family", "name", "convention", "loss_kind", "tokenizer", "data", "variant_of")
RUNS, JUDGE = "runs", "judge"  # of a study directory: the folder of runs; the arm that scores samples
COMPARABLE = ("convention", "tokenizer", "data")

BUDGET_TOLERANCE = 0.15
"""Runs without a nominal budget share one when their FLOPs are within this fraction of the cheapest among them."""

Row = tuple[str, dict[str, Any]]  # where it stands, in words; its cells


@dataclass(frozen=True)
class Count:
    """A run's size and cost under one convention."""

    params: float
    flops: float


@dataclass(frozen=True)
class Point:
    """One trained run, as a fit sees it."""

    family: str  # the label that curves are grouped by: the `arm` of a record
    params: float  # parameters, under the study's convention
    tokens: float  # training tokens
    flops: float  # training FLOPs, under the study's convention
    loss: float  # nats per token, held out
    loss_se: float | None = None  # Monte Carlo standard error of `loss`, nats per token
    budget: float | None = None  # nominal FLOPs of the IsoFLOP curve it belongs to
    seed: int | None = None
    name: str | None = None
    convention: str | None = None  # how params and FLOPs were counted
    loss_kind: str | None = None  # 'exact' or 'bound'
    bits_per_byte: float | None = None
    tokenizer: str | None = None
    data: str | None = None  # fingerprint of the training data
    variant_of: str | None = None  # the family that `family` is an arm of
    unique_tokens: float | None = None  # distinct training tokens; fewer than `tokens` where data were repeated
    loss_exact: float | None = None  # nats per token: the exact likelihood of a run whose `loss` is a bound
    loss_exact_se: float | None = None
    loss_tight: float | None = None  # nats per token: a tighter bound than `loss`
    loss_tight_se: float | None = None
    counts: Mapping[str, Count] = field(default_factory=dict, hash=False)  # by convention

    def __post_init__(self) -> None:
        for column in POSITIVE:
            value = getattr(self, column)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"column '{column}' is {value}; it must be a finite number above 0.")
        for column in ERRORS:
            value = getattr(self, column)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UserError(f"column '{column}' is {value}; it must be a finite number, 0 or more.")
        if self.budget is not None and not 0.5 < self.budget / self.flops < 2:
            raise UserError(f"column 'budget' is {self.budget:g} but 'flops' is {self.flops:g}; give both in FLOPs.")


def load_points(path: str | Path, name: str | None = None) -> list[Point]:
    """The points of a .csv, .tsv, .json, .jsonl or .parquet table, or of the `runs/*/record.json` of a study directory.

    >>> from redraft.scaling.fit import fit
    >>> mdlm = fit(load_points("published:scaling-beyond")).families["mdlm"]
    >>> round(mdlm.laws.params.exponent.value, 2)  # of the best size, N* ~ C^a; .low and .high are its 95 % interval
    0.46

    `published:NAME` is a table that ships with the package (`redraft.scaling.published`). A table without a column `family`
    is one family, called `name`, or as its file is where that is left out. Raises `UserError`, one
    sentence, for a file that cannot be read, columns that are missing, a cell that is no positive finite number (named
    by row and column), and runs that cannot be compared.
    """
    from redraft.scaling.published import published_path

    path = published_path(str(path)) or Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist{whereabouts(path)}: give a table of runs or a study directory.")
    rows = list(_study_rows(path) if path.is_dir() else table_rows(path))
    if not rows:
        raise UserError(f"{path} holds no runs.")
    rows = _named(path, rows, name)
    _require_columns(path, rows)
    points = [as_point(where, cells) for where, cells in rows]
    require_comparable(points)
    return points


def require_comparable(points: Sequence[Point]) -> None:
    """Raises `UserError` where runs differ in `COMPARABLE`, or a family repeats a run or mixes exact and bound."""
    for column in COMPARABLE:
        values = sorted({value for p in points if (value := getattr(p, column)) is not None})
        if len(values) > 1:
            raise UserError(f"runs differ in {column} ({', '.join(values)}), so they cannot be fitted together.")
    for family in sorted({p.family for p in points}):
        if len({p.loss_kind for p in points if p.family == family and p.loss_kind}) > 1:
            raise UserError(f"family '{family}' mixes exact losses and bounds: evaluate all of its runs the same way.")
    seen: set[tuple[object, ...]] = set()
    for p in points:
        key = (p.family, p.params, p.budget or p.flops, p.seed if p.seed is not None else p.loss)
        if key in seen:
            raise UserError(f"family '{p.family}' has {p.params:g} parameters at {p.flops:g} FLOPs twice: keep one.")
        seen.add(key)


def with_budgets(points: Sequence[Point]) -> list[Point]:
    """The same points, each with a nominal budget (FLOPs).

    Where any budget is missing, all are made from the FLOPs: sorted, a run further than `BUDGET_TOLERANCE` above the
    first of its group opens a new one, and the group's geometric mean is the budget.
    """
    if all(p.budget for p in points):
        return list(points)
    logs = np.log([p.flops for p in points])
    groups: list[list[int]] = []
    for i in np.argsort(logs, kind="stable").tolist():
        if not groups or logs[i] - logs[groups[-1][0]] > math.log1p(BUDGET_TOLERANCE):
            groups.append([])
        groups[-1].append(i)
    budget = {i: float(np.exp(logs[group].mean())) for group in groups for i in group}
    return [replace(p, budget=budget[i]) for i, p in enumerate(points)]


def table_rows(path: Path) -> Iterator[Row]:
    """The cells of each row of a table, as they stand, with where. Raises `UserError` for a file that cannot be read."""
    readers = {".csv": _separated, ".tsv": _separated, ".json": _json, ".jsonl": json_lines, ".parquet": _parquet}
    if path.suffix not in readers:
        raise UserError(f"{path} has no known ending: save it as {', '.join(readers)}.")
    try:
        yield from readers[path.suffix](path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}).") from error


def _separated(path: Path) -> Iterator[Row]:
    with io.StringIO(read_text(path), newline="") as file:
        table = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", skipinitialspace=True)
        try:
            _once(path.name, [name.strip() for name in table.fieldnames or ()])
            for number, cells in enumerate(table, 1):
                yield f"{path.name} row {number}", {k.strip(): v for k, v in cells.items() if k is not None}
        except csv.Error as error:
            raise UserError(f"{path} is not a table: {error}.") from error


def _json(path: Path) -> Iterator[Row]:
    try:
        rows = json.loads(read_text(path), object_pairs_hook=lambda pairs: _object(path.name, pairs))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {str(error)[:100]}.") from error
    if not isinstance(rows, list):
        raise UserError(f"{path} must hold a JSON list of runs; it holds one {type(rows).__name__}.")
    for number, cells in enumerate(rows, 1):
        yield f"{path.name} row {number}", _mapping(f"{path.name} row {number}", cells)


def json_lines(path: Path) -> Iterator[Row]:
    """The objects of a JSONL file, each with where it stands; blank lines are skipped."""
    for number, line in zip(count(1), lines(read_text(path))):
        where = f"{path.name} line {number}"
        if line.strip():
            try:
                yield where, _mapping(where, json.loads(line, object_pairs_hook=partial(_object, where)))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where} is not JSON: {str(error)[:100]}.") from error


def _object(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _once(where, [name for name, _ in pairs])
    return dict(pairs)


def _once(where: str, names: Sequence[str]) -> None:
    """`UserError` where two columns have one name: which of them is meant nobody can say."""
    if twice := [name for name, times in Counter(names).items() if name and times > 1]:
        raise UserError(f"{where} has the column {twice[0]!r} more than once: rename all but the one that is meant.")


def missing(value: Any) -> bool:
    """Whether a cell holds nothing, in any of the spellings of tables: empty, null, NaN, N/A."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and value.strip().lower() in NOTHING)


def _parquet(path: Path) -> Iterator[Row]:
    require(str(path), "parquet", "pyarrow")
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            _once(path.name, file.schema_arrow.names)
            rows = file.read().to_pylist()
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable parquet file (truncated?): {str(error).splitlines()[0]}") from error
    yield from ((f"{path.name} row {number}", cells) for number, cells in enumerate(rows, 1))


def _study_rows(path: Path) -> Iterator[Row]:
    for record in read_records(path):
        if record.get("arm") == JUDGE:
            continue
        data = record.get("data") or {}
        cells = {field: record.get(field) for field in (*NUMBERS, *TEXTS, "seed") if field in record}
        cells |= {"family": record.get("arm") or record.get("family"), "variant_of": record.get("family")}
        cells |= {"tokenizer": data.get("tokenizer"), "data": data.get("sha256")} | _recorded_counts(record)
        if data.get("tokens"):
            cells["unique_tokens"] = min(float(data["tokens"]), record.get("tokens") or math.inf)
        yield f"run {record.get('name')}", cells


def _recorded_counts(record: Mapping[str, Any]) -> dict[str, float]:
    """Cells `params:X` and `flops:X`; 6ND counts neither embedding nor head, the others all but the embedding."""
    groups, flops = record.get("parameters") or {}, record.get("flops_by_convention") or {}
    without = {name: {"embedding", "head"} if name == "6ND" else {"embedding"} for name in flops}
    sizes = {
        f"params:{name}": float(sum(n for g, n in groups.items() if g not in out)) for name, out in without.items()
    }
    return {**(sizes if groups else {}), **{f"flops:{name}": spent for name, spent in flops.items()}}


def read_records(study: str | Path) -> list[dict[str, Any]]:
    """Every `runs/*/record.json` of a study directory, ordered by path. Raises `UserError` if there are none."""
    paths = sorted((Path(study) / RUNS).glob("*/record.json"))
    if not paths:
        raise UserError(f"{study} holds no runs/*/record.json: is it a study directory, and has a run finished?")
    records = []
    for path in paths:
        try:
            records.append(_mapping(str(path), json.loads(read_text(path))))
        except ValueError as error:
            raise UserError(f"{path} is not JSON: run that one again.") from error
    return records


def _mapping(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a JSON object; it is a {type(value).__name__}.")
    return value


def _named(path: Path, rows: list[Row], name: str | None) -> list[Row]:
    """The rows, with a family where the table has no such column. `UserError` for a name that would rename families."""
    if any("family" in cells for _, cells in rows):
        if name is not None:
            raise UserError(
                f"{path} names its families in a column: leave out --name, which is for a table without one"
            )
        return rows
    return [(where, cells | {"family": name or path.stem}) for where, cells in rows]


def _require_columns(path: Path, rows: Sequence[Row]) -> None:
    found = {column for _, cells in rows for column in cells}
    absent = [column for column in REQUIRED if column not in found]
    if absent:
        raise UserError(
            f"{path} lacks column {', '.join(absent)}; it has {', '.join(sorted(map(str, found)))}. `redraft study import "
            f"{path} --into runs.csv --columns {absent[0]}=COLUMN` renames one, or sets a constant, as in family=ar."
        )


def as_point(where: str, cells: dict[str, Any]) -> Point:
    """The point of one row. Raises `UserError`, which says where, for a cell that is missing or no number."""
    try:
        values = {column: _cell(column, cells.get(column)) for column in (*NUMBERS, *TEXTS, "seed")}
        for column in REQUIRED:
            if values[column] is None:
                raise UserError(f"column '{column}' is empty.")
        return Point(**values, counts=_counts(cells, values))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _counts(cells: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Count]:
    """The run under every convention that has a filled column, `params:X` or `flops:X`; the other is as it stands."""
    found: dict[str, dict[str, float]] = {}
    for column, cell in cells.items():
        what, colon, convention = str(column).partition(":")
        if colon and what in ("params", "flops") and (number := _cell(str(column), cell)) is not None:
            if not (math.isfinite(number) and number > 0):
                raise UserError(f"column '{column}' is {number}; it must be a finite number above 0.")
            found.setdefault(convention.strip(), {})[what] = number
    counts = {
        name: Count(**{"params": values["params"], "flops": values["flops"]} | own) for name, own in found.items()
    }
    if values["convention"]:
        counts[values["convention"]] = Count(values["params"], values["flops"])
    return counts


def _cell(column: str, value: Any) -> Any:
    """The value of one cell; None where it is empty, or a column that may be is NaN. `UserError` for no number."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if column in TEXTS:
        return str(value).strip()
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
        if math.isnan(number) and column not in REQUIRED:
            return None
        if column == "seed" and not number.is_integer():
            raise ValueError
        return int(number) if column == "seed" else number
    except (TypeError, ValueError, OverflowError):
        kind = "an integer" if column == "seed" else "a number"
        raise UserError(f"column '{column}' is {value!r}, not {kind}.") from None


def names(points: Iterable[Point]) -> list[str]:
    """The families present, in alphabetical order."""
    return sorted({p.family for p in points})
