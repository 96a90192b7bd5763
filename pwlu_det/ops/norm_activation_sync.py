"""A norm followed by an activation, with norm statistics pooled over the batches of several processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from pwlu_det.ops.derivatives import is_transformed, vjp
from pwlu_det.ops.library import compute_dtype
from pwlu_det.ops.norm_activation import Arguments
from pwlu_det.ops.plain_norm import plain_norm_activation
from pwlu_det.ops.pooling import pool


def norm_activation_sync(
    x: Tensor,
    norm: Sequence[Tensor],
    eps: float,
    activation: str,
    parameters: Sequence[Tensor],
    added: Sequence[Tensor],
    added_eps: float,
    group: dist.ProcessGroup,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`norm_activation` with the statistics of the batches of a process group, as ``nn.SyncBatchNorm``.

    All processes of the group must call it together, and so its backward and double backward: forward and
    backward do one all-reduce each. Batches may differ in size, and some may be empty. The gradients of the
    parameters are this process's share, which data-parallel training adds up. The arguments and errors are
    those of :func:`norm_activation`, except that ``norm`` has no mean and var.

    Returns:
        y, the pooled statistics, and the pooled number of elements per channel (1 if there are none). Only y
        is differentiable.
    """
    arguments = Arguments(eps, added_eps, activation, (len(norm), len(added), len(parameters)))
    tensors = (x, *norm, *added, *parameters)
    if is_transformed(tensors):
        return _plain(arguments, group, *tensors)
    return _SyncNormActivation.apply(arguments, group, *tensors)


class _SyncNormActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, arguments, group, *tensors):
        _, added, _ = arguments.lists(tensors[1:])
        maps = [tensors[0], *(added[:1] if len(added) > 1 else [])]
        own = torch.stack([torch.ops.pwlu_det.norm_statistics(m) for m in maps], dim=1)
        count, mean, var = pool(_count(maps[0]), *own.flatten(1), group)
        pooled = torch.stack([mean.view(len(maps), -1), var.view(len(maps), -1)], dim=1).flatten(0, 1)
        y, _ = arguments(_with_statistics(torch.ops.pwlu_det.norm_activation, pooled), *tensors)
        ctx.arguments, ctx.group = arguments, group
        ctx.save_for_backward(count, pooled, *tensors)
        ctx.mark_non_differentiable(pooled, count)
        ctx.set_materialize_grads(False)
        return y, pooled, count

    @staticmethod
    def backward(ctx, grad, *_others):
        count, pooled, *tensors = ctx.saved_tensors
        arguments, needed = ctx.arguments, ctx.needs_input_grad[2:]
        if grad is None:
            grad = torch.zeros_like(tensors[0])  # the other processes wait for this one
        if torch.is_grad_enabled():  # by plain torch, which can be differentiated again
            grads = vjp(lambda *values: _plain(arguments, ctx.group, *values)[0], tensors, [grad])
        else:
            grads = _gradients(grad, count, pooled, tensors, arguments, needed, ctx.group)
        return None, None, *(value if need else None for value, need in zip(grads, needed))


def _gradients(grad, count, pooled, tensors, arguments: Arguments, needed, group) -> list:
    """The gradients of all tensors, flattened."""
    mask = arguments.output_mask(needed)

    def backward(x, *others):
        return torch.ops.pwlu_det.norm_activation_backward(grad, x, *others, False, mask)

    grads = arguments(_with_statistics(backward, pooled), *tensors)
    of_x, of_norms, of_added, _ = grads
    if mask[0]:  # so far as if the statistics did not depend on x
        means = of_norms.to(torch.float64, copy=True)
        dist.all_reduce(means, group=group)
        means = (means / count).to(of_norms.dtype)
        norm, added, _ = arguments.lists(tensors[1:])
        _subtract_means(of_x, tensors[0], norm[0], arguments.eps, pooled[:2], means[:2])
        if len(added) > 1:
            _subtract_means(of_added, added[0], added[1], arguments.added_eps, pooled[2:], means[2:])
    return arguments.flatten(tensors, *grads)


def _subtract_means(of_x, x, weight, eps, statistics, means) -> None:
    """Add what reaches x through the mean and the variance to its gradient, in place."""
    shape = [-1, *[1] * (x.dim() - 2)]
    mean, var = statistics
    by_weight, by_bias = means
    rstd = (var + eps).rsqrt()
    scale = -weight.to(rstd.dtype) * rstd
    offset, slope, mean = ((v.view(shape)) for v in (scale * by_bias, scale * rstd * by_weight, mean))
    of_x.add_(torch.addcmul(offset, x.to(compute_dtype(x.dtype)) - mean, slope))


def _with_statistics(function, pooled: Tensor):
    """``function`` with these statistics as those of its norms."""

    def call(x, norm, eps, added, *others):
        return function(x, [*norm, *pooled[:2]], eps, [*added, *pooled[2:]], *others)

    return call


def _plain(arguments: Arguments, group, x: Tensor, *others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`norm_activation_sync` for autograd to differentiate."""
    count = None

    def pooled(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal count
        count, mean, var = pool(_count(x), mean, var, group)
        return mean, var

    def plain(*values):
        return plain_norm_activation(*values, pooled)

    y, statistics = arguments(plain, x, *others)
    return y.to(x.dtype), statistics.detach(), count


def _count(x: Tensor) -> int:
    return x.numel() // x.shape[1]
