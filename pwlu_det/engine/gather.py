"""Gathering one number per process in each iteration."""

from __future__ import annotations

import torch
import torch.distributed as dist
from detectron2.utils import comm


class EachIteration:
    """Gathers one number per process and call, without waiting for a GPU.

    With several processes, a call returns the numbers of the previous call, which are available by then;
    with one process, it returns the number passed. :meth:`newest` returns the numbers of the last call. The
    results are the same on every process, and all processes must make the same calls.
    """

    def __init__(self):
        self._last: list[torch.Tensor] | None = None

    def __call__(self, number: float) -> list[float]:
        before, world_size = self._last, comm.get_world_size()
        own = torch.tensor([number], dtype=torch.float64, device=_device())
        self._last = [own]
        if world_size > 1:
            self._last = [torch.empty_like(own) for _ in range(world_size)]
            dist.all_gather(self._last, own)
        else:
            before = self._last
        return [] if before is None else [n.item() for n in before]

    def newest(self) -> list[float]:
        return [] if self._last is None else [n.item() for n in self._last]


def _device() -> str:
    nccl = comm.get_world_size() > 1 and dist.get_backend() == "nccl"
    return "cuda" if nccl else "cpu"
