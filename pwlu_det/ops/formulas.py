"""The pointwise activations: each with its op, its formula in plain torch, and the formula's derivatives.

Every kernel is tested against these formulas, and they run if there is no kernel. For second derivatives,
autograd differentiates them: at a kink, it must choose the same side as ``partials``.
:func:`pwlu_det.ops.pointwise.pointwise` describes the arguments of the formulas and of the public
functions of this module. The functions raise ValueError if a shape does not fit, or if a dtype is
not float32, float64, float16 or bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pwlu_det.ops.pointwise import pointwise

# --- piecewise linear ---------------------------------------------------------------------------


@pointwise(slope="C")
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """max(x, 0) + slope * min(x, 0) (He et al. 2015); ``slope`` is ``[C]``."""
    return torch.where(x > 0, x, slope * x)


@prelu.partials
def prelu_partials(x: Tensor, slope: Tensor) -> Iterator[Tensor]:
    yield torch.where(x > 0, 1.0, slope)
    yield x.clamp(max=0)


@pointwise(slopes="S C", offsets="S C")
def apl(x: Tensor, slopes: Sequence[Tensor], offsets: Sequence[Tensor]) -> Tensor:
    """max(0, x) + sum over s of slopes[s] * max(0, offsets[s] - x) (Agostinelli et al. 2015).

    ``slopes`` and ``offsets`` are ``[S, C]``.
    """
    y = x.relu()
    for a, b in zip(slopes, offsets):
        y = y + a * (b - x).relu()
    return y


@apl.partials
def apl_partials(x: Tensor, slopes: Sequence[Tensor], offsets: Sequence[Tensor]) -> Iterator:
    by_offsets = [a * (x < b) for a, b in zip(slopes, offsets)]
    yield (x > 0).to(x.dtype) - sum(by_offsets)
    yield [(b - x).relu() for b in offsets]
    yield by_offsets


@pointwise(left="C", left_slope="C", right="C", right_slope="C")
def srelu(x: Tensor, left: Tensor, left_slope: Tensor, right: Tensor, right_slope: Tensor) -> Tensor:
    """x between two thresholds, and a line with its own slope beyond each of them (Jin et al. 2016).

    right + right_slope * (x - right) for x >= right, left + left_slope * (x - left) for x <= left; if both
    conditions hold because the thresholds have crossed, the first one applies. All parameters are ``[C]``.
    """
    y = torch.where(x <= left, left + left_slope * (x - left), x)
    return torch.where(x >= right, right + right_slope * (x - right), y)


@srelu.partials
def srelu_partials(
    x: Tensor, left: Tensor, left_slope: Tensor, right: Tensor, right_slope: Tensor
) -> Iterator[Tensor]:
    on_right = x >= right
    on_left = (x <= left) & ~on_right
    yield torch.where(on_right, right_slope, torch.where(on_left, left_slope, 1.0))
    yield torch.where(on_left, 1 - left_slope, 0.0)
    yield torch.where(on_left, x - left, 0.0)
    yield torch.where(on_right, 1 - right_slope, 0.0)
    yield torch.where(on_right, x - right, 0.0)


@pointwise(identity_share="C", relu_share="C")
def mixture(x: Tensor, identity_share: Tensor, relu_share: Tensor) -> Tensor:
    """identity_share * x + relu_share * max(0, x) (Manessi and Rozza 2018); the parameters are ``[C]``."""
    return identity_share * x + relu_share * x.relu()


@mixture.partials
def mixture_partials(x: Tensor, identity_share: Tensor, relu_share: Tensor) -> Iterator[Tensor]:
    yield identity_share + relu_share * (x > 0)
    yield x
    yield x.relu()


# --- ACON ---------------------------------------------------------------------------------------


@pointwise(p1="C", p2="C", beta="C")
def acon_c(x: Tensor, p1: Tensor, p2: Tensor, beta: Tensor) -> Tensor:
    """(p1-p2)x * sigmoid(beta (p1-p2)x) + p2 x (Ma et al. 2021, equation 4); the parameters are ``[C]``."""
    u = (p1 - p2) * x
    return u * torch.sigmoid(beta * u) + p2 * x


@acon_c.partials
def acon_c_partials(x: Tensor, p1: Tensor, p2: Tensor, beta: Tensor) -> Iterator[Tensor]:
    u, by_u, by_z = _gated(x, p1, p2, beta)
    yield (p1 - p2) * by_u + p2
    yield x * by_u
    yield x * (1 - by_u)
    yield by_z * u


def _gated(x: Tensor, p1: Tensor, p2: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """u = (p1 - p2) x, and the derivatives of y = u * sigmoid(z) + p2 x by u and by z = beta * u."""
    u = (p1 - p2) * x
    s, rest = torch.sigmoid(beta * u), torch.sigmoid(-beta * u)  # rest = 1 - s, without cancellation
    by_z = u * s * rest  # in this order: u * u may overflow even if the result does not
    return u, s + beta * by_z, by_z


@pointwise(p="C", beta="C")
def acon_b(x: Tensor, p: Tensor, beta: Tensor) -> Tensor:
    """(1-p)x * sigmoid(beta (1-p)x) + px (Ma et al. 2021, equation 3); ``p`` and ``beta`` are ``[C]``."""
    return acon_c.formula(x, torch.ones_like(p), p, beta)


@acon_b.partials
def acon_b_partials(x: Tensor, p: Tensor, beta: Tensor) -> Iterator[Tensor]:
    by_x, _, by_p, by_beta = acon_c_partials(x, torch.ones_like(p), p, beta)
    yield from (by_x, by_p, by_beta)


@pointwise(beta="C")
def swish(x: Tensor, beta: Tensor) -> Tensor:
    """x * sigmoid(beta * x): Swish, which is ACON-A in Ma et al. 2021; ``beta`` is ``[C]``."""
    return x * torch.sigmoid(beta * x)


@swish.partials
def swish_partials(x: Tensor, beta: Tensor) -> Iterator[Tensor]:
    by_x, _, _, by_beta = acon_c_partials(x, torch.ones_like(beta), torch.zeros_like(beta), beta)
    yield from (by_x, by_beta)


@pointwise(p1="C", p2="C")
def meta_acon_pixel(x: Tensor, p1: Tensor, p2: Tensor) -> Tensor:
    """Element-wise ACON-C with beta = sigmoid(x) (Ma et al. 2021, Table 5); the parameters are ``[C]``."""
    return acon_c.formula(x, p1, p2, torch.sigmoid(x))


@meta_acon_pixel.partials
def meta_acon_pixel_partials(x: Tensor, p1: Tensor, p2: Tensor) -> Iterator[Tensor]:
    beta = torch.sigmoid(x)
    u, by_u, by_z = _gated(x, p1, p2, beta)
    yield (p1 - p2) * by_u + p2 + by_z * (beta * torch.sigmoid(-x) * u)
    yield x * by_u
    yield x * (1 - by_u)


# --- polynomial and rational --------------------------------------------------------------------


@pointwise(coefficients="C S")
def slaf(x: Tensor, coefficients: Sequence[Tensor]) -> Tensor:
    """Sum over j < S of coefficients[j] x^j (Goyal et al. 2019); ``coefficients`` is ``[C, S]``."""
    y = torch.zeros_like(x)
    for a in reversed(coefficients):  # Horner's rule
        y = y * x + a
    return y


@slaf.partials
def slaf_partials(x: Tensor, coefficients: Sequence[Tensor]) -> Iterator:
    powers = _powers(x, len(coefficients))
    yield sum((j * a * powers[j - 1] for j, a in enumerate(coefficients) if j > 0), torch.zeros_like(x))
    yield powers


@pointwise(numerator="P 6", denominator="P 4")
def pau(x: Tensor, numerator: Sequence[Tensor], denominator: Sequence[Tensor]) -> Tensor:
    """P(x) / Q(x), the safe PAU of orders 5 and 4 (Molina et al. 2020, equation 2).

    P = sum over j = 0 ... 5 of numerator[j] x^j and Q = 1 + sum over k = 1 ... 4 of |denominator[k-1] x^k|;
    ``numerator`` is ``[C, 6]`` and ``denominator`` is ``[C, 4]``, or ``[1, 6]`` and ``[1, 4]`` for one
    function per layer. The computation does not overflow unless y itself does, or the largest coefficient of
    Q is 0 and |x| is above 1e7.
    """
    m, u, v, w = _scaled_powers(x)
    return m * (_numerator(numerator, u, v) / _denominator(denominator, v, w))


@pau.partials
def pau_partials(x: Tensor, numerator: Sequence[Tensor], denominator: Sequence[Tensor]) -> Iterator:
    m, u, v, w = _scaled_powers(x)
    q = _denominator(denominator, v, w)
    ratio = _numerator(numerator, u, v) / q
    slope_of_p = sum(j * numerator[j] * u[j - 1] * v[5 - j] for j in range(1, 6))
    slope_of_q = sum(k * b.abs() * w[k - 1] * v[4 - k] for k, b in enumerate(denominator, start=1))
    yield (slope_of_p - x.sign() * slope_of_q * ratio) / q
    yield [m * (u[j] * v[5 - j] / q) for j in range(6)]
    yield [-m * ratio * (b.sign() * w[k] * v[4 - k] / q) for k, b in enumerate(denominator, start=1)]


def _scaled_powers(x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """m = max(1, |x|), and the powers of u = x/m, v = 1/m and w = |u|.

    P / Q is evaluated as m * p / q with p = P/m^5 and q = Q/m^4, whose terms a_j u^j v^(5-j) and
    |b_k| w^k v^(4-k) never exceed their coefficients; x^5 itself overflows float16 at 10 and float32 at 5e7.
    """
    # For autograd, exactly one of m and u varies with x, at |x| = 1 too; by clamp, both or neither would.
    beyond = x.abs() > 1
    m, u = torch.where(beyond, x.abs(), 1.0), torch.where(beyond, x.sign(), x)
    even = u * u  # not |u| |u|, which has no second derivative at 0
    w = [torch.ones_like(u), u.abs(), even, even * u.abs(), even * u.abs() * u.abs()]
    return m, _powers(u, 6), _powers(1 / m, 6), w


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
