"""Threads of models take turns: no more at once than there may be, and none is overtaken."""

from __future__ import annotations

import time
from threading import Thread

from redraft.serving.turns import Turns


def test_no_more_are_at_work_than_may_be() -> None:
    turns, inside, most = Turns(2), list[int](), list[int]()

    def work(number: int) -> None:
        for _ in range(50):
            with turns:
                inside.append(number)
                most.append(len(inside))
                time.sleep(0)
                inside.remove(number)

    threads = [Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) <= 2 and len(most) == 250 and turns.free == 2


def test_who_comes_back_at_once_waits_behind_those_who_wait() -> None:
    turns, came = Turns(1), list[str]()

    def other() -> None:
        with turns:
            came.append("other")

    thread = Thread(target=other)
    with turns:
        thread.start()
        while not turns.waiting:
            time.sleep(0.001)
    with turns:
        came.append("first again")
    thread.join()
    assert came == ["other", "first again"]
