"""Importing runs: tables with other column names, TensorBoard folders, W&B exports.

A mapping says where each field of a point comes from: `loss=val_loss,params=n_params,family=ar`. On the right stands a
column (a tag, a metric), or where there is none of that name a constant; `run=REGEX` reads fields from the name of a run
with named groups, as in run=(?P<family>[a-z]+)-(?P<params>[0-9.e]+). A .toml or .json file may hold the mapping instead.
Where one of params, tokens and flops is missing it is derived from C = 6 N D, and that is said.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from redraft.errors import UserError, unknown
from redraft.files import make_folder, read_text, whereabouts, write_csv
from redraft.scaling.records import NUMBERS, REQUIRED, TEXTS, Row, as_point, missing, table_rows

FIELDS = (*TEXTS, *NUMBERS, "seed")
FROM_NAME = "run"  # the key of a mapping that holds a regular expression over names of runs
TAKES = ("last", "min")
CHINCHILLA = {"params": "Model Size", "flops": "Training FLOP", "loss": "loss"}  # Besiroglu et al., arXiv:2404.10102
_STEPS = ("_step", "Step", "step")
_EVENTS = "events.out.tfevents.*"


@dataclass(frozen=True)
class Imported:
    """Rows under the names of `records.Point`, and what was assumed to get them."""

    rows: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]


def import_records(
    source: str | Path, columns: str | Mapping[str, Any] | None = None, *, take: str = "last"
) -> Imported:
    """The runs of a table, a history export of W&B (.csv, .jsonl) or a folder of TensorBoard events.

    `take`: the loss of a history is its 'last' or its 'min'. Raises `UserError`, one sentence, for what cannot be read or
    mapped.
    """
    if take not in TAKES:
        raise unknown("choice of a history's loss", take, TAKES)
    path = Path(source)
    if not path.exists():
        raise UserError(
            f"{path} does not exist{whereabouts(path)}: give a table, a history export or a folder of TensorBoard events."
        )
    mapping = dict(columns) if isinstance(columns, Mapping) else read_columns(columns or "")
    rows = list(_events(path, mapping, take) if path.is_dir() else _rows(path, mapping, take))
    if not rows:
        raise UserError(f"{path} holds no runs.")
    if not mapping and all(name in rows[0][1] for name in CHINCHILLA.values()):
        mapping = {"family": "ar", **CHINCHILLA}
    found = {str(column) for _, cells in rows for column in cells}
    table = [(where, *_filled(where, _mapped(where, cells, mapping, found))) for where, cells in rows]
    for where, cells, _ in table:
        as_point(where, dict(cells))
    return Imported(tuple(cells for _, cells, _ in table), tuple(sorted({note for *_, note in table if note})))


def import_into(source: str | Path, into: str | Path, columns: str | None = None, *, take: str = "last") -> list[str]:
    """Write the runs of `import_records` as a .csv and say so, a sentence for each thing assumed. The verb's work."""
    target = Path(into)
    if target.suffix != ".csv":
        raise UserError(f"{target} must end in .csv: that is what import writes.")
    found = import_records(source, columns, take=take)
    names = [name for name in FIELDS if any(row.get(name) is not None for row in found.rows)]
    names += sorted({name for row in found.rows for name in row if ":" in name})
    make_folder(target.parent)
    write_csv(target, found.rows, names)
    families = sorted({str(row["family"]) for row in found.rows})
    return [f"{len(found.rows)} runs of {', '.join(families)} into {target}.", *found.notes]


def read_columns(text: str) -> dict[str, Any]:
    """The mapping of 'loss=val_loss,family=ar', or of a .toml or .json file of that name. Raises `UserError`."""
    if text.endswith((".toml", ".json")):
        return _mapping_file(Path(text))
    mapping = {}
    for part in filter(None, re.split(r",(?=[\w:+&-]+=)", text)):
        name, equals, column = part.partition("=")
        if not equals or not column:
            raise UserError(f"columns: '{part}' must be FIELD=COLUMN, as in loss=val_loss.")
        mapping[_field(name.strip())] = column.strip()
    return mapping


def _mapping_file(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path)
        table = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not {path.suffix[1:].upper()}: {error}.") from error
    if not isinstance(table, dict):
        raise UserError(f"{path} must hold a table of FIELD = COLUMN.")
    return {_field(name): column for name, column in table.items()}


def _field(name: str) -> str:
    if name not in (*FIELDS, FROM_NAME) and not re.fullmatch(r"(params|flops):.+", name):
        raise unknown("field", name, (*FIELDS, FROM_NAME))
    return name


def _mapped(where: str, cells: Mapping[str, Any], mapping: Mapping[str, Any], found: set[str]) -> dict[str, Any]:
    """The cells of a row under the fields' names: those that have them already, then those mapped."""
    row = {name: cells[name] for name in cells if name in FIELDS or re.fullmatch(r"(params|flops):.+", str(name))}
    row |= _from_name(where, str(cells.get("name", "")), mapping.get(FROM_NAME))
    for name, column in mapping.items():
        if name == FROM_NAME:
            continue
        if isinstance(column, str) and column in found:
            row[name] = cells.get(column)
        elif name in TEXTS or _is_number(column):
            row[name] = column
        else:
            raise unknown(f"column for '{name}'", str(column), found)
    return row


