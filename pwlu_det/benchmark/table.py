"""Format results as Markdown."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

from pwlu_det.benchmark.measure import Result
from pwlu_det.collect_env import collect_env

MEMORY_MODES = {
    "warm": "the allocator keeps and reuses freed memory, so that times include no page faults",
    "fresh": "the allocator's default behavior, so that times include page faults of newly mapped memory",
}


def header(command: str, memory: str) -> str:
    """The command, the machine, and how to read the tables."""
    return f"""Command: `{command}`

Processor: {processor()}
CPU memory: {memory}, {MEMORY_MODES[memory]}.

```
{collect_env()}
```

Times are medians (lower to upper quartile) in milliseconds. Contenders take turns; ÷ is the time divided by
that of the first row in the same round, as the median over all rounds. MiB is the peak memory of the pass,
not counting memory that was in use before it; saved MiB is what autograd keeps for backward, without
parameters and buffers.
"""


def table(title: str, results: Sequence[Result]) -> str:
    """Format a table with one row per result and ratios to the first."""
    baseline = results[0]
    columns = ["activation"]
    for name in baseline.times:
        columns += [f"{name}, ms", "÷"]
    columns += [f"{name}, MiB" for name in baseline.memory]
    columns += [f"{name}, saved MiB" for name in baseline.saved]
    rows = [columns, ["---"] * len(columns), *(_cells(result, baseline) for result in results)]
    rounds = len(next(iter(baseline.times.values())))
    lines = [f"### {title}, {rounds} rounds", "", *(f"| {' | '.join(row)} |" for row in rows), ""]
    return "\n".join(lines)


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def ratio(times: Sequence[float], baseline: Sequence[float]) -> float:
    """The median over all rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(times, baseline))


def _cells(result: Result, baseline: Result) -> list[str]:
    cells = [result.name]
    for name, times in result.times.items():
        low, median, high = map(_digits, statistics.quantiles(times, n=4, method="inclusive"))
        cells += [f"{median} ({low} to {high})", _digits(ratio(times, baseline.times[name]))]
    sizes = [*result.memory.values(), *(result.saved.get(name, 0) for name in baseline.saved)]
    return cells + [f"{size / 2**20:.1f}" for size in sizes]


def _digits(value: float) -> str:
    """Format with three significant digits, without an exponent."""
    return f"{value:#.3g}".rstrip(".") if value < 999.5 else f"{value:.0f}"
