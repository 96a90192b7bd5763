"""The PWLU ops: schema, fake kernels and autograd. Kernels plug in under the same names by dispatch key.

============================  ==============================================================
``pwlu_det::pwlu``            equation 1 of the paper
``pwlu_det::pwlu_backward``   Table 1: the gradients of ``x`` and of all parameters in one pass
``pwlu_det::pwlu_phase1``     the same site in phase I: ReLU, and the statistics of its input
============================  ==============================================================
"""

from __future__ import annotations

import torch
from torch import Tensor

from pwlu_det.ops import reference
from pwlu_det.ops.library import define, needed_outputs, only_needed

PARAMETERS = {
    "points": "P N+1",
    "left_bound": "P",
    "right_bound": "P",
    "left_slope": "P",
    "right_slope": "P",
}
"""The parameters of PWLU in the order of the ops' arguments, and their shapes."""

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
        left_bound: B_L, ``[C]`` (layer-wise ``[1]``), as the three that follow.
        right_bound: B_R. The width B_R - B_L is taken to be at least 1e-4.
        left_slope: K_L, the slope left of B_L.
        right_slope: K_R, the slope right of B_R.

    Returns:
        A tensor of the shape, dtype and memory layout of ``x``. NaN stays NaN, and +-inf follows the
        outer slope; where that is 0 it gives the end point's value.

    Raises:
        ValueError: the shapes do not fit each other, or ``x`` is not of these dtypes.
    """
    return torch.ops.pwlu_det.pwlu(x, points, left_bound, right_bound, left_slope, right_slope)


def pwlu_phase1(
    x: Tensor,
    points: Tensor,
    left_bound: Tensor,
    right_bound: Tensor,
    left_slope: Tensor,
    right_slope: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Phase I of section 3.3: ReLU of ``x``, and the moments that the statistics of equation 5 are made of.

    The parameters do not enter the result; they take part so that the autograd graph holds them, with
    gradients of zero. Arguments and errors are those of :func:`pwlu`.

    Returns:
        ``relu(x)``, and per channel (layer-wise: over all) the mean of ``x`` and the sum of its squared
        deviations from it, ``[C]`` (``[1]``) in float32 (float64 for float64 input), not differentiable.
    """
    y, mean, deviation = torch.ops.pwlu_det.pwlu_phase1(
        x, points, left_bound, right_bound, left_slope, right_slope
    )
    return y, mean.detach(), deviation.detach()


# --- plain torch, on every device that no kernel of its own is registered for -------------------

define("pwlu", _ARGUMENTS, results=["x"])(reference.pwlu)
define("pwlu_backward", {"grad": "x", **_ARGUMENTS}, results=["x", *PARAMETERS], output_mask=True)(
    reference.pwlu_backward
)


@define("pwlu_phase1", _ARGUMENTS, results=["x", "P", "P"])
def _phase1(x, points, *_others):
    return reference.relu_moments(x, points.shape[0])


# --- autograd -----------------------------------------------------------------------------------


def _save_inputs(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _pwlu_autograd(ctx, grad):
    gradients = torch.ops.pwlu_det.pwlu_backward(grad, *ctx.saved_tensors, needed_outputs(ctx))
    return only_needed(ctx, gradients)


def _save_phase1(ctx, inputs, output):
    _, *parameters = inputs
    ctx.save_for_backward(output[0], *parameters)


def _phase1_autograd(ctx, grad, _grad_mean, _grad_deviation):
    y, *parameters = ctx.saved_tensors
    needs_x, *needed = ctx.needs_input_grad
    of_x = torch.ops.aten.threshold_backward(grad, y, 0) if needs_x else None
    return of_x, *(torch.zeros_like(p) if needs_p else None for p, needs_p in zip(parameters, needed))


torch.library.register_autograd("pwlu_det::pwlu", _pwlu_autograd, setup_context=_save_inputs)
torch.library.register_autograd("pwlu_det::pwlu_phase1", _phase1_autograd, setup_context=_save_phase1)