def _from_name(where: str, name: str, pattern: Any) -> dict[str, Any]:
    if pattern is None:
        return {}
    try:
        match = re.search(str(pattern), name)
    except re.error as error:
        raise UserError(f"columns: run={pattern} is not a regular expression: {error}.") from error
    if match is None:
        raise UserError(f"{where}: the name '{name}' does not match run={pattern}.")
    return {_field(key): value for key, value in match.groupdict().items()}


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _filled(where: str, cells: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The row with the one missing count of params, tokens and flops; and a sentence about it."""
    unknown_ones = [name for name in ("params", "tokens", "flops") if missing(cells.get(name))]
    if len(unknown_ones) != 1:
        absent = [name for name in REQUIRED if missing(cells.get(name))]
        if absent:
            raise UserError(
                f"{where} has no {', '.join(absent)}: say which column it is, as in {absent[0]}=COLUMN, or a constant, as in "
                f"family=ar (--columns)."
            )
        return cells, ""
    try:
        known = {name: float(cells[name]) for name in ("params", "tokens", "flops") if name not in unknown_ones}
    except (TypeError, ValueError):
        return cells, ""  # the point will say which cell is no number
    if not all(value > 0 for value in known.values()):
        return cells, ""
    name = unknown_ones[0]
    derived = 6 * known["params"] * known["tokens"] if name == "flops" else known["flops"] / 6
    if name != "flops":
        derived /= known["tokens" if name == "params" else "params"]
    return {**cells, name: derived}, f"{name} were not given: derived from C = 6 N D."


def _rows(path: Path, mapping: Mapping[str, Any], take: str) -> Iterator[Row]:
    rows = list(table_rows(path))
    if path.suffix == ".csv" and rows and (series := _series(rows[0][1])):
        yield from _wide_history(path, rows, series, take)
    elif rows and any(step in rows[0][1] for step in ("_step", "_runtime")):
        yield from _long_history(path, rows, mapping, take)
    else:
        yield from rows


def _series(cells: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Columns 'RUN - METRIC' of a W&B chart export, without their __MIN and __MAX; empty for any other table."""
    if not any(step in cells for step in _STEPS):
        return {}
    named = {column: column.rpartition(" - ") for column in cells if not column.endswith(("__MIN", "__MAX"))}
    return {column: (run, metric) for column, (run, dash, metric) in named.items() if dash}


def _wide_history(path: Path, rows: Sequence[Row], series: Mapping[str, tuple[str, str]], take: str) -> Iterator[Row]:
    for run in dict.fromkeys(run for run, _ in series.values()):
        metrics = {metric: column for column, (name, metric) in series.items() if name == run}
        told = {metric: _taken((c.get(column) for _, c in rows), take) for metric, column in metrics.items()}
        alone = {"loss": next(iter(told.values()))} if len(told) == 1 else {}
        yield f"{path.name} run {run}", {"name": run, **alone, **told}


def _long_history(path: Path, rows: Sequence[Row], mapping: Mapping[str, Any], take: str) -> Iterator[Row]:
    """Lines of a history, {_step, metric: value, ...}: one run, or one for each value of what `name` is mapped to."""
    key = mapping.get("name")
    by_run = sorted(rows, key=lambda row: str(row[1].get(str(key), "")))
    for name, lines in groupby(by_run, key=lambda row: str(row[1].get(str(key), ""))):
        cells = [c for _, c in lines]
        columns = dict.fromkeys(column for c in cells for column in c)
        loss = mapping.get("loss", "loss")
        told = {c: _taken((line.get(c) for line in cells), take if c == loss else "last") for c in columns}
        yield f"{path.name} run {name or path.stem}", {"name": name or path.stem, **told}


def _taken(values: Iterable[Any], take: str) -> Any:
    """The last, or the least, of the values that are there."""
    there = [value for value in values if not missing(value)]
    if not there:
        return None
    if take == "last":
        return there[-1]
    if odd := next((value for value in there if not _is_number(value)), None):
        raise UserError(f"a history's loss holds {odd!r}, which is no number: the least of it is not known.")
    return min(there, key=float)


def _events(folder: Path, mapping: Mapping[str, Any], take: str) -> Iterator[Row]:
    """One run for each folder with TensorBoard event files; its cells are the scalars' tags, its name the folder's."""
    runs = sorted({file.parent for file in folder.rglob(_EVENTS)})
    if not runs:
        raise UserError(f"{folder} holds no TensorBoard events ({_EVENTS}).")
    try:
        from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
    except ImportError as error:
        raise UserError("TensorBoard events need the package tensorboard: pip install tensorboard.") from error
    loss = mapping.get("loss", "loss")
    for run in runs:
        events = EventAccumulator(str(run), size_guidance={SCALARS: 0}).Reload()
        tags = events.Tags()["scalars"]
        told = {t: _taken((e.value for e in events.Scalars(t)), take if t == loss else "last") for t in tags}
        name = str(run.relative_to(folder)) if run != folder else folder.name
        yield f"run {name}", {"name": name, **told}
