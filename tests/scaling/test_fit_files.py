"""`redraft study fit FILE --json` on tables of any origin: planted laws come back, as strict JSON, from every format."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redraft.cli import main
from redraft.scaling import fit as fitting
from redraft.scaling.records import Point
from redraft.scaling.results import Fits

LAW = {"E": 1.6, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.3}
SLOWER = 12.0  # compute that "mdm" needs for the loss of "ar"


def table(budgets: int, sizes: int, noise: float, seeds: int = 1) -> list[dict[str, Any]]:
    """IsoFLOP grids of two families about their best sizes: 6 N D FLOPs, mdm an ar of 1/12 the compute."""
    rng, rows = np.random.default_rng(0), []
    a = LAW["beta"] / (LAW["alpha"] + LAW["beta"])
    best = (LAW["alpha"] * LAW["A"] / (LAW["beta"] * LAW["B"])) ** (1 / (LAW["alpha"] + LAW["beta"]))
    for family, factor in (("ar", 1.0), ("mdm", SLOWER)):
        for flops in 1e18 * 3.0 ** np.arange(budgets):
            centre = best * (flops / factor / 6) ** a
            for params in centre * np.geomspace(0.4, 2.5, sizes):
                for _ in range(seeds):
                    tokens = flops / (6 * params)
                    loss = LAW["E"] + LAW["A"] / params ** LAW["alpha"] + LAW["B"] / (tokens / factor) ** LAW["beta"]
                    row = {"family": family, "params": params, "tokens": tokens, "flops": flops}
                    rows.append({**row, "loss": loss + noise * rng.standard_normal()})
    return rows


def write(rows: list[dict[str, Any]], path: Path) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def fitted(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    main(["study", "fit", str(path), "--json", "--resamples", "60"])
    return json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_planted_laws_come_back_from_every_format(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = fitted(write(table(5, 7, 0.0), tmp_path / f"runs{suffix}"), capsys)
    a = LAW["beta"] / (LAW["alpha"] + LAW["beta"])
    for family in ("ar", "mdm"):
        assert out["families"][family]["isoflop"]["params"]["exponent"]["value"] == pytest.approx(a, abs=0.01)
    k = out["families"]["mdm"]["multiplier"]["mean"]["value"]
    assert math.log(k) == pytest.approx(math.log(SLOWER), abs=0.15)


# Every design with noise; without any, and with seeds, the smallest, one where laws begin, and the largest.
SHAPES = [(budgets, sizes) for budgets in (1, 2, 3, 5) for sizes in (1, 3, 4)]
DESIGNS = [(*shape, 0.02, 1) for shape in SHAPES]
DESIGNS += [(*shape, *kind) for shape in ((1, 1), (3, 3), (5, 4)) for kind in ((0.0, 1), (0.02, 3))]


@pytest.mark.parametrize(("budgets", "sizes", "noise", "seeds"), DESIGNS)
def test_any_design_gives_strict_json(
    budgets: int,
    sizes: int,
    noise: float,
    seeds: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Too few budgets, sizes or seeds is said in the warnings or left null; it is never an error or a NaN. Both outputs are
    of one fit."""
    fits, fit = list[Fits](), fitting.fit

    def once(runs: list[Point], **settings: Any) -> Fits:
        fits[:] = fits or [fit(runs, **settings)]
        return fits[0]

    monkeypatch.setattr(fitting, "fit", once)
    out = fitted(write(table(budgets, sizes, noise, seeds), tmp_path / "runs.csv"), capsys)
    assert set(out["families"]) == {"ar", "mdm"}
    main(["study", "fit", str(tmp_path / "runs.csv"), "--resamples", "60"])
    assert "ar" in capsys.readouterr().out.lower()
