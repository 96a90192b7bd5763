"""Contenders are measured in turn, round by round, so that what disturbs the machine disturbs all alike."""

from __future__ import annotations

import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

MIN_ROUNDS = 3
MIN_WARM_UP_ROUNDS = 2
FEW_PAGE_FAULTS = 64  # in a round


class Clock:
    """Marks moments on a CPU, or on the current stream of a CUDA device.

    On CUDA, a buffer larger than any second-level cache is written before each sample. So each sample finds
    the cache cold, and launches queue up behind that: a short kernel's time is not that of its launch.
    """

    def __init__(self, device: str):
        self.is_cuda = device == "cuda"
        self._flushed = torch.empty(2**27, dtype=torch.uint8, device=device) if self.is_cuda else None

    def start(self) -> Any:
        """The mark before the first timed call of a sample."""
        if self.is_cuda:
            self._flushed.zero_()
        return self.mark()

    def mark(self) -> Any:
        if not self.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, begin: Any, end: Any) -> float:
        if not self.is_cuda:
            return (end - begin) * 1e3
        end.synchronize()
        return begin.elapsed_time(end)


Run = Callable[[Clock], dict[str, tuple[Any, Any]]]
"""Takes one sample: for each pass that it times, the marks of its begin and its end."""


@dataclass(frozen=True)
class Contender:
    """What is compared: one row of a table."""

    name: str
    runs: tuple[Run, ...]
    """as many, and of the same passes, as those of the contenders beside it"""


@dataclass
class Result:
    """What one contender took."""

    name: str
    times: dict[str, list[float]] = field(default_factory=dict)
    """for each pass, milliseconds in each round"""
    memory: dict[str, int] = field(default_factory=dict)
    """for the first pass of each run, the most bytes in use during the run, beyond those before it"""


def measure(contenders: Sequence[Contender], clock: Clock, max_rounds: int, seconds: float) -> list[Result]:
    """Measure each run of all contenders, one run after the other.

    Args:
        contenders: the rows; their order is kept.
        clock: what takes the times.
        max_rounds: the most rounds of each run; a round is one sample of each contender.
        seconds: for each contender and run, once to warm up and once to measure; no round is begun later,
            but there are at least two and three.

    Raises:
        RuntimeError: a contender failed; it names the contender, and its cause is the failure.
    """
    results = [Result(contender.name) for contender in contenders]
    order = random.Random(0)  # of a round: nobody always follows the same predecessor
    for runs in zip(*(contender.runs for contender in contenders)):
        budget = seconds * len(runs)
        _warm_up(lambda runs=runs: [_sample(r, run, clock) for r, run in zip(results, runs)], budget)
        deadline = time.perf_counter() + budget
        for done in range(max_rounds):
            if done >= MIN_ROUNDS and time.perf_counter() > deadline:
                break
            for result, run in order.sample([*zip(results, runs)], len(runs)):
                for name, milliseconds in _sample(result, run, clock).items():
                    result.times.setdefault(name, []).append(milliseconds)
        for result, run in zip(results, runs):
            first_pass = next(iter(_sample(result, run, clock)))
            result.memory[first_pass] = peak_memory(run, clock)
    return results


def peak_memory(run: Run, clock: Clock) -> int:
    """The most bytes that torch had allocated at once during a run, beyond those before it."""
    if clock.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(clock)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        run(clock)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    events = sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"])
    return _peak([(e["args"]["Addr"], e["args"]["Bytes"]) for e in events])


def _peak(events: Sequence[tuple[int, int]]) -> int:
    """The most bytes in use: ``events`` are addresses and sizes, those of a release negative."""
    sizes: dict[int, int] = {}
    in_use = peak = 0
    for address, size in events:
        if size > 0:
            sizes[address] = size
            in_use += size
            peak = max(peak, in_use)
        else:  # what was not allocated here was there before
            in_use -= sizes.pop(address, 0)
    return peak


def _sample(result: Result, run: Run, clock: Clock) -> dict[str, float]:
    try:
        marks = run(clock)
    except Exception as error:
        raise RuntimeError(f"{result.name} failed: {error}") from error
    return {name: clock.milliseconds(begin, end) for name, (begin, end) in marks.items()}


def _warm_up(take_round: Callable[[], Any], seconds: float) -> None:
    """Take rounds until one finds its memory mapped, or the time is over.

    With an allocator that gives memory back to the system that never happens: the page faults are then a
    part of what is measured.
    """
    deadline = time.perf_counter() + seconds
    for done in itertools.count(1):
        before = _page_faults()
        take_round()
        settled = _page_faults() - before < FEW_PAGE_FAULTS
        if done >= MIN_WARM_UP_ROUNDS and (settled or time.perf_counter() > deadline):
            break


def _page_faults() -> int:
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
