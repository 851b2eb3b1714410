"""The command line: what a user mistypes or lacks is one clear line, exit status 2, and nothing half-written."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import redraft
from redraft.cli import main
from redraft.families.base import full_view
from tests.rounding import logits_apart
from tests.small_runs import corpus

SMALL = ["--network.depth", "1", "--network.heads", "1", "--network.width", "16", "--network.cond", "8"]
SMALL += ["--length", "16", "--batch", "4", "--train.threads", "1", "--evaluate.rows", "4", "--evaluate.draws", "2"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("prose"))


@pytest.fixture(scope="module")
def trained(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "mdlm"
    main(["train", "--into", str(folder), "--data", str(source), "--steps", "6", "--json", *SMALL])
    return folder


def complaint(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error of a command that must exit with status 2."""
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    shown = capsys.readouterr()
    assert stopped.value.code == 2
    lines = [line for line in shown.err.splitlines() if line.startswith("redraft: ")]
    assert len(lines) == 1 and shown.err.rstrip().splitlines()[-1] == lines[0], shown.err
    assert "Traceback" not in shown.err
    return lines[0]


MISTAKES = [
    (["trian"], "Did you mean 'train'"),
    (["plan", "--famly", "duo", "--steps", "1"], "Did you mean '--family'"),
    (["plan", "--gpu", "8"], "Did you mean '--gpus'"),
    (["plan", "--steps", "1", "--hardware", "h1000"], "unknown hardware 'h1000'"),
    (["plan", "demo", "--family", "ar"], "the arms of a study say that"),
    (["plan", "--flops", "inf"], "budget.flops: Input should be a finite number"),
    (["train", "--into", "never", "--steps", "1", "--track", "foo"], "unknown tracker 'foo'"),
    (["train", "--into", "never", "--steps", "1", "--timeout", "-5"], "--timeout must be a number above 0"),
    (["train", "--into", "never", "--steps", "1", "--batch", "1000000"], "raise train.accumulate"),
    (["study", "run", "smdm-1028M", "--into", "never"], "no recipe of a study"),
    (["task", "arithmetic", "--into", "never", "--digits", "0"], "--digits must be at least 1"),
    (["plan", "--family", "doo", "--steps", "1"], "Did you mean 'duo'"),
    (["plan", "--family", "mdlm", "--family.objectiv", "nelbo", "--steps", "1"], "Did you mean 'objective'"),
    (["plan", "--size", "3Q", "--steps", "1"], "unknown size '3Q'"),
    (["plan", "--size", "10", "--steps", "1"], "too small"),
    (["plan", "--train.lrr", "1", "--steps", "1"], "Did you mean 'train.lr'"),
    (["plan", "--block", "lama", "--steps", "1"], "network.block"),
    (
        ["plan", "--network.width", "15", "--network.heads", "2", "--network.depth", "1", "--steps", "1"],
        "even multiple",
    ),
    (["plan", "1.7B-ar-phase1", "--gpus", "127"], "must divide the 127 ranks"),
    (["plan", "--flops", "10"], "budget of 10 FLOPs (blocks+head) is too small"),
    (["plan", "--flops", "1e9"], "lower train.batch, or give a smaller --size (it is 3M)"),
    (["plan", "--tokens", "10"], "budget of 10 tokens is too small"),
    (["plan", "--tokens", "10", "--steps", "3"], "one of flops, tokens or steps"),
    (["plan"], "no budget"),
    (["plan", "--convention", "7ND", "--flops", "1e12"], "6ND"),
    (["plan", "demoo"], "Did you mean 'demo'"),
    (["plan", "absent.toml"], "no such recipe: absent.toml"),
    (["plan", "--batch", "0", "--steps", "1"], "train.batch"),
    (["plan", "--steps"], "needs a value"),
    (["plan", "--tokenizer", "absent.json", "--steps", "1"], "absent.json"),
    (["list", "famlies"], "Did you mean 'families'"),
    (["study", "rum", "demo"], "Did you mean 'run'"),
    (["study", "status", "absent"], "absent"),
    (["sample", "absent"], "no such model folder: absent"),
    (["eval", "absent"], "no such model folder: absent"),
    (["study", "fit", "absent.csv"], "absent.csv"),
]


