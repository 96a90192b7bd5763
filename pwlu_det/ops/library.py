"""Declares the ops: schema, argument checks, fake kernel and implementation in plain torch.

Compiled kernels are registered under the same names; ``csrc/checks.h`` does the same checks for them. The
library of the CPU kernels defines the schemas, too, so that C++ can run an exported model with it alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

import pwlu_det.ops.kernels  # noqa: F401  # loads the libraries

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


ARGUMENTS: dict[str, Mapping[str, str]] = {}
"""The shapes of each op's arguments, in the notation of :func:`check_arguments`."""

PLAIN: dict[str, Callable] = {}
"""Differentiable ops in plain torch and out of place, for autograd and exporters to decompose."""


def call(name: str, *values, **named):
    """Call the op ``pwlu_det::{name}``, or its plain torch while a model is exported to ONNX."""
    if torch.onnx.is_in_onnx_export():
        return PLAIN[name](*values, *(named[label] for label in ARGUMENTS[name] if label in named))
    return getattr(torch.ops.pwlu_det, name)(*values, **named)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic on an input of ``dtype``: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Disable autocast on the device of ``x``; the meta device has none."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def define_schema(name: str, schema: str) -> None:
    """Declare the op ``pwlu_det::{name}``, unless the library of the CPU kernels has done so."""
    if not hasattr(torch.ops.pwlu_det, name):
        torch.library.define(f"pwlu_det::{name}", schema)


def define(
    name: str, arguments: Mapping[str, str], results: Sequence[str], output_mask: bool = False
) -> Callable[[Callable], Callable]:
    """Declare the op ``pwlu_det::{name}``; decorates its implementation in plain torch.

    Args:
        arguments: the shape of each argument, in the notation of :func:`check_arguments`.
        results: for each result, the argument whose shape and dtype it has, or its shape (in the compute
            dtype).
        output_mask: add a last argument ``bool[2] output_mask`` to a backward op: whether to compute the
            gradient of ``x`` (the first result) and those of the parameters. For gradients that are not
            requested, the op returns empty tensors of shape ``[0]``, and the implementation returns None.
    """
    qualified = f"pwlu_det::{name}"
    ARGUMENTS[name] = arguments
    schema = [f"{'float' if shape == 'float' else 'Tensor'} {label}" for label, shape in arguments.items()]
    if output_mask:
        schema.append("bool[2] output_mask")
    define_schema(name, f"({', '.join(schema)}) -> ({', '.join(['Tensor'] * len(results))})")

    def register(plain: Callable) -> Callable:
        def checked(*values):
            check_arguments(name, arguments, values)
            outputs = plain(*values)
            if not output_mask:
                return outputs
            tensors = dict(zip(arguments, values))
            return tuple(
                tensors[result].new_empty(0) if output is None else output
                for result, output in zip(results, outputs)
            )

        def fake(*values):
            sizes = check_arguments(name, arguments, values)
            tensors = dict(zip(arguments, values))
            asked = values[-1] if output_mask else (True, True)
            outputs = [
                _empty(result, tensors, sizes) if asked[i > 0] else tensors[result].new_empty(0)
                for i, result in enumerate(results)
            ]
            return outputs[0] if len(outputs) == 1 else tuple(outputs)

        torch.library.impl(qualified, "CompositeExplicitAutograd", checked)
        torch.library.register_fake(qualified, fake)
        return plain

    return register


def _empty(result: str, tensors: Mapping[str, Tensor], sizes: Mapping[str, int]) -> Tensor:
    if result == "x":
        return torch.empty_like(tensors["x"])
    if result in tensors:
        return tensors[result].new_empty(tensors[result].shape)
    shape = [int(symbol) if symbol.isdigit() else sizes[symbol] for symbol in result.split()]
    return tensors["x"].new_empty(shape, dtype=compute_dtype(tensors["x"].dtype))


# --- checks -------------------------------------------------------------------------------------


def check_arguments(op: str, shapes: Mapping[str, str], values: Sequence) -> dict[str, int]:
    """Check the arguments of an op; returns the sizes that the letters in the shapes stand for.

    Args:
        shapes: the shape of each argument. That of ``x`` is "B C *" or "B C H W", and "x" is a tensor with
            the shape and dtype of ``x``. Others are lists of sizes: C, the number of channels of ``x``; P,
            which is C or 1 (one function per layer); S, at least 1; N+1, at least 2; or an integer. "float"
            is a number, and "int64" a scalar tensor on the CPU.
        values: the arguments, in that order.

    Raises:
        ValueError: a tensor has the wrong shape, has a dtype that is not in ``DTYPES``, is not on the device
            of ``x``, or is not strided; or a number is negative or not finite.
    """
    named = dict(zip(shapes, values))
    x = named.pop("x")
    _check_kind(op, "x", x)
    dims = shapes["x"].split()
    if x.dim() < 2 if "*" in dims else x.dim() != 4:
        raise ValueError(f"{op}: x has shape {list(x.shape)}; it must be [{', '.join(dims)}]")
    sizes = {"C": x.shape[1]}
    for name, value in named.items():
        _check_beside_x(op, x, name, value, shapes[name], sizes)
    return sizes


def _check_kind(op: str, name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        allowed = "float32, float64, float16 and bfloat16 are allowed"
        raise ValueError(f"{op}: {name} has dtype {_name_of(tensor.dtype)}; {allowed}")
    if tensor.layout != torch.strided:
        raise ValueError(f"{op}: {name} has layout {_name_of(tensor.layout)}; it must be strided")


def _check_beside_x(op, x: Tensor, name: str, value, shape: str, sizes: dict[str, int]) -> None:
    if shape == "float":
        if not 0 <= value < math.inf:
            raise ValueError(f"{op}: {name} is {value}; it must be finite and not negative")
        return
    if shape == "int64":
        if value.dtype != torch.int64 or value.dim() != 0 or value.device.type != "cpu":
            raise ValueError(f"{op}: {name} must be an int64 scalar on the CPU")
        return
    _check_kind(op, name, value)
    if value.device != x.device:
        raise ValueError(f"{op}: {name} is on {value.device}, and x on {x.device}")
    if shape == "x":
        if value.shape != x.shape or value.dtype != x.dtype:
            raise ValueError(
                f"{op}: {name} has shape {list(value.shape)} and dtype {_name_of(value.dtype)}; x has "
                f"{list(x.shape)} and {_name_of(x.dtype)}"
            )
    elif not _fits(value.shape, shape.split(), sizes):
        known = ", ".join(f"{symbol} = {size}" for symbol, size in sizes.items())
        raise ValueError(
            f"{op}: {name} has shape {list(value.shape)}; for x of shape {list(x.shape)} it must be "
            f"[{shape.replace(' ', ', ')}] with {known}"
        )


def _fits(shape: torch.Size, symbols: list[str], sizes: dict[str, int]) -> bool:
    """Whether a shape matches its symbols; the first argument with P, S or N+1 determines that size."""
    if len(shape) != len(symbols):
        return False
    for size, symbol in zip(shape, symbols):
        allowed = {"P": size in (1, sizes["C"]), "S": size >= 1, "N+1": size >= 2}.get(symbol, True)
        expected = int(symbol) if symbol.isdigit() else sizes.setdefault(symbol, size) if allowed else None
        if size != expected:
            return False
    return True


def _name_of(kind: torch.dtype | torch.layout) -> str:
    return str(kind).replace("torch.", "")
