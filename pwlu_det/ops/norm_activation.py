"""A batch norm followed by an activation as one op: y = f(norm(x)), or y = f(norm(x) + added).

======================================  ===========================================================
``pwlu_det::norm_activation``           y, and the statistics of the batch if they are not given
``pwlu_det::norm_activation_backward``  all gradients in one pass
``pwlu_det::norm_statistics``           the statistics of a batch alone, for pooling over processes
======================================  ===========================================================

Backward computes the norm's output again, so only ``x`` and ``added`` are saved for it; the input of the
activation is never stored.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pwlu_det.ops.derivatives import is_transformed, vjp
from pwlu_det.ops.library import check_arguments, compute_dtype, define, define_schema
from pwlu_det.ops.plain_norm import RELU, apply_norms, mean_and_variance, plain_norm_activation
from pwlu_det.ops.pointwise import TABLE
from pwlu_det.ops.pwlu import PARAMETERS

ACTIVATIONS = {"relu": {}, "pwlu": PARAMETERS, "pwlu_phase1": PARAMETERS, **TABLE}
"""The shapes of each activation's parameters, in the order of its op's arguments."""

_NORM = {"weight": "C", "bias": "C", "mean": "C", "var": "C"}
_ADDED = {"added": "x", **{f"added_{name}": shape for name, shape in _NORM.items()}}
_ARGUMENTS = (
    "Tensor x, Tensor[] norm, float eps, Tensor[] added, float added_eps, str activation, Tensor[] parameters"
)


def norm_activation(
    x: Tensor,
    norm: Sequence[Tensor],
    eps: float,
    activation: str,
    parameters: Sequence[Tensor] = (),
    added: Sequence[Tensor] = (),
    added_eps: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """f(norm(x)), f(norm(x) + r) or f(norm(x) + norm'(r)), differentiable except in ``mean`` and ``var``.

    norm(x) is weight * (x - mean) / sqrt(var + eps) + bias.

    Args:
        x: ``[B, C, *]`` in float32, float64, float16 or bfloat16.
        norm: weight and bias, ``[C]``: the statistics are those of the batch, as in training. With mean and
            var after them, ``[C]``, these statistics are used.
        eps: a value added to the variance.
        activation: f, a key of ``ACTIVATIONS``: "relu", "pwlu", the name of a pointwise op, or "pwlu_phase1":
            ReLU, with gradients of zero for PWLU's parameters.
        parameters: the parameters of f, in the order of its op's arguments.
        added: nothing; or r, with the shape and dtype of ``x``; or r and the same tensors of its own norm as
            ``norm`` has.
        added_eps: ``eps`` of the norm of r.

    Returns:
        y, with the dtype and memory layout of ``x``, and the statistics of the batch in float32 (float64 for
        float64), which are not differentiable: mean and population variance, ``[2, C]``, followed by those of
        r, ``[4, C]``, if r has a norm; ``[0, C]`` if the statistics are given.

    Raises:
        ValueError: a shape or dtype is not one of those above, ``norm``, ``added`` or ``parameters`` has the
            wrong number of tensors, or there is no such activation.
    """
    y, statistics = torch.ops.pwlu_det.norm_activation(x, norm, eps, added, added_eps, activation, parameters)
    return y, statistics.detach()


def _check(op, x, norm, eps, added, added_eps, activation, parameters, statistics=False, **others) -> None:
    """Raise ValueError as :func:`norm_activation` describes; ``statistics``: mean and var must be given."""
    if len(norm) != 4 and (statistics or len(norm) != 2):
        allowed = "weight, bias, mean and var are needed"
        raise ValueError(
            f"{op}: norm has {len(norm)} tensors; {'' if statistics else 'weight and bias, or '}{allowed}"
        )
    if len(added) not in (0, 1, len(norm) + 1):
        raise ValueError(
            f"{op}: added has {len(added)} tensors; it may have a tensor, and then the same tensors of its "
            "norm as norm has"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: there is no activation '{activation}'")
    shapes = ACTIVATIONS[activation]
    if len(parameters) != len(shapes):
        raise ValueError(f"{op}: {activation} has {len(shapes)} parameters, not {len(parameters)}")
    named = {"x": ("B C *", x), **{name: ("x", value) for name, value in others.items()}}
    named.update({"eps": ("float", eps), "added_eps": ("float", added_eps)})
    for table, values in ((_NORM, norm), (_ADDED, added), (shapes, parameters)):
        named.update({name: (shape, value) for (name, shape), value in zip(table.items(), values)})
    check_arguments(
        op, {name: shape for name, (shape, _) in named.items()}, [value for _, value in named.values()]
    )


def _check_backward(grad, *arguments) -> None:
    _check("norm_activation_backward", *arguments, statistics=True, grad=grad)


# --- plain torch, for every device without registered kernels -----------------------------------


def _like(x: Tensor, values: Tensor) -> Tensor:
    return torch.empty_like(x).copy_(values)


define_schema("norm_activation", f"({_ARGUMENTS}) -> (Tensor, Tensor)")
define_schema(
    "norm_activation_backward",
    f"(Tensor grad, {_ARGUMENTS}, bool batch_statistics, bool[2] output_mask) -> "
    "(Tensor, Tensor, Tensor, Tensor[])",
)


@torch.library.impl("pwlu_det::norm_activation", "CompositeExplicitAutograd")
def _plain(x, *others):
    _check("norm_activation", x, *others)
    y, statistics = plain_norm_activation(x, *others)
    return _like(x, y), statistics


@torch.library.register_fake("pwlu_det::norm_activation")
def _fake(x, norm, eps, added, *others):
    _check("norm_activation", x, norm, eps, added, *others)
    count = 0 if len(norm) == 4 else 4 if len(added) > 1 else 2
    return torch.empty_like(x), x.new_empty(count, x.shape[1], dtype=compute_dtype(x.dtype))


@torch.library.impl("pwlu_det::norm_activation_backward", "CompositeExplicitAutograd")
def _plain_backward(
    grad, x, norm, eps, added, added_eps, activation, parameters, batch_statistics, output_mask
):
    _check_backward(grad, x, norm, eps, added, added_eps, activation, parameters)
    norms, z = apply_norms(x, norm, eps, added, added_eps)
    wide = grad.to(z.dtype)
    if activation in RELU:
        dz = torch.where(z > 0, wide, 0.0)
        of_parameters = [torch.zeros_like(p) if output_mask[1] else p.new_empty(0) for p in parameters]
    else:
        backward = getattr(torch.ops.pwlu_det, f"{activation}_backward")
        dz, *of_parameters = backward(wide, z, *parameters, output_mask)
    empty = x.new_empty(0)
    if not output_mask[0]:
        return empty, z.new_empty(0, x.shape[1]), x.new_empty(0), of_parameters
    grads = [own.backward(dz, batch_statistics) for own in norms]
    of_added = x.new_empty(0)
    if added:
        of_added = _like(added[0], grads[1][0] if len(norms) > 1 else dz)
    return _like(x, grads[0][0]), torch.stack([v for own in grads for v in own[1:]]), of_added, of_parameters


@torch.library.register_fake("pwlu_det::norm_activation_backward")
def _fake_backward(
    grad, x, norm, eps, added, added_eps, activation, parameters, batch_statistics, output_mask
):
    _check_backward(grad, x, norm, eps, added, added_eps, activation, parameters)
    with_x, with_parameters = output_mask
    rows = (4 if len(added) > 1 else 2) if with_x else 0
    return (
        torch.empty_like(x) if with_x else x.new_empty(0),
        x.new_empty(rows, x.shape[1], dtype=compute_dtype(x.dtype)),
        torch.empty_like(added[0]) if with_x and added else x.new_empty(0),
        [p.new_empty(p.shape if with_parameters else 0) for p in parameters],
    )


@define("norm_statistics", {"x": "B C *"}, results=["2 C"])
def _norm_statistics(x: Tensor) -> Tensor:
    return torch.stack(mean_and_variance(x.to(compute_dtype(x.dtype))))


# --- derivatives --------------------------------------------------------------------------------

_OP = torch.ops.pwlu_det.norm_activation.default
_LIBRARY = torch.library.Library("pwlu_det", "FRAGMENT")


class Arguments(NamedTuple):
    """The arguments that are not tensors, and the number of tensors in each list."""

    eps: float
    added_eps: float
    activation: str
    sizes: tuple[int, int, int]

    def __call__(self, function: Callable, x: Tensor, *tensors: Tensor):
        """Call a function with the arguments of the op; ``tensors`` are those of the lists."""
        norm, added, parameters = self.lists(tensors)
        return function(x, norm, self.eps, added, self.added_eps, self.activation, parameters)

    def lists(self, values: Sequence) -> list[list]:
        values = iter(values)
        return [list(itertools.islice(values, size)) for size in self.sizes]

    def output_mask(self, needed: Sequence[bool]) -> tuple[bool, bool]:
        """The mask of the backward op; ``needed`` has one value for each tensor."""
        num_inputs = 1 + self.sizes[0] + self.sizes[1]
        return any(needed[:num_inputs]), any(needed[num_inputs:])

    def flatten(self, tensors: Sequence[Tensor], of_x, of_norms, of_added, of_parameters) -> list:
        """The results of the backward op in the order of the tensors; None for mean and var."""
        norm, added, _ = self.lists(tensors[1:])

        def of_norm(rows: Tensor, own: Sequence[Tensor]) -> list:
            grads = [row.to(tensor.dtype) for row, tensor in zip(rows, own)]
            return [*grads, *[None] * (len(own) - len(grads))]

        results = [of_x, *of_norm(of_norms[:2], norm)]
        if added:
            results += [of_added, *of_norm(of_norms[2:], added[1:])]
        return [*results, *of_parameters]


class _NormActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, keyset, arguments, *tensors):
        y, statistics = arguments(functools.partial(_call_op, keyset), *tensors)
        ctx.arguments = arguments
        ctx.save_for_backward(statistics, *tensors)
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)
        return y, statistics

    @staticmethod
    def backward(ctx, grad, _of_statistics):
        needed = ctx.needs_input_grad[2:]
        if grad is None:
            return None, None, *[None] * len(needed)
        statistics, *tensors = ctx.saved_tensors
        if torch.is_grad_enabled() or is_transformed(tensors):  # double backward, through the single steps

            def steps(*values):
                return ctx.arguments(plain_norm_activation, *values)[0].to(grad.dtype)

            grads = vjp(steps, tensors, [grad])
        else:
            grads = _gradients(grad, statistics, tensors, ctx.arguments, needed)
        return None, None, *(value if need else None for value, need in zip(grads, needed))


def _gradients(grad, statistics, tensors, arguments: Arguments, needed: Sequence[bool]) -> list:
    """The gradients of all tensors, flattened."""
    batch_statistics, mask = arguments.sizes[0] == 2, arguments.output_mask(needed)

    def backward(x, norm, eps, added, *others):
        if batch_statistics:
            norm, added = [*norm, *statistics[:2]], [*added, *statistics[2:]]
        op = torch.ops.pwlu_det.norm_activation_backward
        return op(grad, x, norm, eps, added, *others, batch_statistics, mask)

    return arguments.flatten(tensors, *arguments(backward, *tensors))


def _call_op(keyset, *values):
    with torch._C._AutoDispatchBelowAutograd():
        return _OP.redispatch(keyset & torch._C._after_autograd_keyset, *values)


def _transformed(x, *others):
    """The op for autograd and torch.func to transform."""
    _check("norm_activation", x, *others)
    y, statistics = plain_norm_activation(x, *others)
    return y.to(x.dtype), statistics.detach()


def _autograd(keyset, x, norm, eps, added, added_eps, activation, parameters):
    tensors = (x, *norm, *added, *parameters)
    if is_transformed(tensors):
        return _transformed(x, norm, eps, added, added_eps, activation, parameters)
    if torch.is_grad_enabled() and torch._C._any_requires_grad(*tensors):
        arguments = Arguments(eps, added_eps, activation, (len(norm), len(added), len(parameters)))
        return _NormActivation.apply(keyset, arguments, *tensors)
    return _call_op(keyset, x, norm, eps, added, added_eps, activation, parameters)


_LIBRARY.impl("norm_activation", _autograd, "Autograd", with_keyset=True)
_LIBRARY.impl("norm_activation", _transformed, "FuncTorchBatched")
