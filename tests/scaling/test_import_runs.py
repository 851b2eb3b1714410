"""Records of other origins become a table that `study fit` reads: columns, constants, histories, and what was assumed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from redraft.errors import UserError
from redraft.scaling.import_runs import import_into, import_records, read_columns
from redraft.scaling.records import load_points

EXPORT = "model,n_params,seen,spent,val_loss\nbig,2e8,4e9,4.8e18,3.1\nsmall,1e8,4e9,2.4e18,3.4\n"
COLUMNS = "family=ar,params=n_params,tokens=seen,flops=spent,loss=val_loss,name=model"


def write(folder: Path, text: str, name: str = "export.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_columns_and_constants_are_mapped(tmp_path: Path) -> None:
    said = import_into(write(tmp_path, EXPORT), tmp_path / "runs.csv", COLUMNS)
    points = load_points(tmp_path / "runs.csv")
    assert said == [f"2 runs of ar into {tmp_path / 'runs.csv'}."]
    assert [(p.family, p.name, p.params, p.loss) for p in points] == [
        ("ar", "big", 2e8, 3.1),
        ("ar", "small", 1e8, 3.4),
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("map.toml", 'family = "ar"\nparams = "n_params"\ntokens = "seen"\nflops = "spent"\nloss = "val_loss"\n'),
        ("map.json", json.dumps(read_columns("family=ar,params=n_params,tokens=seen,flops=spent,loss=val_loss"))),
    ],
)
def test_a_mapping_may_stand_in_a_file(name: str, text: str, tmp_path: Path) -> None:
    rows = import_records(write(tmp_path, EXPORT), str(write(tmp_path, text, name))).rows
    assert [row["loss"] for row in rows] == ["3.1", "3.4"]


@pytest.mark.parametrize("absent", ["params", "tokens", "flops"])
def test_a_missing_count_is_derived_and_said(absent: str, tmp_path: Path) -> None:
    mapping = ",".join(part for part in COLUMNS.split(",") if not part.startswith(absent))
    found = import_records(write(tmp_path, EXPORT), mapping)
    row = found.rows[0]
    assert 6 * float(row["params"]) * float(row["tokens"]) == pytest.approx(float(row["flops"]))
    assert found.notes == (f"{absent} were not given: derived from C = 6 N D.",)


def test_points_in_the_form_of_chinchilla_need_no_mapping(tmp_path: Path) -> None:
    table = write(tmp_path, "Model Size,Training Tokens,Training FLOP,loss\n7.3e7,ignored,1.1e19,3.02\n")
    found = import_records(table)
    assert found.rows[0]["family"] == "ar" and found.rows[0]["tokens"] == pytest.approx(1.1e19 / 6 / 7.3e7)
    assert "C = 6 N D" in found.notes[0]


HISTORY = (
    '"Step","ar-1e8 - val/loss","ar-1e8 - val/loss__MIN","ar-1e8 - val/loss__MAX","mdlm-2e8 - val/loss"\n'
    '"1","4.0","3.9","4.1","5.0"\n"2","3.1","3.1","3.1","4.2"\n"3","3.3","3.3","3.3",""\n'
)


@pytest.mark.parametrize(("take", "losses"), [("last", ["3.3", "4.2"]), ("min", ["3.1", "4.2"])])
def test_a_chart_export_gives_one_run_for_each_series(take: str, losses: list[str], tmp_path: Path) -> None:
    mapping = r"loss=val/loss,flops=1e18,run=(?P<family>\w+)-(?P<params>[0-9.e]+)"
    rows = import_records(write(tmp_path, HISTORY), mapping, take=take).rows
    assert [row["loss"] for row in rows] == losses
    assert [(row["family"], row["params"]) for row in rows] == [("ar", "1e8"), ("mdlm", "2e8")]


def test_lines_of_a_history_give_one_run(tmp_path: Path) -> None:
    lines = [{"_step": i, "val/loss": loss, "tokens": 1e9 * i} for i, loss in enumerate((4.0, 3.0, 3.5), 1)]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, {"_step": 4, "lr": 0.1}])
    mapping = "loss=val/loss,family=ar,params=1e8"
    for take, loss in (("last", 3.5), ("min", 3.0)):
        row = import_records(write(tmp_path, text, "run.jsonl"), mapping, take=take).rows[0]
        assert (row["loss"], row["tokens"], row["flops"]) == (loss, 3e9, pytest.approx(1.8e18))


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ("los=val_loss", "unknown field 'los'. Did you mean 'loss'"),
        (COLUMNS.replace("n_params", "n_param"), "unknown column for 'params' 'n_param'. Did you mean 'n_params'"),
        ("family=ar", "has no params, tokens, flops, loss: say which column it is, as in params=COLUMN"),
        ("family", "'family' must be FIELD=COLUMN"),
        (COLUMNS.replace("loss=val_loss", "loss=model"), "column 'loss' is 'big', not a number"),
        (COLUMNS + ",run=(", "is not a regular expression"),
        (COLUMNS + ",run=(?P<size>x)", "does not match"),
        ("none.toml", "no such file: none.toml"),
    ],
)
def test_a_mistake_is_one_clear_line(mapping: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        import_records(write(tmp_path, EXPORT), mapping)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_wrong_sources_and_targets_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        import_records(tmp_path / "none.csv")
    with pytest.raises(UserError, match="no TensorBoard events"):
        import_records(tmp_path)
    with pytest.raises(UserError, match=r"must end in \.csv"):
        import_into(write(tmp_path, EXPORT), tmp_path / "runs.xlsx", COLUMNS)
    with pytest.raises(UserError, match="unknown choice"):
        import_records(write(tmp_path, EXPORT), COLUMNS, take="best")


def test_events_without_tensorboard_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "events.out.tfevents.1").touch()
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_accumulator", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        import_records(tmp_path)


def test_events_of_tensorboard_give_one_run_for_each_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    def scalar(tag: str, value: float) -> Any:
        return Summary(value=[Summary.Value(tag=tag, simple_value=value)])

    for name in ("ar-1e8", "mdlm-2e8"):
        writer = EventFileWriter(str(tmp_path / name))
        for step, loss in enumerate((4.0, 3.0, 3.5)):
            writer.add_event(Event(step=step, wall_time=step, summary=scalar("val/loss", loss)))
        writer.add_event(Event(step=3, wall_time=3, summary=scalar("tokens", 4e9)))
        writer.close()
    mapping = r"loss=val/loss,tokens=tokens,run=(?P<family>\w+)-(?P<params>[0-9.e]+)"
    rows = import_records(tmp_path, mapping, take="min").rows
    assert [(row["family"], row["loss"], row["tokens"]) for row in rows] == [("ar", 3.0, 4e9), ("mdlm", 3.0, 4e9)]
