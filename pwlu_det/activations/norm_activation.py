"""A norm and an activation, called as one op where that is possible, and as modules elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pwlu_det.activations.acon import AconA, AconB, AconC, MetaAcon, Swish
from pwlu_det.activations.apl import APL
from pwlu_det.activations.deferred_norm import (
    DeferringBatchNorm2d,
    DeferringNorm,
    DeferringSyncBatchNorm,
    NormCall,
    defer,
)
from pwlu_det.activations.modules import evaluating, is_plain_module
from pwlu_det.activations.pau import PAU, RPAU
from pwlu_det.activations.pwlu import PWLU
from pwlu_det.activations.rectifiers import Mixture, PReLU, SReLU
from pwlu_det.activations.simple import ReLU
from pwlu_det.activations.slaf import SLAF

_ACTIVATIONS = (
    *(APL, AconA, AconB, AconC, MetaAcon, Mixture, PAU, PReLU, PWLU, RPAU, SLAF, SReLU, Swish),
    *(ReLU, nn.ReLU),
)
"""The activations whose forward gives its input to nothing but ops and functions of torch."""

_DEFERRING = {nn.BatchNorm2d: DeferringBatchNorm2d, nn.SyncBatchNorm: DeferringSyncBatchNorm}


def norm_activation(
    norm: nn.Module,
    activation: nn.Module,
    x: Tensor,
    added: Tensor | None = None,
    added_norm: nn.Module | None = None,
    fuse_relu: bool = False,
) -> Tensor:
    """activation(norm(x)), activation(norm(x) + added) or activation(norm(x) + added_norm(added)).

    If it can, it calls one op (:func:`pwlu_det.ops.norm_activation`), which saves less memory for backward
    and takes less time. Results, gradients and buffers agree with those of the modules to rounding. It calls
    the modules, in this order: norm, added_norm, activation, if

    - ``x`` is not on a device with kernels, or torch traces, exports or compiles the model;
    - the norm is not ``nn.BatchNorm2d``, ``nn.SyncBatchNorm`` or FrozenBatchNorm2d, or has no weight and bias
      (if this holds for one of two norms, only that one is called), or only one of two norms uses the
      statistics of the batch;
    - the activation has no op, such as a registered one of the user, or is a PWLU in phase I whose input has
      statistics that do not follow from the norm (with ``added``, or fixed statistics);
    - one of them is a subclass, or has hooks, parametrizations or a ``forward`` of its own.

    Args:
        norm: a norm of ``x``, ``[B, C, H, W]``.
        activation: an activation.
        added: a tensor with the shape of ``x``, such as the shortcut of a residual block.
        added_norm: the norm of ``added``.
        fuse_relu: also fuse ``nn.ReLU``, which then has the same values to rounding, not bit for bit.

    Returns:
        A new tensor with the shape, dtype and memory layout of ``x``.
    """
    fuse = is_plain_module(activation, *_ACTIVATIONS)
    z = defer(norm, x, fuse_relu) if fuse else norm(x)
    if added is not None:
        if added_norm is not None:
            added = defer(added_norm, added, fuse_relu) if fuse else added_norm(added)
        # In place, as in detectron2, if nothing else can have kept the norm's output.
        known = isinstance(norm, (_BatchNorm, nn.GroupNorm)) and is_plain_module(norm, type(norm))
        if known and isinstance(z, Tensor) and isinstance(added, Tensor):
            z += added
        else:
            z = z + added
    return activation(z)


def fuse_norms(model: nn.Module, *example_inputs, fuse_relu: bool = False) -> list[str]:
    """Let the batch norms of any model be computed together with the activations after them, as one op.

    It runs the model once, in evaluation mode and without gradients. Each ``nn.BatchNorm2d`` or
    ``nn.SyncBatchNorm`` whose output only goes to an activation, perhaps after the addition of a shortcut, is
    from then on deferred until that activation: its class becomes a subclass, which is in
    :mod:`pwlu_det.activations.deferred_norm`. Activations are the modules and ops of this package that have
    kernels, and ReLU with ``fuse_relu``. Parameters, buffers and the keys of the state dict stay the same.
    Results, gradients and buffers agree with those of the model before to rounding.

    In all cases in which :func:`norm_activation` calls the modules, and if a later call of the model uses the
    output in another way, the norm is computed on its own. Hooks of a module that ends with such a norm, such
    as an ``nn.Sequential``, get a :class:`~pwlu_det.activations.deferred_norm.DeferredNorm` as its output. A
    region of reentrant activation checkpointing must not end between such a norm and its activation.

    Args:
        model: a model, with the activations that it will be used with; it is changed in place.
        example_inputs: arguments for one call of it.
        fuse_relu: also fuse ReLU, which then has the same values to rounding, not bit for bit.

    Returns:
        The names of the norms that are now fused; none if the example is on a device without kernels.
    """
    norms = {name: norm for name, norm in model.named_modules() if type(norm) in _DEFERRING}
    for norm in norms.values():
        norm.__class__ = _DEFERRING[type(norm)]
        norm.fuse_relu = fuse_relu
    fused = []
    try:
        calls = _record_calls(model, example_inputs, norms)
        fused = [name for name, own in calls.items() if own and all(c.fused and not c.called for c in own)]
    finally:
        _restore(norm for name, norm in norms.items() if name not in fused)
    return fused


def _record_calls(
    model: nn.Module, example_inputs: Sequence, norms: dict[str, DeferringNorm]
) -> dict[str, list[NormCall]]:
    """Run the model; returns the calls of each norm that were deferred.

    Norms are restored, and removed from ``norms``, if the model does not run with their output deferred.
    """
    while True:
        calls = {name: [] for name in norms}
        for name, norm in norms.items():
            norm.calls = calls[name]
        try:
            with evaluating(model):
                model(*example_inputs)
            return calls
        except Exception:  # it may need the tensor of a deferred norm; another error is raised below
            pending = [name for name, own in calls.items() if not all(c.fused or c.called for c in own)]
            if not pending:
                raise
            _restore(norms.pop(name) for name in pending)
        finally:
            for norm in norms.values():
                del norm.calls


def _restore(norms: Iterable[DeferringNorm]) -> None:
    classes = {deferring: original for original, deferring in _DEFERRING.items()}
    for norm in norms:
        norm.__class__ = classes[type(norm)]
        del norm.fuse_relu
