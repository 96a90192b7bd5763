"""Results as Markdown."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

from pwlu_det.benchmark.measure import Result
from pwlu_det.collect_env import collect_env

MEMORY_MODES = {
    "warm": "freed memory is kept and used again, so that no page faults are in the times",
    "fresh": "the allocator as it is: memory may be new to the process, and its page faults are in the times",
}


def header(command: str, memory: str) -> str:
    """What was run, on what, and how to read the tables."""
    return f"""Command: `{command}`

Processor: {processor()}
CPU memory: {memory}, {MEMORY_MODES[memory]}.

```
{collect_env()}
```

Times are medians (lower and upper quartile) in milliseconds. Contenders took turns, and ÷ is the median over
the rounds of the time divided by that of the first row in the same round. MiB: the most memory in use at once
during the pass, beyond what was in use before it.
"""


def table(title: str, results: Sequence[Result]) -> str:
    """One row for each result; ratios are to the first."""
    baseline = results[0]
    columns = ["activation"]
    for name in baseline.times:
        columns += [f"{name}, ms", "÷"]
    columns += [f"{name}, MiB" for name in baseline.memory]
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
    """The median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(times, baseline))


def _cells(result: Result, baseline: Result) -> list[str]:
    cells = [result.name]
    for name, times in result.times.items():
        low, median, high = map(_digits, statistics.quantiles(times, n=4, method="inclusive"))
        cells += [f"{median} ({low} to {high})", _digits(ratio(times, baseline.times[name]))]
    return cells + [f"{size / 2**20:.1f}" for size in result.memory.values()]


def _digits(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    return f"{value:#.3g}".rstrip(".") if value < 999.5 else f"{value:.0f}"
