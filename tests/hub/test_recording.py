"""Cells of a frame join to the decoded text, whatever the tokenizer makes a character of."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.hub.recording import cells
from redraft.text.tokenizers.tokenizer import Bytes
from tests.text.test_faithful import ENGINES

MARK = "_"


@pytest.mark.parametrize("name", ENGINES)
@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffd"), max_size=40))
def test_cells_of_a_written_row_join_to_its_text(name: str, text: str) -> None:
    tokenizer = ENGINES[name]
    ids = tokenizer.encode(text).tolist()
    found = cells(tokenizer.decode, ids, [False] * len(ids), tokenizer.size, MARK)
    assert len(found) == len(ids)
    assert "".join(cell.text for cell in found) == tokenizer.decode(ids)


def test_a_cell_says_who_wrote_it_and_when() -> None:
    ids, before = [*b"abc", 257], [*b"axx", 257]
    found = cells(Bytes().decode, ids, [True, False, False, False], 257, MARK, [*b"axc", 257])
    assert [(cell.text, cell.state) for cell in found] == [
        ("a", "given"), ("b", "new"), ("c", "written"), (MARK, "unwritten"),
    ]  # fmt: skip
    assert [cell.state for cell in cells(Bytes().decode, before, [False] * 4, 257, MARK)][:3] == ["new"] * 3
