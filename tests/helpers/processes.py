"""Start commands in processes of their own, and wait for them.

The limits are on CPU time and on time without progress, since the elapsed time depends on how busy the
machine is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def start(command: Sequence, log: Path, **variables: str) -> subprocess.Popen:
    """Start a command in a process group of its own, and append its output to a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    with open(log, "ab") as file:
        return subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def cpu_seconds(*pids: int) -> int:
    """CPU time, in seconds, of these processes and of all their descendants that are still running."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,cputimes="], capture_output=True, text=True).stdout
    table = {pid: rest for pid, *rest in (map(int, line.split()) for line in listed.splitlines())}

    def belongs(pid: int) -> bool:
        return pid in pids or (pid in table and belongs(table[pid][0]))

    return sum(seconds for pid, (_, seconds) in table.items() if belongs(pid))


def members(process, text=""):
    """Ids of the running processes of a command whose command line contains ``text``."""
    columns = ["ps", "-ww", "-eo", "pid=,pgid=,stat=,args="]
    lines = subprocess.run(columns, capture_output=True, text=True).stdout.splitlines()
    running = (line.split(maxsplit=3) for line in lines)
    return [
        int(pid)
        for pid, group, state, arguments in running
        if int(group) == process.pid and not state.startswith("Z") and text in arguments
    ]


def trainers(process):
    """Ids of the training processes that a command has spawned, without auxiliary ones."""
    return members(process, "spawn_main")


def end(*processes: subprocess.Popen) -> None:
    """Kill the process groups of commands started by :func:`start`, if they are still running."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until(
    condition: Callable[[], bool], *processes: subprocess.Popen, cpu_limit: int = 600, idle_limit: int = 200
) -> None:
    """Wait until ``condition()`` is true.

    Raises:
        AssertionError: the processes have used ``cpu_limit`` seconds of CPU time without getting there, or
            none at all for ``idle_limit`` seconds, which means that they hang. They are killed.
    """
    pids = [process.pid for process in processes]
    begin = used = cpu_seconds(*pids)
    last_progress = time.monotonic()
    while not condition():
        time.sleep(0.3)
        now = cpu_seconds(*pids)
        if now != used:
            used, last_progress = now, time.monotonic()
        if used - begin > cpu_limit or time.monotonic() - last_progress > idle_limit:
            end(*processes)
            idle = time.monotonic() - last_progress
            raise AssertionError(
                f"gave up after {used - begin} s of CPU time and {idle:.0f} s without progress"
            )


def wait_for_exit(process: subprocess.Popen, **limits: int) -> int:
    """Wait until a process has ended, within the limits of ``wait_until``, and return its exit status."""
    wait_until(lambda: process.poll() is not None, process, **limits)
    return process.returncode


def wait_for_metrics(folder: Path, process: subprocess.Popen) -> None:
    """Wait until a training command has completed 20 iterations, when it writes its first metrics."""
    metrics = folder / "metrics.json"
    wait_until(lambda: process.poll() is not None or (metrics.exists() and metrics.stat().st_size), process)
    assert process.poll() is None, "the training has ended"
