"""Checkpoints that are not read say what makes them readable, and what a configuration and a file disagree on is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from redraft.cli import main
from redraft.errors import UserError
from redraft.hub.convert.sources import open_source

DEPTHLESS = "model.transformer."


def test_a_distributed_checkpoint_names_the_command_that_makes_one_file(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(b"\x80\x04N.")
    torch.save({"epoch": 1}, tmp_path / "meta.pt")
    with pytest.raises(UserError, match=r"DCP.*dcp_to_torch"):
        open_source(tmp_path)


def test_types_that_torch_rebuilds_in_other_ways_say_what_to_save(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(4).to(torch.float8_e4m3fn)}}, tmp_path / "f.pth")
    with pytest.raises(UserError, match=r"float8.*bfloat16"):
        open_source(tmp_path / "f.pth")


@pytest.mark.parametrize("head", [False, True])
def test_which_head_is_taken_is_said(head: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    width, hidden, vocab = 16, 64, 260
    draw = lambda *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.02
    block = f"{DEPTHLESS}blocks.0."
    tensors = {f"{DEPTHLESS}wte.weight": draw(vocab, width), f"{DEPTHLESS}ln_f.weight": torch.ones(width)}
    tensors |= {f"{block}{name}_norm.weight": torch.ones(width) for name in ("attn", "ff")}
    tensors |= {f"{block}{name}.weight": draw(width, width) for name in ("q_proj", "k_proj", "v_proj", "attn_out")}
    tensors |= {f"{block}{name}.weight": draw(hidden, width) for name in ("ff_proj", "up_proj")}
    tensors |= {f"{block}ff_out.weight": draw(width, hidden)}
    tensors |= {f"{DEPTHLESS}ff_out.weight": draw(vocab, width)} if head else {}
    config = {"model_type": "llada", "n_heads": 2, "d_model": width, "n_layers": 1, "weight_tying": True}
    config |= {"mask_token_id": 258, "rope_theta": 10000.0, "vocab_size": vocab}
    (tmp_path / "m").mkdir()
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    main(["convert", str(tmp_path / "m"), str(tmp_path / "out"), "--tokenizer", "bytes"])
    said = capsys.readouterr().out
    assert ("the file holds a head: that is taken" in said) == head and "tied" in said
