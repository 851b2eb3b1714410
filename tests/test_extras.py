"""What is not installed names itself: one line, the extra that brings it, status 2, before anything is written."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from redraft.cli import main
from redraft.commands.doctor import OPTIONAL

ROOT = Path(__file__).parents[1]
FIGURES, PARQUET = "pip install 'redraft[figures]'", "pip install 'redraft[parquet]'"
MODEL = Path(__file__).parent / "fixtures" / "v0.1.0" / "runs" / "ar"

MISSING = [
    ("altair", "demo --into F", FIGURES),
    ("vl_convert", "demo --into F", FIGURES),
    ("altair", "study report F", FIGURES),
    ("altair", "study report F G --into F/both.html", FIGURES),
    ("vl_convert", "task reversal --into F --figures F/figures", FIGURES),
    ("vl_convert", f"sample {MODEL} --animate a.gif", FIGURES),
    ("pyarrow", "train --into F --data table.parquet", PARQUET),
    ("pyarrow", "train --into F --data text.jsonl.zst", PARQUET),
    ("pyarrow", "study fit table.parquet", PARQUET),
    ("datasets", "train --into F --data hf:some/set --steps 1", "pip install 'redraft[hf]'"),
    ("sentencepiece", "train --into F --data text.txt --tokenizer t.model", "pip install 'redraft[hf]'"),
    ("uvicorn", f"serve {MODEL}", "pip install 'redraft[serve]'"),
    ("greenlet", f"sample {MODEL} --prompts text.txt --into F", "pip install 'redraft[serve]'"),
    ("lm_eval", f"eval {MODEL} --tasks piqa", "pip install 'redraft[harness]'"),
    ("peft", "train --into F --steps 1 --length 8 --data text.txt --train.lora.rank 2", "pip install 'redraft[lora]'"),
    ("wandb", "train --into F --data text.txt --steps 1 --track wandb", "pip install 'redraft[track]'"),
]


@pytest.mark.parametrize(("package", "command", "remedy"), MISSING, ids=[f"{m[0]}-{m[1].split()[0]}" for m in MISSING])
def test_what_is_missing_is_one_line(
    package: str, command: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)  # imports fail, and find_spec finds nothing
    monkeypatch.chdir(tmp_path)
    for name in ("table.parquet", "text.jsonl.zst", "text.txt", "t.model"):
        Path(name).write_text("so the cat sat on the mat\n" * 40)
    with pytest.raises(SystemExit) as left:
        main(command.split())
    said = capsys.readouterr().err.strip().splitlines()
    assert left.value.code == 2 and said[-1].startswith("redraft: ") and remedy in said[-1]
    assert not any(Path("F").rglob("*.safetensors")) and not Path("F/record.json").exists()


def test_every_extra_that_is_named_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {extra for _, extra in OPTIONAL.values()} <= set(extras)
    text = "".join(path.read_text() for path in (ROOT / "src" / "redraft").rglob("*.py"))
    named = {part.split("]")[0] for part in text.split("redraft[")[1:] if part[0].isalpha()}
    assert named <= set(extras)
