"""Reads a sentencepiece `.model` file: its pieces, and its normalisation of text.

The fields of ModelProto that matter here (sentencepiece_model.proto): pieces = 1 {piece 1, score 2, type 3}, trainer_spec = 2
{model_type 3}, normalizer_spec = 3 {precompiled_charsmap 2, add_dummy_prefix 3, remove_extra_whitespaces 4}.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces, and GGUF's of tokens
BPE = 2


@dataclass(frozen=True)
class Piece:
    text: str
    score: float
    type: int


@dataclass(frozen=True)
class SentencePieceModel:
    """`prefix`: a space is put before the text. `plain`: BPE on text as it is, whose spaces are only renamed to U+2581."""

    pieces: list[Piece]
    prefix: bool
    plain: bool


def read_model(data: bytes) -> SentencePieceModel:
    pieces, trainer, normalizer = [], dict[int, Any](), dict[int, Any]()
    for number, value in _fields(data):
        if number == 1:
            part = dict(_fields(value))
            pieces.append(Piece(part[1].decode(), part.get(2, 0.0), part.get(3, NORMAL)))
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            normalizer = dict(_fields(value))
    plain = trainer.get(3, 1) == BPE and not normalizer.get(2) and not normalizer.get(4, 1)
    return SentencePieceModel(pieces, bool(normalizer.get(3, 1)), plain and all(p.type != USER_DEFINED for p in pieces))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a protobuf message: integers, floats, bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
        elif kind == 2:
            size, at = _varint(data, at)
            yield tag >> 3, data[at : at + size]
            at += size
        else:
            size = {1: 8, 5: 4}[kind]
            yield tag >> 3, struct.unpack("<f" if size == 4 else "<d", data[at : at + size])[0]
            at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return value, at
