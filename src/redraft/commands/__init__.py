"""One file a command: `arguments(parser)` and `run(options, overrides)`, and `PARTS` where its first word names one."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Part:
    """What the help of one part of a verb shows: its text, which arguments it takes, what others are called in it, and
    the help of those of which it is not the verb's."""

    text: str
    takes: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)
    says: Mapping[str, str] = field(default_factory=dict)
