"""Funnel ReLU in training, with norm statistics pooled over the batches of several processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from pwlu_det.ops.derivatives import is_transformed, needed_outputs, only_needed, vjp
from pwlu_det.ops.frelu import plain_frelu
from pwlu_det.ops.pooling import pool


def frelu_sync(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    group: dist.ProcessGroup,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`frelu` with the mean and variance of all batches of a process group, as in ``nn.SyncBatchNorm``.

    All processes of the group must call it together, and so its backward and double backward: forward and
    backward do one all-reduce each. Batches may differ in size, and some may be empty. The gradients of the
    parameters are this process's share, which data-parallel training adds up. The arguments and errors are
    those of :func:`frelu`, except that ``x`` may have any size.

    Returns:
        y, the pooled mean and population variance of the convolution's output, and the pooled number of
        elements per channel (1 if there are none). The last three are not differentiable.
    """
    arguments = x, weight, bias, norm_weight, norm_bias, eps, group
    return _plain(*arguments) if is_transformed(arguments) else _SyncFrelu.apply(*arguments)


class _SyncFrelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, norm_weight, norm_bias, eps, group):
        conv, mean, var = torch.ops.pwlu_det.frelu_convolve(x, weight, bias)
        count, mean, var = pool(x.numel() // x.shape[1], mean, var, group)
        y = torch.ops.pwlu_det.frelu_normalise(x, conv, mean, var, norm_weight, norm_bias, eps)
        ctx.save_for_backward(x, conv, mean, var, weight, bias, norm_weight, norm_bias, count)
        ctx.eps, ctx.group = eps, group
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count

    @staticmethod
    def backward(ctx, grad, *_others):
        *saved, weight, bias, norm_weight, norm_bias, count = ctx.saved_tensors
        if torch.is_grad_enabled():  # by plain torch, which can be differentiated again
            arguments = saved[0], weight, bias, norm_weight, norm_bias, ctx.eps, ctx.group
            return only_needed(ctx, vjp(_plain, arguments, [grad]))
        norm = norm_weight, norm_bias, ctx.eps
        sums = torch.ops.pwlu_det.frelu_norm_sums(grad, *saved, *norm)
        pooled = sums.to(torch.float64, copy=True)
        dist.all_reduce(pooled, group=ctx.group)
        means = (pooled / count).to(sums.dtype)
        grads = torch.ops.pwlu_det.frelu_convolve_backward(
            grad, *saved, weight, bias, *norm, means, needed_outputs(ctx)
        )
        of_norm = (value.to(parameter.dtype) for value, parameter in zip(sums, norm))
        return only_needed(ctx, [*grads, *of_norm])


def _plain(x, weight, bias, norm_weight, norm_bias, eps, group):
    """:func:`frelu_sync` for autograd to differentiate."""
    count = x.numel() // x.shape[1]

    def pooled(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal count
        count, mean, var = pool(count, mean, var, group)
        return mean, var

    y, _, mean, var = plain_frelu(x, weight, bias, norm_weight, norm_bias, eps, pooled)
    return y, mean, var, count
