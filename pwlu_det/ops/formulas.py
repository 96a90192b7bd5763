"""Pointwise activations and their derivatives in plain torch: what every kernel is held against.

Each activation is two functions of the input ``x`` and of its parameters, all in one dtype: the formula, and
its partial derivatives by ``x`` and by each parameter, in the order of the arguments. A parameter broadcasts
against ``x``; one that holds several coefficients for each channel is a sequence of such tensors, and so is
the derivative by it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# --- piecewise linear ---------------------------------------------------------------------------


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def prelu_partials(x: Tensor, slope: Tensor) -> tuple:
    return torch.where(x > 0, 1.0, slope), x.clamp(max=0)


def apl(x: Tensor, slopes: Sequence[Tensor], offsets: Sequence[Tensor]) -> Tensor:
    y = x.clamp(min=0)
    for a, b in zip(slopes, offsets):
        y = y + a * (b - x).clamp(min=0)
    return y


def apl_partials(x: Tensor, slopes: Sequence[Tensor], offsets: Sequence[Tensor]) -> tuple:
    bent = [(x < b).to(x.dtype) for b in offsets]
    by_x = (x > 0).to(x.dtype) - sum(a * inside for a, inside in zip(slopes, bent))
    by_slopes = [(b - x).clamp(min=0) for b in offsets]
    return by_x, by_slopes, [a * inside for a, inside in zip(slopes, bent)]


def srelu(x: Tensor, left: Tensor, left_slope: Tensor, right: Tensor, right_slope: Tensor) -> Tensor:
    y = torch.where(x <= left, left + left_slope * (x - left), x)
    return torch.where(x >= right, right + right_slope * (x - right), y)


def srelu_partials(x: Tensor, left: Tensor, left_slope: Tensor, right: Tensor, right_slope: Tensor) -> tuple:
    on_right = x >= right
    on_left = (x <= left) & ~on_right
    by_x = torch.where(on_right, right_slope, torch.where(on_left, left_slope, 1.0))
    return (
        by_x,
        torch.where(on_left, 1 - left_slope, 0.0),
        torch.where(on_left, x - left, 0.0),
        torch.where(on_right, 1 - right_slope, 0.0),
        torch.where(on_right, x - right, 0.0),
    )


def mixture(x: Tensor, identity_share: Tensor, relu_share: Tensor) -> Tensor:
    return identity_share * x + relu_share * x.clamp(min=0)


def mixture_partials(x: Tensor, identity_share: Tensor, relu_share: Tensor) -> tuple:
    return identity_share + relu_share * (x > 0), x, x.clamp(min=0)


# --- ACON ---------------------------------------------------------------------------------------


def acon_c(x: Tensor, p1: Tensor, p2: Tensor, beta: Tensor) -> Tensor:
    u = (p1 - p2) * x
    return u * torch.sigmoid(beta * u) + p2 * x


def acon_c_partials(x: Tensor, p1: Tensor, p2: Tensor, beta: Tensor) -> tuple:
    u, by_u, by_z = _gated(x, p1, p2, beta)
    return (p1 - p2) * by_u + p2, x * by_u, x * (1 - by_u), by_z * u


def _gated(x: Tensor, p1: Tensor, p2: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """u = (p1 - p2) x, and the derivatives of y = u * sigmoid(z) + p2 x by u and by z = beta * u."""
    u = (p1 - p2) * x
    s, rest = torch.sigmoid(beta * u), torch.sigmoid(-beta * u)  # rest = 1 - s, without cancellation
    by_z = u * s * rest  # in this order: u * u may overflow where the result does not
    return u, s + beta * by_z, by_z


def acon_b(x: Tensor, p: Tensor, beta: Tensor) -> Tensor:
    return acon_c(x, torch.ones_like(p), p, beta)


def acon_b_partials(x: Tensor, p: Tensor, beta: Tensor) -> tuple:
    by_x, _, by_p, by_beta = acon_c_partials(x, torch.ones_like(p), p, beta)
    return by_x, by_p, by_beta


def swish(x: Tensor, beta: Tensor) -> Tensor:
    return x * torch.sigmoid(beta * x)


def swish_partials(x: Tensor, beta: Tensor) -> tuple:
    by_x, _, _, by_beta = acon_c_partials(x, torch.ones_like(beta), torch.zeros_like(beta), beta)
    return by_x, by_beta


def meta_acon_pixel(x: Tensor, p1: Tensor, p2: Tensor) -> Tensor:
    return acon_c(x, p1, p2, torch.sigmoid(x))


def meta_acon_pixel_partials(x: Tensor, p1: Tensor, p2: Tensor) -> tuple:
    beta = torch.sigmoid(x)
    u, by_u, by_z = _gated(x, p1, p2, beta)
    by_x = (p1 - p2) * by_u + p2 + by_z * (beta * torch.sigmoid(-x) * u)
    return by_x, x * by_u, x * (1 - by_u)


# --- polynomial and rational --------------------------------------------------------------------


def slaf(x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
    y = torch.zeros_like(x)
    for a in reversed(coefficients):  # Horner's rule
        y = y * x + a
    return y


def slaf_partials(x: Tensor, coefficients: Sequence[Tensor]) -> tuple:
    powers = _powers(x, len(coefficients))
    by_x = sum((j * a * powers[j - 1] for j, a in enumerate(coefficients) if j > 0), torch.zeros_like(x))
    return by_x, powers


def pau(x: Tensor, numerator: Sequence[Tensor], denominator: Sequence[Tensor]) -> Tensor:
    m, u, v, w = _scaled_powers(x)
    return m * (_numerator(numerator, u, v) / _denominator(denominator, v, w))


def pau_partials(x: Tensor, numerator: Sequence[Tensor], denominator: Sequence[Tensor]) -> tuple:
    m, u, v, w = _scaled_powers(x)
    q = _denominator(denominator, v, w)
    ratio = _numerator(numerator, u, v) / q
    slope_of_p = sum(j * numerator[j] * u[j - 1] * v[5 - j] for j in range(1, 6))
    slope_of_q = sum(k * b.abs() * w[k - 1] * v[4 - k] for k, b in enumerate(denominator, start=1))
    by_x = (slope_of_p - x.sign() * slope_of_q * ratio) / q
    by_numerator = [m * (u[j] * v[5 - j] / q) for j in range(6)]
    by_denominator = [
        -m * ratio * (b.sign() * w[k] * v[4 - k] / q) for k, b in enumerate(denominator, start=1)
    ]
    return by_x, by_numerator, by_denominator


def _scaled_powers(x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """m = max(1, |x|), and the powers of u = x/m, of v = 1/m and of w = |u|.

    P / Q is evaluated as m * p / q with p = P/m^5 and q = Q/m^4, whose terms a_j u^j v^(5-j) and
    |b_k| w^k v^(4-k) never exceed their coefficients; x^5 itself leaves float16 at 10 and float32 at 5e7.
    """
    m = x.abs().clamp(min=1)
    u = x.clamp(-1, 1)
    return m, _powers(u, 6), _powers(1 / m, 6), _powers(u.abs(), 5)


def _numerator(coefficients: Sequence[Tensor], u: list[Tensor], v: list[Tensor]) -> Tensor:
    return sum(a * u[j] * v[5 - j] for j, a in enumerate(coefficients))


def _denominator(coefficients: Sequence[Tensor], v: list[Tensor], w: list[Tensor]) -> Tensor:
    return v[4] + sum(b.abs() * w[k] * v[4 - k] for k, b in enumerate(coefficients, start=1))


def _powers(x: Tensor, number: int) -> list[Tensor]:
    """x^0, x^1, ... x^(number - 1)."""
    powers = [torch.ones_like(x)]
    while len(powers) < number:
        powers.append(powers[-1] * x)
    return powers
