"""A number of each process, known to all of them, in each iteration."""

from __future__ import annotations

import torch
import torch.distributed as dist
from detectron2.utils import comm


class EachIteration:
    """Gathers one number per process and call, without waiting for a GPU.

    A call gives the numbers of the call before it, the same ones on every process; :meth:`newest` gives
    those of the last call. All processes have to make the same calls.
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
