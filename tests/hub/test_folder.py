"""A model folder reads back as it was written, in one file or in shards; a damaged one is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from redraft.errors import UserError
from redraft.hub import shards
from redraft.hub.folder import ModelConfig, load_model, save_model
from redraft.hub.shards import shards_of, weight_files, write_weights
from redraft.network.init import initialised
from redraft.network.sizes import Shape
from redraft.text.tokenizers.tokenizer import Bytes

SHAPE = Shape("dit", 2, 2, 32, 64, 257, 8, theta=5000.0, clock=0.2)
CPU = torch.device("cpu")


def saved(folder: Path) -> dict[str, torch.Tensor]:
    network = initialised(SHAPE, 0)
    save_model(folder, ModelConfig("gidd", {"uniform": 0.2}, SHAPE, 16, Bytes.fingerprint, {}), network, Bytes())
    return dict(network.named_parameters())


@pytest.mark.parametrize("limit", [None, 20_000, 1])
def test_weights_read_back_whatever_the_shards(
    limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit:
        monkeypatch.setattr(shards, "SHARD_BYTES", limit)
    given = saved(tmp_path / "m")
    files = weight_files(tmp_path / "m")
    assert (len(files) > 1) == bool(limit)
    config, network, _ = load_model(tmp_path / "m", CPU)
    assert config.shape == SHAPE
    assert all(torch.equal(given[name], p) for name, p in network.named_parameters())


def test_shards_keep_the_order_and_pass_the_limit_only_for_a_tensor_alone() -> None:
    sizes = {"a": 4, "b": 4, "c": 3, "d": 20, "e": 1}
    assert shards_of(sizes, 8) == [["a", "b"], ["c"], ["d"], ["e"]]


def test_half_precision_is_float32_in_hand(tmp_path: Path) -> None:
    given = saved(tmp_path / "m")
    write_weights(tmp_path / "m", {name: p.bfloat16() for name, p in given.items()})
    _, network, _ = load_model(tmp_path / "m", CPU)
    for name, p in network.named_parameters():
        assert p.dtype == torch.float32 and torch.equal(p, given[name].bfloat16().float())


def test_folder_of_before_reads_as_it_did(tmp_path: Path) -> None:
    """config.json without the newer settings of a shape."""
    saved(tmp_path / "m")
    table = json.loads((tmp_path / "m" / "config.json").read_text())
    del table["shape"]["theta"], table["shape"]["clock"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(table))
    shape = load_model(tmp_path / "m", CPU)[0].shape
    assert (shape.theta, shape.clock) == (10000.0, None)


def test_damaged_folders_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 20_000)
    folder = tmp_path / "m"
    saved(folder)
    last = weight_files(folder)[-1]
    whole = last.read_bytes()
    last.write_bytes(whole[:-10])
    with pytest.raises(UserError, match=last.name):
        load_model(folder, CPU)
    last.unlink()
    with pytest.raises(UserError, match=f"lacks its shard {last.name}"):
        load_model(folder, CPU)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"embedding": "../elsewhere.safetensors"}}))
    with pytest.raises(UserError, match="files beside it"):
        load_model(folder, CPU)
    index.unlink()
    with pytest.raises(UserError, match="holds no weights"):
        load_model(folder, CPU)


def test_a_tensor_too_few_or_too_many_is_named(tmp_path: Path) -> None:
    given = saved(tmp_path / "m")
    write_weights(tmp_path / "m", {k: v for k, v in given.items() if k != "norm.weight"})
    with pytest.raises(UserError, match=r"Missing.*norm[.]weight"):
        load_model(tmp_path / "m", CPU)
    write_weights(tmp_path / "m", {**given, "stranger": torch.ones(1)})
    with pytest.raises(UserError, match="stranger"):
        load_model(tmp_path / "m", CPU)
