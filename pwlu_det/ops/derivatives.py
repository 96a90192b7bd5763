"""Derivatives of the ops, of any order, in reverse and forward mode.

First derivatives are computed by ops with kernels of their own, ``pwlu_det::{name}_backward``. All others are
rarely needed, and differentiate the op's definition in plain torch: derivatives of the backward op (double
backward), forward-mode derivatives, and the transforms of ``torch.func``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pwlu_det.ops.library import ARGUMENTS, PLAIN, check_arguments

_LIBRARY = torch.library.Library("pwlu_det", "FRAGMENT")


def make_differentiable(name: str, plain: Callable, results: Sequence[str] = ("y",)) -> None:
    """Register the derivatives of the op ``pwlu_det::{name}``. Only its first result is differentiable.

    Args:
        plain: the op in plain torch and out of place, for autograd and vmap to transform. At the kinks of the
            op, its derivatives must be those of the backward op.
        results: names of the op's results. The arguments of ``pwlu_det::{name}_backward`` are "grad", names
            of arguments and results of the op, and "output_mask".
    """
    labels, backward_labels = list(ARGUMENTS[name]), [*ARGUMENTS[f"{name}_backward"], "output_mask"]
    backward_op = _overload(f"{name}_backward")

    def checked_plain(*values: Any) -> Tensor | tuple[Tensor, ...]:
        check_arguments(name, ARGUMENTS[name], values)
        return plain(*values)

    def save(ctx, values: Sequence, outputs: Tensor | tuple[Tensor, ...]) -> None:
        _save(ctx, {**dict(zip(labels, values)), **dict(zip(results, _as_tuple(outputs)))}, backward_labels)
        ctx.mark_non_differentiable(*_as_tuple(outputs)[1:])

    def backward(ctx, grad: Tensor, *_others: None) -> Sequence[Tensor | None]:
        named = {**_saved(ctx), "grad": grad, "output_mask": needed_outputs(ctx)}
        values = [named[label] for label in backward_labels]
        if torch.is_grad_enabled() or is_transformed(values):
            return backward_op(*values)
        with torch._C._AutoDispatchBelowAutograd():  # avoids another call into Python by the dispatcher
            return backward_op(*values)

    def plain_backward(*values: Any) -> tuple[Tensor, ...]:
        # Results that the op has saved are computed again, so that their derivatives are not lost.
        named = dict(zip(backward_labels, values))
        gradients = vjp(plain, [named[label] for label in labels], [named["grad"]])
        of_x, *others = (gradient for gradient in gradients if gradient is not None)
        empty, (with_x, with_parameters) = of_x.new_zeros(0), named["output_mask"]
        return of_x if with_x else empty, *(other if with_parameters else empty for other in others)

    def save_arguments(ctx, values: Sequence, _outputs: Any) -> None:
        _save(ctx, dict(zip(backward_labels, values)), backward_labels)

    def double_backward(ctx, *grads: Tensor | None) -> Sequence[Tensor | None]:
        named = _saved(ctx)
        return vjp(plain_backward, [named[label] for label in backward_labels], grads)

    PLAIN[name] = checked_plain
    register_autograd(_overload(name), checked_plain, save, backward)
    register_autograd(backward_op, plain_backward, save_arguments, double_backward)
    _LIBRARY.impl(name, checked_plain, "FuncTorchBatched")


def register_autograd(op: torch._ops.OpOverload, plain: Callable, save: Callable, backward: Callable) -> None:
    """Register autograd like ``torch.library.register_autograd``, and use ``plain`` for other derivatives.

    torch's function silently drops forward-mode tangents, and does not support ``torch.func``.

    Args:
        plain: called if an argument has a tangent, and inside transforms of ``torch.func``.
        save: called with ``ctx``, the arguments and the output of the op.
        backward: called with ``ctx`` and the gradients of the results, of which all but one may be None;
            returns those of the arguments, and may leave out the last if they are None.
    """

    def call_op(keyset: torch._C.DispatchKeySet, values: Sequence) -> Tensor | tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *values)

    def forward(ctx, *values_and_keyset: Any) -> Tensor | tuple[Tensor, ...]:
        *values, keyset = values_and_keyset
        outputs = call_op(keyset, values)
        ctx.set_materialize_grads(False)
        save(ctx, values, outputs)
        return outputs

    def defined_backward(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        undefined = all(grad is None for grad in grads)
        return only_needed(ctx, [] if undefined else backward(ctx, *grads))

    methods = {"forward": staticmethod(forward), "backward": staticmethod(defined_backward)}
    function = type(op._opname, (torch.autograd.Function,), methods)

    def autograd(keyset: torch._C.DispatchKeySet, *values: Any) -> Tensor | tuple[Tensor, ...]:
        if is_transformed(values):
            return plain(*values)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*values):
            return function.apply(*values, keyset)
        return call_op(keyset, values)

    _LIBRARY.impl(op._opname, autograd, "Autograd", with_keyset=True)


def is_transformed(values: Sequence) -> bool:
    """Whether an argument has a forward-mode tangent, or a transform of ``torch.func`` is active."""
    if torch._C._are_functorch_transforms_active():
        return True
    # Checking each tensor takes much longer. While torch.compile traces, the level is not kept in Python.
    if forward_ad._current_level < 0 and not torch.compiler.is_compiling():
        return False
    tensors = (value for value in values if isinstance(value, Tensor))
    return any(forward_ad.unpack_dual(tensor, level=0).tangent is not None for tensor in tensors)


def vjp(function: Callable, arguments: Sequence, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients of ``function(*arguments)`` by its floating-point tensors; None for all other arguments.

    ``grads`` are those of the first results, None for a result without one. If gradients are enabled, the
    result is differentiable.
    """
    with_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # As views, so that arguments which depend on each other count as independent.
        values = [_as_variable(a) if _is_differentiable(a) else a for a in arguments]
        pairs = [(y, grad) for y, grad in zip(_as_tuple(function(*values)), grads) if grad is not None]
    variables = [value for value in values if _is_differentiable(value)]
    outputs, of_outputs = zip(*pairs)
    found = iter(
        torch.autograd.grad(outputs, variables, of_outputs, create_graph=with_graph, allow_unused=True)
    )
    return [next(found) if _is_differentiable(value) else None for value in values]


