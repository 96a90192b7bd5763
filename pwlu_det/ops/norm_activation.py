"""A batch norm followed by an activation as one op: y = f(norm(x)), or y = f(norm(x) + added).

====================================  ===========================================================
``pwlu_det::norm_activation``           y, and the statistics of the batch if they are not given
``pwlu_det::norm_activation_backward``  all gradients in one pass
====================================  ===========================================================

Backward computes the norm's output again, so only ``x`` and ``added`` are saved for it; the input of the
activation is never stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pwlu_det.ops.library import check_arguments, compute_dtype
from pwlu_det.ops.pointwise import TABLE
from pwlu_det.ops.pwlu import PARAMETERS

ACTIVATIONS = {"relu": {}, "pwlu": PARAMETERS, **TABLE}
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
    """f(norm(x)), f(norm(x) + r) or f(norm(x) + norm'(r)), with norm(x) = weight (x - mean) / sqrt(var + eps) + bias.

    It is differentiable in every tensor except ``mean`` and ``var``. Double backward computes the steps one by
    one.

    Args:
        x: ``[B, C, *]`` in float32, float64, float16 or bfloat16.
        norm: weight and bias, ``[C]``: the statistics are those of the batch, as in training. With mean and
            var after them, ``[C]``, these statistics are used.
        eps: a value added to the variance.
        activation: f, a key of ``ACTIVATIONS``: "relu", "pwlu", or the name of a pointwise op.
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
    y, statistics = torch.ops.pwlu_det.norm_activation(
        x, norm, eps, added, added_eps, activation, parameters
    )
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


# --- plain torch, for every device without registered kernels -----------------------------------


def _channel(values: Tensor, x: Tensor) -> Tensor:
    """``[C]`` as ``[C, 1, ...]``, in the dtype of ``x``."""
    return values.to(x.dtype).view(-1, *[1] * (x.dim() - 2))


def _sum(values: Tensor) -> Tensor:
    return values.sum([d for d in range(values.dim()) if d != 1])


class _Norm:
    """A norm in plain torch, differentiable, applied to ``x`` in the compute dtype."""

    def __init__(self, x: Tensor, norm: Sequence[Tensor], eps: float):
        self.x = x.to(compute_dtype(x.dtype))
        weight, bias, *statistics = norm
        self.mean, self.var = statistics or self._statistics()
        self.rstd = (self.var.to(self.x.dtype) + eps).rsqrt()
        self.normal = (self.x - _channel(self.mean, self.x)) * _channel(self.rstd, self.x)
        self.weight = _channel(weight, self.x)
        self.output = self.normal * self.weight + _channel(bias, self.x)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        if self.x.numel() == 0:
            return self.x.new_zeros(2, self.x.shape[1]).unbind()
        mean = _sum(self.x) / self.count
        return mean, _sum((self.x - _channel(mean, self.x)).square()) / self.count

    @property
    def count(self) -> int:
        return max(1, self.x.numel() // self.x.shape[1])

    def backward(self, grad: Tensor, batch_statistics: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of x, weight and bias."""
        by_weight, by_bias = _sum(grad * self.normal), _sum(grad)
        if batch_statistics:  # they depend on every element, too
            mean = self.normal * _channel(by_weight / self.count, grad) + _channel(by_bias / self.count, grad)
            grad = grad - mean
        return grad * self.weight * _channel(self.rstd, grad), by_weight, by_bias


def _norms(x, norm, eps, added, added_eps) -> tuple[list[_Norm], Tensor]:
    """The norms, and the input of the activation in the compute dtype."""
    norms = [_Norm(x, norm, eps)]
    z = norms[0].output
    if len(added) == 1:
        z = z + added[0]
    elif added:
        norms.append(_Norm(added[0], added[1:], added_eps))
        z = z + norms[1].output
    return norms, z


def _forward(x, norm, eps, added, added_eps, activation, parameters) -> tuple[Tensor, Tensor]:
    norms, z = _norms(x, norm, eps, added, added_eps)
    y = z.relu() if activation == "relu" else getattr(torch.ops.pwlu_det, activation)(z, *parameters)
    statistics = [value for own in norms for value in (own.mean, own.var) if len(norm) == 2]
    return y, torch.stack(statistics) if statistics else z.new_zeros(0, x.shape[1])


def _like(x: Tensor, values: Tensor) -> Tensor:
    return torch.empty_like(x).copy_(values)


torch.library.define("pwlu_det::norm_activation", f"({_ARGUMENTS}) -> (Tensor, Tensor)")
torch.library.define(
    "pwlu_det::norm_activation_backward",
    f"(Tensor grad, {_ARGUMENTS}, bool batch_statistics, bool[2] output_mask) -> "
    "(Tensor, Tensor, Tensor, Tensor[])",
)


@torch.library.impl("pwlu_det::norm_activation", "CompositeExplicitAutograd")
def _plain(x, *others):
    _check("norm_activation", x, *others)
    y, statistics = _forward(x, *others)
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
    _check(
        "norm_activation_backward",
        *(x, norm, eps, added, added_eps, activation, parameters),
        statistics=True,
        grad=grad,
    )
    norms, z = _norms(x, norm, eps, added, added_eps)
    wide = grad.to(z.dtype)
    if activation == "relu":
        dz, of_parameters = torch.where(z > 0, wide, 0.0), []
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
    _check(
        "norm_activation_backward",
        *(x, norm, eps, added, added_eps, activation, parameters),
        statistics=True,
        grad=grad,
    )
    with_x, with_parameters = output_mask
    rows = (4 if len(added) > 1 else 2) if with_x else 0
    return (
        torch.empty_like(x) if with_x else x.new_empty(0),
        x.new_empty(rows, x.shape[1], dtype=compute_dtype(x.dtype)),
        torch.empty_like(added[0]) if with_x and added else x.new_empty(0),
        [p.new_empty(p.shape if with_parameters else 0) for p in parameters],
    )


# --- autograd -----------------------------------------------------------------------------------


def _save(ctx, inputs, output):
    x, norm, ctx.eps, added, ctx.added_eps, ctx.activation, parameters = inputs
    ctx.sizes = len(norm), len(added), len(parameters)
    ctx.save_for_backward(output[1], x, *norm, *added, *parameters)
    ctx.set_materialize_grads(False)  # only y has a gradient


def _autograd(ctx, grad, _grad_statistics):
    if grad is None:
        return None, *([None] * n if n is not None else None for n in _lists(ctx, ctx.sizes))
    statistics, x, *saved = ctx.saved_tensors
    ends = ctx.sizes[0], ctx.sizes[0] + ctx.sizes[1]
    norm, added, parameters = saved[: ends[0]], saved[ends[0] : ends[1]], saved[ends[1] :]
    if torch.is_grad_enabled():
        of_x, *of_lists = _differentiable_gradients(ctx, grad, x, norm, added, parameters)
        return of_x, *_lists(ctx, of_lists)
    batch_statistics = len(norm) == 2
    if batch_statistics:
        norm = [*norm, *statistics[:2]]
        added = [*added, *statistics[2:]]
    needs_x, needs_norm, _, needs_added, _, _, needs_parameters = ctx.needs_input_grad
    mask = needs_x or any(needs_norm) or any(needs_added), any(needs_parameters)
    of_x, of_norms, of_added, of_parameters = torch.ops.pwlu_det.norm_activation_backward(
        *(grad, x, norm, ctx.eps, added, ctx.added_eps, ctx.activation, parameters, batch_statistics, mask)
    )
    of_lists = []
    for row, tensors, needed in ((0, norm, needs_norm), (2, added[1:], needs_added[1:])):
        grads = [of_norms[row + i].to(tensors[i].dtype) if n else None for i, n in enumerate(needed[:2])]
        of_lists.append(grads + [None] * (len(needed) - len(grads)))
    of_norm, of_added_norm = of_lists
    if added:
        of_added_norm = [of_added if needs_added[0] else None, *of_added_norm]
    of_parameters = [value if needed else None for value, needed in zip(of_parameters, needs_parameters)]
    return of_x if needs_x else None, *_lists(ctx, (of_norm, of_added_norm, of_parameters))


def _lists(ctx, lists) -> tuple:
    """The results for all arguments after x."""
    norm, added, parameters = lists
    return norm, None, added, None, None, parameters


def _differentiable_gradients(ctx, grad, x, norm, added, parameters):
    """The gradients through the single steps, which autograd can differentiate again."""
    needs_x, needs_norm, _, needs_added, _, _, needs_parameters = ctx.needs_input_grad
    tensors, needed = [x, *norm, *added, *parameters], [needs_x, *needs_norm, *needs_added, *needs_parameters]
    tensors = [tensor.view_as(tensor) for tensor in tensors]  # the same tensor may occur twice
    lists, start = [], 1
    for size in ctx.sizes:
        lists.append(tensors[start : start + size])
        start += size
    y, _ = _forward(tensors[0], lists[0], ctx.eps, lists[1], ctx.added_eps, ctx.activation, lists[2])
    wanted = [tensor for tensor, need in zip(tensors, needed) if need]
    found = iter(torch.autograd.grad(y, wanted, grad.to(y.dtype), create_graph=True, allow_unused=True))
    grads = [next(found) if need else None for need in needed]
    results, start = [grads[0]], 1
    for size in ctx.sizes:
        results.append(grads[start : start + size])
        start += size
    return results


torch.library.register_autograd("pwlu_det::norm_activation", _autograd, setup_context=_save)
