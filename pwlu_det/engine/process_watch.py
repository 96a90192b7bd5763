"""What a run of several processes needs beside detectron2's launcher."""

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
    """End this process, with an error, once another is gone: collectives would wait for half an hour.

    Each process counts up a number of its own in the store that they have met in, every few seconds. One that
    stands still for ``patience`` looks of this process is taken for dead: a killed process, a lost machine.
    Looks are counted, not time, so that a job that was suspended as a whole goes on.
    """
    if comm.get_world_size() == 1:
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(done, seconds, patience), daemon=True)
    thread.start()
    try:
        yield
        comm.synchronize()  # process 0 may have an evaluation to finish: nobody shall look dead meanwhile
    finally:
        done.set()
        thread.join()


def _watch(done: threading.Event, seconds: float, patience: int) -> None:
    store = dist.distributed_c10d._get_default_store()
    if hasattr(store, "clone"):  # a connection of its own, since torch 2.8
        store = store.clone()
    own, others = comm.get_rank(), [r for r in range(comm.get_world_size()) if r != comm.get_rank()]
    beats, still = dict.fromkeys(others, 0), dict.fromkeys(others, 0)
    while not done.wait(seconds):
        try:
            store.add(f"beats of {own}", 1)
            for rank in others:
                last, beats[rank] = beats[rank], store.add(f"beats of {rank}", 0)
                still[rank] = 0 if beats[rank] != last else still[rank] + 1
        except RuntimeError as error:  # the store is process 0's
            if done.wait(seconds):  # which was the first to end as it should
                return
            _end(f"process 0 is gone ({str(error).splitlines()[0]})")
        dead = [rank for rank in others if still[rank] > patience]
        if dead:
            _end(f"process {dead[0]} has not been heard of for {patience * seconds:.0f} s")


def _end(reason: str) -> None:
    logger.error(f"Process {comm.get_rank()} ends: {reason}. --resume goes on from the last checkpoint.")
    logging.shutdown()
    os._exit(1)  # the main thread waits in a collective, where no exception would reach it


def share_cores(num_processes: int) -> None:
    """Divide torch's threads among the processes of this machine: on a CPU, more slow each other down."""
    torch.set_num_threads(max(1, torch.get_num_threads() // num_processes))
