"""Counters of a server, and their text for Prometheus (exposition format 0.0.4)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from threading import Lock

HELP = {
    "requests": "answered requests, by path and status",
    "texts": "texts that left the batch, by how",
    "tokens": "tokens of finished texts",
    "calls": "passes of the network that texts took part in",
    "steps": "rounds of calls",
    "seconds": "seconds from a request to the end of its answer",
}
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counts by name and labels, and one histogram of seconds."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
        self.buckets = [0] * len(BUCKETS)
        self.answers, self.seconds, self._lock = 0, 0.0, Lock()

    def add(self, name: str, amount: float = 1, **labels: object) -> None:
        with self._lock:
            self.counts[name, tuple((key, str(value)) for key, value in labels.items())] += amount

    def took(self, seconds: float) -> None:
        with self._lock:
            self.answers, self.seconds = self.answers + 1, self.seconds + seconds
            self.buckets = [n + (seconds <= most) for n, most in zip(self.buckets, BUCKETS, strict=True)]

    def text(self, gauges: Mapping[str, float]) -> str:
        """All of it; `gauges` are what is so now."""
        with self._lock:
            counts, buckets, answers, seconds = dict(self.counts), list(self.buckets), self.answers, self.seconds
        lines = list[str]()
        for name in sorted({name for name, _ in counts}):
            lines += [f"# HELP redraft_{name}_total {HELP[name]}", f"# TYPE redraft_{name}_total counter"]
            for (own, labels), value in sorted(counts.items()):
                if own == name:
                    inside = ",".join(f'{key}="{escaped(value)}"' for key, value in labels)
                    lines.append(
                        f"redraft_{name}_total{{{inside}}} {value:g}" if inside else f"{own_line(name, value)}"
                    )
        lines += [f"# HELP redraft_request_seconds {HELP['seconds']}", "# TYPE redraft_request_seconds histogram"]
        lines += [
            f'redraft_request_seconds_bucket{{le="{most:g}"}} {n}' for most, n in zip(BUCKETS, buckets, strict=True)
        ]
        lines += [f'redraft_request_seconds_bucket{{le="+Inf"}} {answers}']
        lines += [f"redraft_request_seconds_sum {seconds:.6f}", f"redraft_request_seconds_count {answers}"]
        for name, value in gauges.items():
            lines += [f"# TYPE redraft_{name} gauge", f"redraft_{name} {value:g}"]
        return "\n".join(lines) + "\n"


def own_line(name: str, value: float) -> str:
    return f"redraft_{name}_total {value:.0f}"


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
