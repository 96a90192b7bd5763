"""Wait for processes with limits on their CPU time, which does not depend on how busy the machine is."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable


def cpu_seconds(*pids: int) -> int:
    """CPU time in seconds of these processes and all of their running descendants."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,cputimes="], capture_output=True, text=True).stdout
    table = {pid: rest for pid, *rest in (map(int, line.split()) for line in listed.splitlines())}

    def belongs(pid: int) -> bool:
        return pid in pids or (pid in table and belongs(table[pid][0]))

    return sum(seconds for pid, (_, seconds) in table.items() if belongs(pid))


def wait_until(
    condition: Callable[[], bool], *processes: subprocess.Popen, cpu_limit: int = 600, idle_limit: int = 200
) -> None:
    """Wait until ``condition()`` is true.

    Raises:
        AssertionError: the processes used ``cpu_limit`` seconds of CPU time before that, or none for
            ``idle_limit`` seconds, which means that they hang.
    """
    pids = [process.pid for process in processes]
    begin = used = cpu_seconds(*pids)
    last_progress = time.monotonic()
    while not condition():
        time.sleep(0.3)
        now = cpu_seconds(*pids)
        if now != used:
            used, last_progress = now, time.monotonic()
        assert used - begin < cpu_limit, f"not reached after {cpu_limit} s of CPU time"
        assert time.monotonic() - last_progress < idle_limit, f"no CPU time used for {idle_limit} s"


def wait_for_exit(process: subprocess.Popen, **limits: int) -> int:
    """Wait until a process has ended, within the limits of ``wait_until``, and return its exit status."""
    wait_until(lambda: process.poll() is not None, process, **limits)
    return process.returncode
