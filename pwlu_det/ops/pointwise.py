"""Defines ops for the pointwise activations in :mod:`pwlu_det.ops.formulas`.

For each activation there is ``pwlu_det::{name}`` with the arguments ``x`` and the parameters, and
``pwlu_det::{name}_backward`` with ``grad`` before these and ``output_mask`` after them, which computes the
gradients of ``x`` and of all parameters in one pass.

``x`` is ``[B, C, *]`` in float32, float64, float16 or bfloat16. The result has its dtype and memory layout;
arithmetic and sums are in float32 (float64 for float64), regardless of the dtype of the parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

from pwlu_det.ops.derivatives import make_differentiable
from pwlu_det.ops.library import call, compute_dtype, define

TABLE: dict[str, dict[str, str]] = {}
"""The shapes of each op's parameters, in the notation of :func:`pwlu_det.ops.library.check_arguments`. If
there are two dimensions, one is C or P, and the other is the number of coefficients per channel."""


def pointwise(**shapes: str) -> Callable[[Callable], Callable]:
    """Turn a formula into a public function that calls an op of the same name.

    ``shapes`` are those of the parameters. The formula is called with ``x`` and the parameters in one dtype.
    Each parameter broadcasts against ``x``; a parameter with several coefficients per channel is passed as a
    sequence of such tensors. The public function takes the original tensors. Its attribute ``formula`` is the
    formula, and its attribute ``partials`` decorates a generator of the derivatives with respect to ``x`` and
    each parameter (a sequence if it has several coefficients), which completes the op.
    """

    def decorate(formula: Callable) -> Callable:
        name = formula.__name__
        TABLE[name] = shapes

        @functools.wraps(formula)
        def function(*arguments: Tensor, **named: Tensor) -> Tensor:
            return call(name, *arguments, **named)

        def partials(generator: Callable) -> Callable:
            _define(name, formula, generator)
            return generator

        function.formula, function.partials = formula, partials
        return function

    return decorate


def _define(name: str, formula: Callable, partials: Callable) -> None:
    shapes = TABLE[name]
    arguments = {"x": "B C *", **shapes}

    def plain(x: Tensor, *parameters: Tensor) -> Tensor:
        wide, views = broadcast_parameters(x, parameters, shapes.values())
        return formula(wide, *views).to(x.dtype)

    @define(name, arguments, results=["x"])
    def forward(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.empty_like(x).copy_(plain(x, *parameters))

    @define(f"{name}_backward", {"grad": "x", **arguments}, results=["x", *shapes], output_mask=True)
    def backward(grad: Tensor, x: Tensor, *others) -> tuple[Tensor | None, ...]:
        *parameters, output_mask = others
        wide, views = broadcast_parameters(x, parameters, shapes.values())
        return gradients(grad, x, parameters, shapes.values(), partials(wide, *views), output_mask)

    make_differentiable(name, plain)


# --- plain torch, for every device without registered kernels -----------------------------------


def broadcast_parameters(
    x: Tensor, parameters: Sequence[Tensor], shapes: Collection[str]
) -> tuple[Tensor, list[Tensor]]:
    """``x`` and the parameters as the formulas take them, in the compute dtype.

    ``[C]`` becomes ``[C, 1, ...]``, which broadcasts against ``[B, C, *]``; ``[S, C]`` and ``[C, S]`` become
    ``[S, C, 1, ...]``.
    """
    wide = x.to(compute_dtype(x.dtype))
    views = []
    for parameter, dims in zip(parameters, shapes):
        axis = _coefficient_axis(dims)
        parameter = parameter.to(wide.dtype) if axis is None else parameter.to(wide.dtype).movedim(axis, 0)
        views.append(parameter.reshape(*parameter.shape, *[1] * (x.dim() - 2)))
    return wide, views


def gradients(
    grad: Tensor,
    x: Tensor,
    parameters: Sequence[Tensor],
    shapes: Collection[str],
    partials: Iterator[Tensor | Sequence[Tensor]],
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The results of a backward op; only the ``partials`` that ``output_mask`` asks for are computed."""
    grad = grad.to(compute_dtype(x.dtype))
    by_x = next(partials)
    of_x = torch.empty_like(x).copy_(grad * by_x) if output_mask[0] else None
    if not output_mask[1]:
        return of_x, *[None] * len(parameters)
    return of_x, *(parameter_gradient(grad, *row) for row in zip(partials, parameters, shapes))


def parameter_gradient(
    grad: Tensor, partial: Tensor | Sequence[Tensor], parameter: Tensor, dims: str
) -> Tensor:
    """Sum ``grad`` times the derivative for a parameter (or its coefficients) over all dimensions but C."""
    axis = _coefficient_axis(dims)
    if axis is None:
        return _channel_sums(grad * partial, parameter.numel()).to(parameter.dtype)
    num_channels = parameter.shape[1 - axis]
    sums = [_channel_sums(grad * part, num_channels) for part in partial]
    return torch.stack(sums, dim=axis).to(parameter.dtype)


def _coefficient_axis(dims: str) -> int | None:
    """The dimension of the coefficients: the first for "S C", the second for "P 6"."""
    return None if len(dims) == 1 else int(dims[0] in "CP")


def _channel_sums(terms: Tensor, num_channels: int) -> Tensor:
    """``[B, C, *]`` to ``[C]``, or to ``[1]`` if ``num_channels`` is 1."""
    return terms.sum([d for d in range(terms.dim()) if d != 1 or num_channels == 1]).view(num_channels)
