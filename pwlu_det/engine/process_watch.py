"""Support for multi-process runs: detection of lost processes, and sharing of CPU cores."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from detectron2.utils import comm

logger = logging.getLogger(f"detectron2.{__name__}")


@contextmanager
def watch_processes(seconds: float = 4.0, patience: int = 10) -> Iterator[None]:
    """End this process with an error once another one is lost; a collective would wait for half an hour.

    Every ``seconds`` seconds, each process increments its counter in the rendezvous store and checks those of
    the others. A process whose counter has not changed for more than ``patience`` checks is presumed dead: it
    was killed, or its machine was lost. Checks are counted rather than time, so that a whole job can be
    suspended and continued.
    """
    if comm.get_world_size() == 1:
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(done, seconds, patience), daemon=True)
    thread.start()
    try:
        yield
        comm.synchronize()  # keep beating while process 0 evaluates, so that no process is presumed dead
    finally:
        done.set()
        thread.join()


def _watch(done: threading.Event, seconds: float, patience: int) -> None:
    store = dist.distributed_c10d._get_default_store()
    if hasattr(store, "clone"):  # torch >= 2.8
        store = store.clone()  # a separate connection for this thread
    own, others = comm.get_rank(), [r for r in range(comm.get_world_size()) if r != comm.get_rank()]
    beats, still = dict.fromkeys(others, 0), dict.fromkeys(others, 0)
    while not done.wait(seconds):
        try:
            store.add(f"beats of {own}", 1)
            for rank in others:
                last, beats[rank] = beats[rank], store.add(f"beats of {rank}", 0)
                still[rank] = 0 if beats[rank] != last else still[rank] + 1
        except RuntimeError as error:  # process 0 hosts the store
            if done.wait(seconds):  # process 0 merely finished first
                return
            _end(f"process 0 is gone ({str(error).splitlines()[0]})")
        dead = [rank for rank in others if still[rank] > patience]
        if dead:
            _end(f"process {dead[0]} has not responded for {patience * seconds:.0f} s")


def _end(reason: str) -> None:
    logger.error(
        f"Process {comm.get_rank()} exits: {reason}. Use --resume to continue from the last checkpoint."
    )
    logging.shutdown()
    os._exit(1)  # the main thread is blocked in a collective, where no exception can reach it


def share_cores(num_processes: int) -> None:
    """Divide torch's threads among the processes on this machine: too many slow each other down."""
    torch.set_num_threads(max(1, torch.get_num_threads() // num_processes))