@pytest.mark.parametrize(
    ("arguments", "says"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_mistakes_are_named_with_what_would_work(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in complaint(arguments, capsys)


@pytest.mark.parametrize("words", [["--flops", "1e6", "--size", "200k"], ["--tokens", "10"]])
def test_a_smaller_size_is_named_only_where_it_helps_and_none_was_given(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert complaint(["plan", *words], capsys).rstrip().endswith("; lower train.batch")


def test_bad_data_is_named_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "short.txt").write_text("two\nlines\n")
    (tmp_path / "other.jsonl").write_text('{"story": "x"}\n' * 50)
    cases = {
        "absent.txt": "absent.txt",
        "empty.txt": "empty",
        "binary.txt": "binary.txt",
        "short.txt": "too few",
        "other.jsonl": "story",
    }
    for name, says in cases.items():
        into = tmp_path / "run"
        line = complaint(["train", "--into", into, "--data", tmp_path / name, "--steps", "2", *SMALL], capsys)
        assert says in line and not into.exists()


def test_sampler_that_does_not_fit_says_what_would(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Try: ancestral" in complaint(["sample", trained, "--sampler", "left_to_right"], capsys)
    assert "Did you mean 'ancestral'" in complaint(["sample", trained, "--sampler", "ancestrl"], capsys)
    assert "--top-p must be a number above 0" in complaint(["sample", trained, "--top-p", "0"], capsys)
    assert "steps must be at least 1" in complaint(["sample", trained, "--steps", "0"], capsys)
    assert "length more than prompt" in complaint(["sample", trained, "--prompt", "x" * 99, "--length", "10"], capsys)


def test_folder_of_another_run_is_refused(trained: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "record.json").read_bytes()
    arguments = ["train", "--into", trained, "--data", source, "--steps", "7", *SMALL]
    assert "holds another run (its budget.steps is 6, not 7)" in complaint(arguments, capsys)
    assert (trained / "record.json").read_bytes() == before


def test_vocabulary_mismatch_between_data_and_model_is_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Packed token files with ids that the model's tokenizer does not have."""
    header = b"LITPKDS" + struct.pack("<QBQ", 1, 8, 4096)
    for name in ("train_a.bin", "validation_a.bin"):
        (tmp_path / name).write_bytes(header + np.full(4096, 900, "<u2").tobytes())
    line = complaint(["eval", trained, "--data", tmp_path], capsys)
    assert "900" in line and "257" in line


def test_text_that_was_trained_on_is_noted(
    source: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However it is spelled; other text is not."""
    other, again = tmp_path / "other.txt", tmp_path / "link.txt"
    other.write_text("Text that nobody has read, long enough for a row or two.\n" * 4)
    again.symlink_to(source)
    for data, noted in ((again, True), (other, False)):
        main(["eval", str(trained), "--data", str(data), "--rows", "2", "--draws", "1"])
        assert ("the model was trained on it" in capsys.readouterr().err) is noted


def test_damaged_models_are_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, spoil in enumerate((b"", b"\x80\x04K\x01.", (trained / "model.safetensors").read_bytes()[:-100])):
        folder = tmp_path / str(number)
        shutil.copytree(trained, folder)
        (folder / "model.safetensors").write_bytes(spoil)
        assert "does not hold this model's weights" in complaint(["sample", folder], capsys)


def test_no_space_left_is_one_line_and_leaves_no_half_file(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system of 300 kB that was thought to be larger: the checkpoint does not fit."""
    monkeypatch.setattr("redraft.runs.claim._check_space", lambda setup, folder: None)
    place = tmp_path / "tiny"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs takes root")
    try:
        arguments = [
            "train",
            "--into",
            place / "run",
            "--data",
            source,
            "--steps",
            "40",
            "--train.save_every",
            "5",
            *SMALL,
        ]
        line = complaint([*arguments, "--network.width", "64"], capsys)
        assert "no space is left in" in line and "run" in line
        assert not [p for p in (place / "run").iterdir() if ".tmp-" in p.name or p.suffix == ".safetensors"]
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_machines_get_strict_json(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = (
        ["list", "--json"],
        ["plan", "demo", "--json", "--rate", "1e10"],
        ["plan", "--flops", "1e12", "--json"],
        ["sample", str(trained), "-n", "2", "--json"],
        ["eval", str(trained), "--rows", "4", "--json"],
        ["doctor", "--json"],
        ["train", "--into", str(trained), "--json", *_same(trained)],
    )
    for arguments in commands:
        main(arguments)
        json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


def _same(trained: Path) -> list[str]:
    """The command that a finished run answers at once, with its record."""
    source = json.loads((trained / "record.json").read_text())["data"]["source"]
    return ["--data", source, "--steps", "6", *SMALL]


def test_a_model_multiplies_in_bfloat16_where_it_is_asked_to(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bound moves by the format's rounding and no more, for logits as large as those of any tokens."""
    found = []
    for precision in ("float32", "bfloat16"):
        main(["eval", str(trained), "--precision", precision, "--json"])
        found.append(json.loads(capsys.readouterr().out))
    assert [table["precision"] for table in found] == ["float32", "bfloat16"]
    network = redraft.load(trained).network
    tokens = torch.randint(0, network.shape.vocab + 1, (256, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        largest = float(network.head(network.trunk(full_view(tokens))).abs().max())
    assert 0 < abs(found[0]["nats"] - found[1]["nats"]) < 2 * logits_apart(network.shape, 16, largest, torch.bfloat16)


def test_module_and_command_are_the_same_program() -> None:
    done = subprocess.run([sys.executable, "-m", "redraft", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == redraft.__version__


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--into", "x", "--seed", "3", "--seed.x", "4"], "--seed.x: seed was given as 3"),
        (["train", "--into", "x", "--nodes", "2", "--flops", "1e10"], "for --launcher slurm"),
        (["eval", "RUN", "--tasks", ","], "--tasks names no task"),
        (["eval", "RUN", "--stride", "0"], "--stride must be at least 1"),
        (["sample", "RUN", "--device", "foo"], "unknown device 'foo'"),
        (["sample", "RUN", "--temperature", "nan"], "temperature must be a number"),
        (["sample", "RUN", "--length", "0"], "--length must be at least 1"),
        (["sample", "RUN", "--stream"], "unknown flag of `redraft sample`: '--stream'"),
        (["plan", "demo", "--like", "LIKE"], "holds no record of a run"),
        (["sample", "RUN", "--precision", "half"], "unknown precision 'half'"),
        (["eval", "RUN", "--tasks", "piqa", "--against", "BAD"], "holds no scores of tasks"),
        (["eval", "RUN", "--out", "FOLDER"], "cannot be a file"),
        (["eval", "RUN", "--out", "BAD/deeper/x.json"], "cannot be a file"),
    ],
)
def test_mistakes_are_told_before_anything_is_done(
    arguments: list[str], said: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.json").write_text("[1]")
    (tmp_path / "record.json").write_text("{}")
    names = {"RUN": str(trained), "BAD": str(tmp_path / "bad.json"), "FOLDER": str(tmp_path), "LIKE": str(tmp_path)}
    given = [names.get(word, word.replace("BAD/", f"{tmp_path}/bad.json/")) for word in arguments]
    assert said in complaint(given, capsys)
