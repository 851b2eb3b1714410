"""Many clients, some of whom hang up: nothing lost, nothing wrong, nothing left behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.serving.load import all_asked, offline, requests
from tests.serving.served import models, served, wait

NAMES = ("ar", "mdlm", "duo", "esolm")


def test_no_text_is_lost_or_wrong_under_load(tmp_path: Path) -> None:
    loaded = models(tmp_path, NAMES)
    wanted = requests(NAMES, 60, 24, leaving=0.2)
    with served(loaded, rows=8, queue=12) as there:
        found = asyncio.run(all_asked(int(there.url.rpartition(":")[2]), wanted, 16))
        wait(lambda: not there.scheduler.busy)
        assert all(not lane.engine.pool.rows and not lane.waiting for lane in there.scheduler.lanes.values())
    assert len(found) == len(wanted)
    texts, _ = offline(loaded, wanted, 8)
    for request, outcome, text in zip(wanted, found, texts, strict=True):
        assert outcome.status == 200 or request.leaves is not None
        assert outcome.status == 0 or outcome.text == text
