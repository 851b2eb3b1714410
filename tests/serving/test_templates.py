"""Whose chat template a model answers by: the one asked for, its own file, that of its training, or `plain`."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from redraft.cli import main
from redraft.commands.serve import templates
from redraft.text.examples.chat import source
from tests.hub.models import folder


def told(place: Path, asked: str | None = None) -> str:
    return templates(Namespace(chat_template=asked), {"m": place})["m"]


def test_the_nearest_template_is_taken(tmp_path: Path) -> None:
    bare = folder(tmp_path / "bare", "ar", "dit")
    tuned = folder(
        tmp_path / "tuned", "ar", "dit", record={"data": {"format": "chat", "chat_template": "{{ messages }}"}}
    )
    assert told(bare) == source("plain") and told(tuned) == "{{ messages }}"
    assert told(tuned, "chatml") == source("chatml")
    (tuned / "chat_template.jinja").write_text("{{ bos_token }}")
    assert told(tuned) == "{{ bos_token }}"


def test_a_run_on_chat_keeps_its_template_and_so_does_its_export(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(60)))
    (tmp_path / "own.jinja").write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
                                        "{% if add_generation_prompt %}<assistant>{% endif %}")  # fmt: skip
    words = ["--data", str(tmp_path / "chat.jsonl"), "--data.template", str(tmp_path / "own.jinja"), "--length", "48"]
    words += ["--steps", "1", "--size", "6k", "--network.cond", "8", "--batch", "2", "--evaluate.rows", "2", "--json"]
    main(["train", "--family", "ar", "--into", str(tmp_path / "run"), *words])
    main(["export", str(tmp_path / "run"), "--to", "native", "--into", str(tmp_path / "out")])
    (tmp_path / "own.jinja").unlink()
    assert told(tmp_path / "run") == told(tmp_path / "out")
    assert told(tmp_path / "run").startswith("{% for m in messages %}<{{ m.role }}>")
