"""Pointwise activations with parameters as ops: one table gives schema, reference, fake kernel and autograd.

For each row there is ``pwlu_det::{name}`` with the arguments ``x`` and the parameters, and
``pwlu_det::{name}_backward`` with ``grad`` before these, which gives the gradients of ``x`` and of all
parameters in one pass. Kernels plug in under the same names by dispatch key.

``x`` is ``[B, C, *]`` in float32, float64, float16 or bfloat16. The result has its dtype and memory layout;
arithmetic and sums are in float32 (float64 for float64), whatever the dtype of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from pwlu_det.ops import formulas

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


TABLE: dict[str, dict[str, str]] = {
    "prelu": {"slope": "C"},
    "swish": {"beta": "C"},
    "acon_b": {"p": "C", "beta": "C"},
    "acon_c": {"p1": "C", "p2": "C", "beta": "C"},
    "meta_acon_pixel": {"p1": "C", "p2": "C"},
    "apl": {"slopes": "S C", "offsets": "S C"},
    "pau": {"numerator": "P 6", "denominator": "P 4"},
    "srelu": {"left": "C", "left_slope": "C", "right": "C", "right_slope": "C"},
    "mixture": {"identity_share": "C", "relu_share": "C"},
    "slaf": {"coefficients": "C S"},
}
"""Each op and the shapes of its parameters: C is the number of channels, P is that or 1 (one function for the
layer), S is any number from 1 on, and figures are themselves. Of two dimensions one is C or P, and the other
numbers the coefficients of a channel. The formulas are the functions of that name in :mod:`formulas`."""


# --- public functions ---------------------------------------------------------------------------
# Each raises ValueError where a shape does not fit, or x has another dtype than those above.


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """max(x, 0) + slope * min(x, 0) (He et al. 2015); ``slope`` is ``[C]``."""
    return _call("prelu", x, slope)


def swish(x: Tensor, beta: Tensor) -> Tensor:
    """x * sigmoid(beta * x): Swish, and ACON-A of Ma et al. 2021; ``beta`` is ``[C]``."""
    return _call("swish", x, beta)


def acon_b(x: Tensor, p: Tensor, beta: Tensor) -> Tensor:
    """(1-p)x * sigmoid(beta (1-p)x) + px (Ma et al. 2021, equation 3); ``p`` and ``beta`` are ``[C]``."""
    return _call("acon_b", x, p, beta)


def acon_c(x: Tensor, p1: Tensor, p2: Tensor, beta: Tensor) -> Tensor:
    """(p1-p2)x * sigmoid(beta (p1-p2)x) + p2 x (Ma et al. 2021, equation 4); parameters are ``[C]``."""
    return _call("acon_c", x, p1, p2, beta)


def meta_acon_pixel(x: Tensor, p1: Tensor, p2: Tensor) -> Tensor:
    """ACON-C with beta = sigmoid(x), element by element (Ma et al. 2021, Table 5); parameters are ``[C]``."""
    return _call("meta_acon_pixel", x, p1, p2)


def apl(x: Tensor, slopes: Tensor, offsets: Tensor) -> Tensor:
    """max(0, x) + sum over s of slopes[s] * max(0, offsets[s] - x) (Agostinelli et al. 2015).

    ``slopes`` and ``offsets`` are ``[S, C]``.
    """
    return _call("apl", x, slopes, offsets)


def pau(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    """P(x) / Q(x), safe, of orders 5 and 4 (Molina et al. 2020, equation 2).

    P = sum over j = 0 ... 5 of numerator[j] x^j and Q = 1 + sum over k = 1 ... 4 of |denominator[k-1] x^k|;
    ``numerator`` is ``[C, 6]`` and ``denominator`` ``[C, 4]``, or ``[1, 6]`` and ``[1, 4]`` for one function
    for the layer. It does not overflow where y itself does not, unless both the largest coefficient of Q
    is 0 and |x| is above 1e7.
    """
    return _call("pau", x, numerator, denominator)


def srelu(x: Tensor, left: Tensor, left_slope: Tensor, right: Tensor, right_slope: Tensor) -> Tensor:
    """x between two thresholds, a line of a slope of its own beyond each of them (Jin et al. 2016).

    right + right_slope * (x - right) for x >= right, left + left_slope * (x - left) for x <= left; where
    the thresholds have crossed the first counts. All parameters are ``[C]``.
    """
    return _call("srelu", x, left, left_slope, right, right_slope)


def mixture(x: Tensor, identity_share: Tensor, relu_share: Tensor) -> Tensor:
    """identity_share * x + relu_share * max(0, x) (Manessi and Rozza 2018); parameters are ``[C]``."""
    return _call("mixture", x, identity_share, relu_share)


def slaf(x: Tensor, coefficients: Tensor) -> Tensor:
    """Sum over j < S of coefficients[j] x^j (Goyal et al. 2019); ``coefficients`` is ``[C, S]``."""
    return _call("slaf", x, coefficients)


# --- checks -------------------------------------------------------------------------------------


def check_input(op: str, x: Tensor) -> None:
    """Check that ``x`` is ``[B, C, *]`` in one of the four dtypes, else raise ValueError."""
    if x.dtype not in DTYPES:
        raise ValueError(f"{op}: x has dtype {x.dtype}; float32, float64, float16 and bfloat16 are allowed")
    if x.dim() < 2:
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}; [B, C, *] is needed")


def _call(name: str, x: Tensor, *parameters: Tensor) -> Tensor:
    check_arguments(name, x, *parameters)
    return getattr(torch.ops.pwlu_det, name)(x, *parameters)


def check_arguments(name: str, x: Tensor, *parameters: Tensor) -> None:
    """Compare the shapes with the table's."""
    check_input(name, x)
    sizes = {"C": x.shape[1]}
    for (label, dims), parameter in zip(TABLE[name].items(), parameters):
        if not _fits(parameter.shape, dims.split(), sizes):
            known = ", ".join(f"{symbol} = {size}" for symbol, size in sizes.items())
            raise ValueError(
                f"{name}: {label} has shape {tuple(parameter.shape)}; for x of shape {tuple(x.shape)} it "
                f"must be [{dims.replace(' ', ', ')}] with {known}"
                + (" (P is C or 1)" if "P" in dims else "")
            )


