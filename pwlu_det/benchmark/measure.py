"""Measure contenders in turn, round by round, so that other load on the machine affects all equally."""

from __future__ import annotations

import itertools
import json
import random
import tempfile
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MIN_ROUNDS = 3
MIN_WARM_UP_ROUNDS = 2
FEW_PAGE_FAULTS = 64  # in a round


class Clock:
    """Takes timestamps on the CPU or on the current stream of a CUDA device.

    On CUDA, a buffer larger than any L2 cache is written before each sample. This flushes the cache, and
    keeps the GPU busy while kernels are queued, so that a short kernel's time does not include its launch.
    """

    def __init__(self, device: str):
        self.is_cuda = device == "cuda"
        self._flushed = torch.empty(2**27, dtype=torch.uint8, device=device) if self.is_cuda else None

    def start(self) -> Any:
        """Return the timestamp before the first timed call of a sample."""
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
"""Takes one sample: returns the start and end timestamps of each timed pass, by its name."""


@dataclass(frozen=True)
class Contender:
    """One row of a table."""

    name: str
    runs: tuple[Run, ...]
    """all contenders of a table have the same number of runs, which time the same passes"""
    module: nn.Module
    """what is run; its parameters and buffers do not count as saved for backward"""


@dataclass
class Result:
    """The measurements of one contender."""

    name: str
    times: dict[str, list[float]] = field(default_factory=dict)
    """for each pass, its time in each round in milliseconds"""
    memory: dict[str, int] = field(default_factory=dict)
    """for the first pass of each run, the peak memory of the run in bytes, see :func:`peak_memory`"""
    saved: dict[str, int] = field(default_factory=dict)
    """likewise, what autograd saves for backward in bytes, see :func:`saved_memory`; absent if nothing"""


def measure(contenders: Sequence[Contender], clock: Clock, max_rounds: int, seconds: float) -> list[Result]:
    """Measure the first run of all contenders, then the second, and so on.

    Args:
        contenders: the rows; the results have the same order.
        clock: takes the timestamps.
        max_rounds: maximum number of rounds of each run; a round is one sample of each contender.
        seconds: time limit for warming up, and again for measuring, per contender and run. No round starts
            after it, except that there are always at least two rounds of warm-up and three of measuring.

    Raises:
        RuntimeError: a contender failed; the message names it, and ``__cause__`` is its error.
    """
    results = [Result(contender.name) for contender in contenders]
    order = random.Random(0)  # shuffles each round: no contender always follows the same one
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
        for result, contender, run in zip(results, contenders, runs):
            first_pass = next(iter(_sample(result, run, clock)))
            result.memory[first_pass] = peak_memory(run, clock)
            if saved := saved_memory(run, clock, contender.module):
                result.saved[first_pass] = saved
    return results


def peak_memory(run: Run, clock: Clock) -> int:
    """The peak memory that torch allocated during a run, in bytes, not counting what was allocated before."""
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


def saved_memory(run: Run, clock: Clock, module: nn.Module) -> int:
    """The largest size of all tensors that autograd has saved for backward at one time in a run, in bytes.

    Tensors that share a storage count once, and the parameters and buffers of the module not at all.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    uses: Counter[int] = Counter()
    size = largest = 0

    def pack(tensor: Tensor) -> _Saved:
        nonlocal size, largest
        storage, saved = tensor.untyped_storage(), _Saved(tensor)
        at, num_bytes = storage.data_ptr(), storage.nbytes()
        if at not in own:
            size += 0 if uses[at] else num_bytes
            uses[at] += 1
            largest = max(largest, size)
            weakref.finalize(saved, release, at, num_bytes)
        return saved

    def release(at: int, num_bytes: int) -> None:
        nonlocal size
        uses[at] -= 1
        size -= 0 if uses[at] else num_bytes

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        run(clock)
    return largest


@dataclass(eq=False)
class _Saved:
    tensor: Tensor


def _peak(events: Sequence[tuple[int, int]]) -> int:
    """The peak memory in bytes. ``events`` are (address, size) pairs; the size is negative for a release."""
    sizes: dict[int, int] = {}
    in_use = peak = 0
    for address, size in events:
        if size > 0:
            sizes[address] = size
            in_use += size
            peak = max(peak, in_use)
        else:  # memory allocated before the run does not count
            in_use -= sizes.pop(address, 0)
    return peak


def _sample(result: Result, run: Run, clock: Clock) -> dict[str, float]:
    try:
        marks = run(clock)
    except Exception as error:
        raise RuntimeError(f"{result.name} failed: {error}") from error
    return {name: clock.milliseconds(begin, end) for name, (begin, end) in marks.items()}


def _warm_up(take_round: Callable[[], Any], seconds: float) -> None:
    """Take rounds until one runs with few page faults, or the time is over.

    If the allocator returns memory to the system, page faults never become rare, and are part of the measured
    time.
    """
    deadline = time.perf_counter() + seconds
    for done in itertools.count(1):
        before = _page_faults()
        take_round()
        settled = _page_faults() - before < FEW_PAGE_FAULTS
        if done >= MIN_WARM_UP_ROUNDS and (settled or time.perf_counter() > deadline):
            break


def _page_faults() -> int:
    import resource  # not available on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