def needed_outputs(ctx) -> tuple[bool, bool]:
    """Whether autograd needs the gradient of ``x`` (the first argument), and any of the others."""
    return ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:])


def only_needed(ctx, gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """For each argument, its gradient, or None if autograd does not need it."""
    needed = ctx.needs_input_grad
    padded = [*gradients, *[None] * (len(needed) - len(gradients))]
    return tuple(gradient if wanted else None for gradient, wanted in zip(padded, needed))


def straight_through(value: Tensor, linear: Tensor) -> Tensor:
    """``value`` with the derivatives of ``linear``, which must be finite."""
    return value.detach() + (linear - linear.detach())


class KeepInGraph(torch.autograd.Function):
    """The identity, with parameters in the autograd graph, whose gradients are zero."""

    @staticmethod
    def forward(ctx, y, *parameters):
        ctx.save_for_backward(*parameters)
        return y.view_as(y)

    @staticmethod
    def backward(ctx, grad):
        return grad, *(torch.zeros_like(p) for p in ctx.saved_tensors)


def _overload(name: str) -> torch._ops.OpOverload:
    return getattr(torch.ops.pwlu_det, name).default


def _as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _as_variable(tensor: Tensor) -> Tensor:
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.view_as(tensor).requires_grad_()


def _is_differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _save(ctx, named: dict[str, Any], labels: Sequence[str]) -> None:
    """Save those of the named values that are in ``labels``."""
    kept = {label: named[label] for label in labels if label in named}
    ctx.constants = {label: value for label, value in kept.items() if not isinstance(value, Tensor)}
    ctx.tensor_labels = [label for label in kept if label not in ctx.constants]
    ctx.save_for_backward(*(kept[label] for label in ctx.tensor_labels))


def _saved(ctx) -> dict[str, Any]:
    return {**ctx.constants, **dict(zip(ctx.tensor_labels, ctx.saved_tensors))}
