"""The PWLU ops: schema, fake kernels and autograd. Kernels are registered under the same names.

============================  ==============================================================
``pwlu_det::pwlu``            equation 1 of the paper
``pwlu_det::pwlu_backward``   Table 1: the gradients of ``x`` and of all parameters in one pass
``pwlu_det::pwlu_phase1``     the activation in phase I: ReLU, and the statistics of its input
============================  ==============================================================
"""

from __future__ import annotations

import torch
from torch import Tensor

from pwlu_det.ops import reference
from pwlu_det.ops.derivatives import make_differentiable, register_autograd
from pwlu_det.ops.library import call, define

PARAMETERS = {
    "points": "P N+1",
    "left_bound": "P",
    "right_bound": "P",
    "left_slope": "P",
    "right_slope": "P",
}
"""The parameters of PWLU with their shapes, in the order of the ops' arguments."""

_ARGUMENTS = {"x": "B C *", **PARAMETERS}


def pwlu(
    x: Tensor,
    points: Tensor,
    left_bound: Tensor,
    right_bound: Tensor,
    left_slope: Tensor,
    right_slope: Tensor,
) -> Tensor:
    """Piecewise Linear Unit, equation 1 of Zhou et al. 2021, differentiable in every argument (Table 1).

    Args:
        x: ``[B, C, *]`` of any size, in float32, float64, float16 or bfloat16.
        points: Y_P, the values at the N+1 demarcation points, ``[C, N+1]``, or ``[1, N+1]`` layer-wise.
        left_bound: B_L, ``[C]`` (layer-wise ``[1]``), like the three arguments that follow.
        right_bound: B_R. A width B_R - B_L below 1e-4 counts as 1e-4.
        left_slope: K_L, the slope left of B_L.
        right_slope: K_R, the slope right of B_R.

    Returns:
        A tensor with the shape, dtype and memory layout of ``x``. NaN stays NaN, and +-inf follows the
        outer slope; if that slope is 0, +-inf gives the value of the end point.

    Raises:
        ValueError: the shapes do not match, or a dtype is not one of those above.
    """
    return call("pwlu", x, points, left_bound, right_bound, left_slope, right_slope)


def pwlu_phase1(
    x: Tensor,
    points: Tensor,
    left_bound: Tensor,
    right_bound: Tensor,
    left_slope: Tensor,
    right_slope: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Phase I of section 3.3: ReLU of ``x``, and the moments from which equation 5 computes its statistics.

    The parameters do not affect the result; they are arguments so that they are part of the autograd graph,
    with gradients of zero. The arguments and errors are those of :func:`pwlu`.

    Returns:
        ``relu(x)``, and per channel (layer-wise: over all elements) the mean of ``x`` and the sum of the
        squared deviations from it, ``[C]`` (``[1]``) in float32 (float64 for float64 input), not
        differentiable.
    """
    y, mean, deviation = torch.ops.pwlu_det.pwlu_phase1(
        x, points, left_bound, right_bound, left_slope, right_slope
    )
    return y, mean.detach(), deviation.detach()


# --- plain torch, for every device without registered kernels -----------------------------------

define("pwlu", _ARGUMENTS, results=["x"])(reference.pwlu)
define("pwlu_backward", {"grad": "x", **_ARGUMENTS}, results=["x", *PARAMETERS], output_mask=True)(
    reference.pwlu_backward
)


@define("pwlu_phase1", _ARGUMENTS, results=["x", "P", "P"])
def _phase1(x, points, *_others):
    return reference.relu_moments(x, points.shape[0])


# --- autograd -----------------------------------------------------------------------------------


def _plain(x, *parameters):
    return reference.evaluate(x, *parameters).to(x.dtype)


def _save_phase1(ctx, values, outputs):
    _, *parameters = values
    y, *statistics = outputs
    ctx.save_for_backward(y, *parameters)
    ctx.mark_non_differentiable(*statistics)


def _phase1_backward(ctx, grad, _grad_mean, _grad_deviation):
    y, *parameters = ctx.saved_tensors
    _, *needed = ctx.needs_input_grad
    of_parameters = (torch.zeros_like(p) if needs else None for p, needs in zip(parameters, needed))
    return torch.ops.aten.threshold_backward(grad, y, 0), *of_parameters


make_differentiable("pwlu", _plain)
register_autograd(torch.ops.pwlu_det.pwlu_phase1.default, _phase1, _save_phase1, _phase1_backward)
