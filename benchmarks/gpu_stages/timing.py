"""Clocks and profiles of a device: how long a call takes at a steady pace, how busy it keeps the device, and with what."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import measure
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from redraft.evaluation.compute import wait
from redraft.evaluation.generation.memory import forget_peak
from redraft.network.device import device_name
from redraft.planning.serving_cost import HARDWARE


@dataclass(frozen=True)
class Profile:
    """`device_seconds` of a call: its kernels' own time added up; None on a CPU. `top`: what took longest, and its share."""

    device_seconds: float | None
    top: list[tuple[str, float]]

    def numbers(self, seconds: float) -> dict[str, Any]:
        """Beside the call's own seconds without a profiler."""
        busy = None if self.device_seconds is None else self.device_seconds / seconds
        return {"busy": busy, "top": self.top}


def pace(run: Callable[[], Any], device: torch.device, least: float) -> float:
    """Seconds of a call when calls follow each other, as they do in training: nobody waits in between. After one that is not
    counted, as many as fill `least` seconds."""
    run()
    first = measure.clocked(run, device)
    turns = max(1, min(200, math.ceil(least / max(first, 1e-6))))

    def several() -> None:
        for _ in range(turns):
            run()

    return measure.clocked(several, device) / turns


def profiled(run: Callable[[], Any], device: torch.device, calls: int = 1) -> Profile:
    """Of one of the `calls` that `run` makes. What was never called before must have been, or its compiling is in it."""
    other = ProfilerActivity.CPU if device.type == "cpu" else ProfilerActivity.CUDA
    with profile(activities=[other]) as found:
        run()
        wait(device)
    if device.type == "cpu":
        spent = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    else:
        kernels = (event for event in found.key_averages() if event.device_type == DeviceType.CUDA)
        spent = {event.key: event.self_device_time_total for event in kernels}
    total = sum(spent.values()) or 1.0
    top = sorted(spent.items(), key=lambda pair: -pair[1])[:6]
    seconds = None if device.type == "cpu" else total / 1e6 / calls
    return Profile(seconds, [(name[:60], microseconds / total) for name, microseconds in top])


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 FLOP/s by the data sheet; None for hardware that we have none of."""
    name = device_name(device).lower()
    return next((known.peak for key, known in HARDWARE.items() if key in name), None)


def memory(run: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """The allocator's peaks over a call, all that lives included: given out, and taken from the device."""
    if device.type == "cpu":
        run()
        return {"allocated": None, "reserved": None}
    forget_peak(device)
    run()
    wait(device)
    peaks = torch.accelerator.max_memory_allocated(device), torch.accelerator.max_memory_reserved(device)
    return {"allocated": peaks[0], "reserved": peaks[1]}


def sample_noise(device: torch.device) -> None:
    """Give back what nobody holds any more, an earlier case's say."""
    gc.collect()
    if device.type != "cpu":
        torch.accelerator.empty_cache()
