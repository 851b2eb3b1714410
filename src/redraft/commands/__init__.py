"""One file a command: `arguments(parser)` and `run(options, overrides)`, and `PARTS` where its first word names one."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

_NONE: Mapping[str, str] = MappingProxyType({})


class Part(NamedTuple):
    """What the help of one part of a verb shows: its text, which arguments it takes, what others are called in it, and
    the help of those of which it is not the verb's."""

    text: str
    takes: tuple[str, ...]
    renamed: Mapping[str, str] = _NONE
    says: Mapping[str, str] = _NONE
