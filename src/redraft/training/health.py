"""Detectors of trouble in a long run (NaNs, loss spikes, slow ranks, failed saves), alike on all ranks.

nan        the gradient's norm is no number.      train.on_nan: stop, the default, at the next step that is logged or saved;
                                                  skip: no update, SKIPS in a row stop; rollback
spike      SPIKE_STEPS logged losses in a row lie above the median of the SPIKE_WINDOW before them by more than
           SPIKE_DEVIATIONS robust standard deviations (1.4826 x the median absolute one, at least 1% of the median).
                                                  train.on_spike: record, the default; stop; rollback
rollback   to the last whole checkpoint. The windows of data from there up to the trouble are passed over; ROLLBACKS to the
           same checkpoint stop. Such a run begins with a checkpoint of step 0.
slow rank  its own work (reading its rows, and a matrix product timed now and then) took SLOW times as long as the median of
           the others (and 10 ms more, for reading), at SLOW_STEPS logged steps in a row.                        recorded
lost rank  a collective breaks at once, or answers no more for --timeout seconds: every rank stops with one line; torchrun
           --max-restarts starts them again, and they go on from the last checkpoint
full disk  a checkpoint that cannot be written is recorded, the one before stays, training goes on; the second in a row stops,
           and the first of a run
lost data  a rank that cannot read its rows tells the others; all save their state, then stop with the file's name
damage     a checkpoint that is cut short or altered is named and passed over for the one before it
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from statistics import median

from redraft.errors import UserError

SKIPS, ROLLBACKS, FAILED_SAVES = 10, 3, 2
SPIKE_WINDOW, SPIKE_LEAST, SPIKE_STEPS, SPIKE_DEVIATIONS = 100, 20, 3, 10.0
SLOW, SLOW_STEPS = 2.0, 3


class LostData(UserError):
    """Rows of a step cannot be read."""


class Spikes:
    """Looks at every logged loss. Losses of a spike are not part of what later ones are compared with."""

    def __init__(self, before: Iterable[float] = ()):
        self.calm = deque(before, SPIKE_WINDOW)
        self.high = 0

    def looks(self, loss: float) -> bool:
        """Whether this loss makes a spike of the last few; each spike is told once."""
        if len(self.calm) >= SPIKE_LEAST and loss > self.limit():
            self.high += 1
            return self.high == SPIKE_STEPS
        self.high = 0
        self.calm.append(loss)
        return False

    def limit(self) -> float:
        middle = median(self.calm)
        spread = 1.4826 * median(abs(loss - middle) for loss in self.calm)
        return middle + SPIKE_DEVIATIONS * max(spread, 0.01 * abs(middle))


class Slowness:
    """Compares the ranks' own work, in seconds, at every logged step. Differences up to `least` do not count."""

    def __init__(self, least: float = 0.0) -> None:
        self.least, self.late = least, dict[int, int]()

    def looks(self, seconds: Sequence[float]) -> int | None:
        """The rank that has been slow for long enough, told once; None as a rule."""
        found = None
        for rank, own in enumerate(seconds):
            others = [other for number, other in enumerate(seconds) if number != rank]
            slow = bool(others) and own > SLOW * median(others) + self.least
            self.late[rank] = self.late.get(rank, 0) + 1 if slow else 0
            if self.late[rank] == SLOW_STEPS:
                found = rank
        return found
