"""Sums and batch statistics over the processes of a group, differentiable any number of times."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class AllReduce(torch.autograd.Function):
    """The sum of a tensor over all processes: ``AllReduce.apply(values, group)``."""

    @staticmethod
    def forward(values, group):
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.group = inputs

    @staticmethod
    def backward(ctx, grad):
        return AllReduce.apply(grad, ctx.group), None

    @staticmethod
    def jvp(ctx, tangent, _group):
        return AllReduce.apply(tangent, ctx.group)


def pool(count: int, mean: Tensor, var: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and population variance over all processes, with one all-reduce.

    ``mean`` and ``var``, ``[C]``, are those of ``count`` elements per channel in this process. The pooled
    count is 1 if there are no elements.
    """
    wide = mean.double()
    sums = count * torch.cat([torch.ones_like(wide[:1]), wide, var + wide**2])
    sums = AllReduce.apply(sums, group)
    total = sums[0].clamp(min=1)
    pooled_mean, mean_square = (sums[1:] / total).chunk(2)
    pooled_var = (mean_square - pooled_mean**2).clamp(min=0)
    return total, pooled_mean.to(mean.dtype), pooled_var.to(var.dtype)
