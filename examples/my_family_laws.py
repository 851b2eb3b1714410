"""Hands the family of my_family.py to the law tests, which then hold it to the enumerable world as any other.

PYTHONPATH=examples python -m pytest -p my_family_laws tests/laws -k ardm
"""

from __future__ import annotations

from my_family import ENTRY
from tests.laws.oracles import ORACLES
from tests.world import Exact

from redraft.registry import register

register("ardm", ENTRY)
ORACLES["ardm"] = lambda family: Exact()
