"""The randomized PAU as an op that saves the seed for backward instead of ten coefficients per element."""

from __future__ import annotations

import torch
from torch import Tensor

from pwlu_det.ops import formulas
from pwlu_det.ops.derivatives import make_differentiable, straight_through
from pwlu_det.ops.library import define
from pwlu_det.ops.pointwise import TABLE, broadcast_parameters, gradients

_ARGUMENTS = {"x": "B C *", **TABLE["pau"], "seed": "int64", "alpha": "float"}
_SHAPES = TABLE["pau"].values()


def rpau(x: Tensor, numerator: Tensor, denominator: Tensor, seed: Tensor, alpha: float) -> Tensor:
    """PAU with each coefficient c replaced, for each element, by a draw from U((1 - alpha) c, (1 + alpha) c).

    This is equation 3 of Molina et al. 2020. As there, the gradients are those of PAU at the drawn
    coefficients.

    Args:
        x, numerator, denominator: the arguments of :func:`pwlu_det.ops.pau`.
        seed: an int64 scalar on the CPU, the seed of the draws.
        alpha: half the relative width of the interval that the coefficients are drawn from.

    Raises:
        ValueError: a shape or dtype does not fit, or ``alpha`` is negative or not finite.
    """
    return torch.ops.pwlu_det.rpau(x, numerator, denominator, seed, alpha)


def _plain(x, *others):
    return formulas.pau.formula(*_draw(x, *others)).to(x.dtype)


@define("rpau", _ARGUMENTS, results=["x"])
def _forward(x, *others):
    return torch.empty_like(x).copy_(_plain(x, *others))


@define("rpau_backward", {"grad": "x", **_ARGUMENTS}, results=["x", *TABLE["pau"]], output_mask=True)
def _backward(grad, x, numerator, denominator, seed, alpha, output_mask):
    partials = formulas.pau_partials(*_draw(x, numerator, denominator, seed, alpha))
    return gradients(grad, x, (numerator, denominator), _SHAPES, partials, output_mask)


def _draw(x, numerator, denominator, seed, alpha) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """``x`` in the compute dtype, and a tensor of its size for each coefficient."""
    generator = torch.Generator(x.device).manual_seed(int(seed))
    wide, coefficients = broadcast_parameters(x, (numerator, denominator), _SHAPES)

    def draw(c: Tensor) -> Tensor:
        uniform = torch.rand(x.shape, generator=generator, dtype=wide.dtype, device=x.device)
        return straight_through(c * (1 + alpha * (2 * uniform - 1)), c)

    return wide, *([draw(c) for c in of_polynomial] for of_polynomial in coefficients)


make_differentiable("rpau", _plain)
