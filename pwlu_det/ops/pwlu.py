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

_PARAMETERS = "Tensor points, Tensor left_bound, Tensor right_bound, Tensor left_slope, Tensor right_slope"

torch.library.define("pwlu_det::pwlu", f"(Tensor x, {_PARAMETERS}) -> Tensor")
torch.library.define(
    "pwlu_det::pwlu_backward",
    f"(Tensor grad, Tensor x, {_PARAMETERS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define("pwlu_det::pwlu_phase1", f"(Tensor x, {_PARAMETERS}) -> (Tensor, Tensor, Tensor)")


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
    _check_arguments(x, points, left_bound, right_bound, left_slope, right_slope)
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
    _check_arguments(x, points, left_bound, right_bound, left_slope, right_slope)
    y, mean, deviation = torch.ops.pwlu_det.pwlu_phase1(
        x, points, left_bound, right_bound, left_slope, right_slope
    )
    return y, mean.detach(), deviation.detach()


def _check_arguments(x: Tensor, points: Tensor, *others: Tensor) -> None:
    if x.dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        raise ValueError(f"pwlu: x has dtype {x.dtype}; float32, float64, float16 and bfloat16 are allowed")
    if x.dim() < 2:
        raise ValueError(f"pwlu: x has shape {tuple(x.shape)}; [B, C, *] is needed")
    if points.dim() != 2 or points.shape[0] not in (1, x.shape[1]) or points.shape[1] < 2:
        raise ValueError(
            f"pwlu: points has shape {tuple(points.shape)}; for x of shape {tuple(x.shape)} it must be "
            f"[{x.shape[1]}, N+1] (channel-wise) or [1, N+1] (layer-wise) with N >= 1"
        )
    for name, other in zip(("left_bound", "right_bound", "left_slope", "right_slope"), others):
        if other.shape != points.shape[:1]:
            raise ValueError(
                f"pwlu: {name} has shape {tuple(other.shape)}, not [{points.shape[0]}] as points has"
            )


# --- plain torch, on every device that no kernel of its own is registered for -------------------

torch.library.impl("pwlu_det::pwlu", "CompositeExplicitAutograd", reference.pwlu)
torch.library.impl("pwlu_det::pwlu_backward", "CompositeExplicitAutograd", reference.pwlu_backward)


@torch.library.impl("pwlu_det::pwlu_phase1", "CompositeExplicitAutograd")
def _phase1(x, points, *_others):
    return reference.relu_moments(x, points.shape[0])


# --- fake kernels -------------------------------------------------------------------------------


@torch.library.register_fake("pwlu_det::pwlu")
def _pwlu_fake(x, *_parameters):
    return torch.empty_like(x)


@torch.library.register_fake("pwlu_det::pwlu_backward")
def _pwlu_backward_fake(_grad, x, *parameters):
    return torch.empty_like(x), *(p.new_empty(p.shape) for p in parameters)


@torch.library.register_fake("pwlu_det::pwlu_phase1")
def _phase1_fake(x, points, *_others):
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.empty_like(x), *(x.new_empty(points.shape[0], dtype=dtype) for _ in range(2))


# --- autograd -----------------------------------------------------------------------------------


def _save_inputs(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _pwlu_autograd(ctx, grad):
    return torch.ops.pwlu_det.pwlu_backward(grad, *ctx.saved_tensors)


def _save_phase1(ctx, inputs, output):
    _, *parameters = inputs
    ctx.save_for_backward(output[0], *parameters)


def _phase1_autograd(ctx, grad, _grad_mean, _grad_deviation):
    y, *parameters = ctx.saved_tensors
    return torch.ops.aten.threshold_backward(grad, y, 0), *(torch.zeros_like(p) for p in parameters)


torch.library.register_autograd("pwlu_det::pwlu", _pwlu_autograd, setup_context=_save_inputs)
torch.library.register_autograd("pwlu_det::pwlu_phase1", _phase1_autograd, setup_context=_save_phase1)