def _fits(shape: torch.Size, dims: list[str], sizes: dict[str, int]) -> bool:
    """Compare a shape with the table's; the first parameter with P or S decides what that is."""
    if len(shape) != len(dims):
        return False
    for size, symbol in zip(shape, dims):
        admitted = {"P": size in (1, sizes["C"]), "S": size >= 1}.get(symbol, True)
        expected = int(symbol) if symbol.isdigit() else sizes.setdefault(symbol, size) if admitted else None
        if size != expected:
            return False
    return True


# --- plain torch, on every device that no kernel of its own is registered for -------------------


def _coefficient_axis(dims: str) -> int | None:
    """Which of the dimensions numbers a channel's coefficients: of "S C" the first, of "P 6" the second."""
    return None if len(dims) == 1 else int(dims[0] in "CP")


def broadcast_parameters(
    x: Tensor, parameters: Sequence[Tensor], shapes: Collection[str]
) -> tuple[Tensor, list[Tensor]]:
    """``x`` and the parameters as the formulas take them, in the dtype that is computed in.

    ``[C]`` becomes ``[C, 1, ...]``, which broadcasts against ``[B, C, *]``; ``[S, C]`` and ``[C, S]`` become
    ``[S, C, 1, ...]``.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    views = []
    for parameter, dims in zip(parameters, shapes):
        axis = _coefficient_axis(dims)
        parameter = parameter.to(wide.dtype) if axis is None else parameter.to(wide.dtype).movedim(axis, 0)
        views.append(parameter.reshape(*parameter.shape, *[1] * (x.dim() - 2)))
    return wide, views


def parameter_gradient(grad: Tensor, partial: Tensor | list[Tensor], parameter: Tensor, dims: str) -> Tensor:
    """Sum ``grad`` times the derivative by a parameter (or its coefficients) over all but channels."""
    axis = _coefficient_axis(dims)
    if axis is None:
        return _channel_sums(grad * partial, parameter.numel()).to(parameter.dtype)
    num_channels = parameter.shape[1 - axis]
    sums = [_channel_sums(grad * part, num_channels) for part in partial]
    return torch.stack(sums, dim=axis).to(parameter.dtype)


def _channel_sums(terms: Tensor, num_channels: int) -> Tensor:
    """``[B, C, *]`` to ``[C]``, or to ``[1]`` where ``num_channels`` is 1."""
    return terms.sum([d for d in range(terms.dim()) if d != 1 or num_channels == 1]).view(num_channels)


def _reference(name: str) -> tuple[Callable, Callable]:
    formula, partials = getattr(formulas, name), getattr(formulas, f"{name}_partials")
    shapes = TABLE[name].values()

    def forward(x: Tensor, *parameters: Tensor) -> Tensor:
        wide, views = broadcast_parameters(x, parameters, shapes)
        return torch.empty_like(x).copy_(formula(wide, *views))

    def backward(grad: Tensor, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        wide, views = broadcast_parameters(x, parameters, shapes)
        grad = grad.to(wide.dtype)
        by_x, *by_parameters = partials(wide, *views)
        rows = zip(by_parameters, parameters, shapes)
        sums = [parameter_gradient(grad, by, p, dims) for by, p, dims in rows]
        return torch.empty_like(x).copy_(grad * by_x), *sums

    return forward, backward


# --- definition ---------------------------------------------------------------------------------


def _define(name: str) -> None:
    parameters = ", ".join(f"Tensor {label}" for label in TABLE[name])
    results = ", ".join(["Tensor"] * (1 + len(TABLE[name])))
    forward, backward = f"pwlu_det::{name}", f"pwlu_det::{name}_backward"
    torch.library.define(forward, f"(Tensor x, {parameters}) -> Tensor")
    torch.library.define(backward, f"(Tensor grad, Tensor x, {parameters}) -> ({results})")
    for op, implementation in zip((forward, backward), _reference(name)):
        torch.library.impl(op, "CompositeExplicitAutograd", implementation)

    def forward_fake(x, *_parameters):
        return torch.empty_like(x)

    def backward_fake(_grad, x, *parameters):
        return torch.empty_like(x), *(p.new_empty(p.shape) for p in parameters)

    torch.library.register_fake(forward, forward_fake)
    torch.library.register_fake(backward, backward_fake)

    def save_inputs(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    def differentiate(ctx, grad):
        return getattr(torch.ops.pwlu_det, f"{name}_backward")(grad, *ctx.saved_tensors)

    torch.library.register_autograd(forward, differentiate, setup_context=save_inputs)


for _name in TABLE:
    _define(_name)
