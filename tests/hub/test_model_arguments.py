"""What the Python object refuses, in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from redraft.errors import UserError
from redraft.families.base import build
from redraft.hub.model import Model
from redraft.network.init import initialised
from redraft.network.sizes import Shape
from redraft.text.tokenizers.tokenizer import Bytes

MODEL = Model(build("duo", {}, 257), initialised(Shape("dit", 1, 1, 8, 32, 257, 8), 0), Bytes(), 8, {})


@pytest.mark.parametrize("text", [5, None, b"bytes", ["a", "b"]])
def test_a_text_is_a_str(text: Any) -> None:
    with pytest.raises(UserError, match="a text is a str, got"):
        MODEL.score([text])
    with pytest.raises(UserError, match="a text is a str, got"):
        MODEL.sample(text)


@pytest.mark.parametrize("t", [-0.1, 2.0, float("nan")])
def test_a_time_lies_between_text_and_noise(t: float) -> None:
    with pytest.raises(UserError, match=r"t must be in \[0, 1\]"):
        MODEL.log_p(torch.zeros(1, 4, dtype=torch.int64), t=t)
