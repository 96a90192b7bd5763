"""PWLU in plain torch: the reference that every kernel is tested against, and the fallback without kernels.

Shapes: ``x`` is ``[B, C, *]``, ``points`` is ``[P, N+1]`` and the other parameters are ``[P]``, with P = C
(channel-wise) or P = 1 (layer-wise). Bins are numbered -1 ... N as in section 4.3 of the paper: bin -1 is
x < B_L and bin N is x >= B_R. Tables over the bins, ``[P, N+2]``, store them in columns 0 ... N+1.

Everything is computed in float64, so the fallback is never less accurate than a kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pwlu_det.ops.derivatives import straight_through
from pwlu_det.ops.library import compute_dtype

MIN_WIDTH = 1e-4
"""The minimum of the width B_R - B_L in computations, so that bounds that have crossed can recover."""

_PART_SIZE = 2**18


def pwlu(x: Tensor, *parameters: Tensor) -> Tensor:
    """Equation 1; the result has the dtype and memory layout of ``x``."""
    y = torch.empty_like(x)
    for x_part, y_part in _parts(x, y):
        y_part.copy_(evaluate(x_part, *parameters))
    return y


def evaluate(
    x: Tensor,
    points: Tensor,
    left_bound: Tensor,
    right_bound: Tensor,
    left_slope: Tensor,
    right_slope: Tensor,
) -> Tensor:
    """Equation 1 in float64, which autograd differentiates as in Table 1."""
    x, points, left_bound, right_bound, left_slope, right_slope = (
        t.double() for t in (x, points, left_bound, right_bound, left_slope, right_slope)
    )
    start = torch.cat([points[:, :1], points], dim=1)
    rise = torch.cat([left_slope[:, None], points[:, 1:] - points[:, :-1], right_slope[:, None]], dim=1)
    column, coordinate = _locate(x, left_bound, right_bound, points.shape[1] - 1)
    step = rise.flatten()[column]
    # With a slope of 0, y is the end point's value, also at x = +-inf, where 0 * inf would be NaN.
    flat = (step == 0) & coordinate.isinf()
    return start.flatten()[column] + torch.where(flat, 0.0, step * coordinate)


def pwlu_backward(
    grad: Tensor,
    x: Tensor,
    points: Tensor,
    left_bound: Tensor,
    right_bound: Tensor,
    left_slope: Tensor,
    right_slope: Tensor,
    output_mask: Sequence[bool] = (True, True),
) -> tuple[Tensor | None, ...]:
    """Table 1: gradients of ``x`` and of the five parameters, in the order of the arguments.

    ``output_mask`` says whether to compute the gradient of ``x`` and those of the parameters; gradients that
    are not computed are None.

    All parameter gradients are linear in two moments per bin, A_k = sum(g) and M_k = sum(g * t), where
    t is the local coordinate, so one pass over the elements is enough. The order of summation is fixed, so
    the gradients are bit-identical from run to run.
    """
    parameters = (points, left_bound, right_bound, left_slope, right_slope)
    points, left_bound, right_bound, left_slope, right_slope = (p.double() for p in parameters)
    num_intervals = points.shape[1] - 1
    length = _interval_length(left_bound, right_bound, num_intervals)
    inner_slope = points.diff(dim=1) / length[:, None]
    slope = torch.cat([left_slope[:, None], inner_slope, right_slope[:, None]], dim=1)

    with_x, with_parameters = output_mask
    grad_x = torch.empty_like(x) if with_x else None
    amount, moment = torch.zeros_like(slope), torch.zeros_like(slope)
    for g, x_part, *grad_part in _parts(grad, x, *([grad_x] if with_x else [])):
        g = g.double()
        column, coordinate = _locate(x_part.double(), left_bound, right_bound, num_intervals)
        if with_x:
            grad_part[0].copy_(g * slope.take(column))
        if with_parameters:
            amount += _sum_by_column(column, g, slope.shape)
            moment += _sum_by_column(column, g * coordinate, slope.shape)
    if not with_parameters:
        return grad_x, *[None] * len(parameters)
    inner_amount, inner_moment = amount[:, 1:-1], moment[:, 1:-1]

    grad_points = torch.zeros_like(points)
    grad_points[:, :-1] += inner_amount - inner_moment
    grad_points[:, 1:] += inner_moment
    grad_points[:, 0] += amount[:, 0]
    grad_points[:, -1] += amount[:, -1]

    # x lies (k + t) / N of the way from B_L to B_R: this gives the weight of each bound.
    k = torch.arange(num_intervals, dtype=torch.float64, device=x.device)
    to_left = ((k - num_intervals) * inner_amount + inner_moment) / num_intervals
    to_right = (k * inner_amount + inner_moment) / num_intervals
    grad_left_bound = (inner_slope * to_left).sum(1) - left_slope * amount[:, 0]
    grad_right_bound = -(inner_slope * to_right).sum(1) - right_slope * amount[:, -1]

    grads = (grad_points, grad_left_bound, grad_right_bound, moment[:, 0], moment[:, -1])
    return (grad_x, *(g.to(p.dtype).contiguous() for g, p in zip(grads, parameters)))


def relu_moments(x: Tensor, num_channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """ReLU, and per channel the mean and the summed squared deviation of ``x``.

    Both are ``[num_channels]`` in float32 (float64 for float64 input), and 0 if ``x`` is empty. If
    ``num_channels`` is 1, they are taken over all elements.
    """
    wide = x.to(compute_dtype(x.dtype))
    dims = [d for d in range(x.dim()) if d != 1 or num_channels == 1]
    if x.numel() == 0:
        return x.relu(), wide.new_zeros(num_channels), wide.new_zeros(num_channels)
    variance, mean = torch.var_mean(wide, dim=dims, correction=0)
    count = x.numel() // num_channels
    return x.relu(), mean.reshape(num_channels), variance.reshape(num_channels) * count


def _parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split along the batch, so that the float64 intermediates need little memory and stay in cache."""
    samples = max(1, _PART_SIZE // max(1, tensors[0][:1].numel()))
    return zip(*(t.split(samples) for t in tensors))


def _locate(x: Tensor, left_bound: Tensor, right_bound: Tensor, num_intervals: int) -> tuple[Tensor, Tensor]:
    """The index of each element's bin in the flattened ``[P * (N+2)]`` tables, and its local coordinate.

    The coordinate is t = u - k between the bounds, x - B_L left of them and x - B_R right of them.
    """
    length = _interval_length(left_bound, right_bound, num_intervals)
    from_left = x - _per_channel(left_bound, x)
    u = from_left / _per_channel(length, x)
    # Measured from B_L + MIN_WIDTH if that is further right; the sum itself might round to B_L. The
    # derivatives are those of x - B_R in any case, so that bounds that have crossed can recover.
    moved = straight_through(torch.zeros_like(left_bound), left_bound - right_bound)
    from_minimum = from_left - MIN_WIDTH + _per_channel(moved, x)
    from_right = torch.minimum(x - _per_channel(right_bound, x), from_minimum)
    # x >= B_R is tested separately, as u may round to below N there. NaN goes to the last bin, too.
    k = torch.where(from_right < 0, u.floor().clamp(-1, num_intervals - 1), num_intervals)
    outside = torch.where(k < 0, from_left, from_right)
    coordinate = torch.where((k >= 0) & (k < num_intervals), u - k, outside)
    first_column = torch.arange(left_bound.numel(), device=x.device) * (num_intervals + 2)
    return k.long() + 1 + _per_channel(first_column, x), coordinate


def _interval_length(left_bound: Tensor, right_bound: Tensor, num_intervals: int) -> Tensor:
    width = right_bound - left_bound
    return straight_through(width.clamp(min=MIN_WIDTH), width) / num_intervals


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """View ``[P]`` as ``[P, 1, ...]``, which broadcasts with ``[B, C, *]``."""
    return values.view(-1, *[1] * (x.dim() - 2))


def _sum_by_column(column: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    column, values = column.expand_as(values).flatten(), values.flatten()
    if values.is_cuda:  # bincount uses atomic additions on CUDA; an accumulating index_put_ sorts instead
        sums = values.new_zeros(shape.numel())
        return sums.index_put_((column,), values, accumulate=True).view(shape)
    return torch.bincount(column, weights=values, minlength=shape.numel()).view(shape)
