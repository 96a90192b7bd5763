"""The randomised PAU as an op: it keeps the seed of its draws in place of ten numbers for each element."""

from __future__ import annotations

import torch
from torch import Tensor

from pwlu_det.ops import formulas
from pwlu_det.ops.pointwise import TABLE, broadcast_parameters, check_arguments, parameter_gradient

_ARGUMENTS = "Tensor x, Tensor numerator, Tensor denominator, Tensor seed, float alpha"
_SHAPES = TABLE["pau"].values()

torch.library.define("pwlu_det::rpau", f"({_ARGUMENTS}) -> Tensor")
torch.library.define("pwlu_det::rpau_backward", f"(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)")


def rpau(x: Tensor, numerator: Tensor, denominator: Tensor, seed: Tensor, alpha: float) -> Tensor:
    """PAU with a draw from U((1 - alpha) c, (1 + alpha) c) in place of each coefficient c, for each element.

    Molina et al. 2020, equation 3. As there, the gradients are those of PAU at the drawn coefficients.

    Args:
        x, numerator, denominator: as :func:`pwlu_det.ops.pau` takes them.
        seed: an int64 scalar on the CPU, which decides the draws.
        alpha: half the relative width of the draws.

    Raises:
        ValueError: the shapes do not fit each other, or ``x`` is of no floating dtype.
    """
    check_arguments("pau", x, numerator, denominator)
    return torch.ops.pwlu_det.rpau(x, numerator, denominator, seed, alpha)


@torch.library.impl("pwlu_det::rpau", "CompositeExplicitAutograd")
def _forward(x, numerator, denominator, seed, alpha):
    return torch.empty_like(x).copy_(formulas.pau(*_draw(x, numerator, denominator, seed, alpha)))


@torch.library.impl("pwlu_det::rpau_backward", "CompositeExplicitAutograd")
def _backward(grad, x, numerator, denominator, seed, alpha):
    wide, *drawn = _draw(x, numerator, denominator, seed, alpha)
    grad = grad.to(wide.dtype)
    by_x, *by_parameters = formulas.pau_partials(wide, *drawn)
    rows = zip(by_parameters, (numerator, denominator), _SHAPES)
    return torch.empty_like(x).copy_(grad * by_x), *(parameter_gradient(grad, *row) for row in rows)


def _draw(x, numerator, denominator, seed, alpha) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """``x`` as it is computed with, and a tensor of its size for each of the coefficients."""
    generator = torch.Generator(x.device).manual_seed(int(seed))
    wide, coefficients = broadcast_parameters(x, (numerator, denominator), _SHAPES)

    def draw(c: Tensor) -> Tensor:
        uniform = torch.rand(x.shape, generator=generator, dtype=wide.dtype, device=x.device)
        return c * (1 + alpha * (2 * uniform - 1))

    return wide, *([draw(c) for c in of_polynomial] for of_polynomial in coefficients)


@torch.library.register_fake("pwlu_det::rpau")
def _forward_fake(x, *_others):
    return torch.empty_like(x)


@torch.library.register_fake("pwlu_det::rpau_backward")
def _backward_fake(_grad, x, numerator, denominator, *_others):
    return torch.empty_like(x), *(p.new_empty(p.shape) for p in (numerator, denominator))


def _save_inputs(ctx, inputs, output):
    *tensors, ctx.alpha = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx, grad):
    return *torch.ops.pwlu_det.rpau_backward(grad, *ctx.saved_tensors, ctx.alpha), None, None


torch.library.register_autograd("pwlu_det::rpau", _autograd, setup_context=_save_inputs)
