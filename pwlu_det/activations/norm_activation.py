"""A norm and an activation, called as one op where that is possible, and as modules elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pwlu_det import ops
from pwlu_det.activations.acon import AconA, AconB, AconC, MetaAcon, Swish
from pwlu_det.activations.apl import APL
from pwlu_det.activations.modules import is_plain_frozen_norm, is_plain_module
from pwlu_det.activations.pau import PAU, RPAU
from pwlu_det.activations.pwlu import PWLU
from pwlu_det.activations.rectifiers import Mixture, PReLU, SReLU
from pwlu_det.activations.simple import ReLU
from pwlu_det.activations.slaf import SLAF
from pwlu_det.ops.library import DTYPES, compute_dtype
from pwlu_det.ops.norm_activation import ACTIVATIONS

_OPS: dict[type[nn.Module], str] = {
    APL: "apl",
    AconA: "swish",
    AconB: "acon_b",
    AconC: "acon_c",
    Mixture: "mixture",
    PAU: "pau",
    PReLU: "prelu",
    PWLU: "pwlu",
    SLAF: "slaf",
    SReLU: "srelu",
    Swish: "swish",
}
"""The op of each class. Its parameters are attributes with the names of the op's arguments."""

_DEVICES = {
    device
    for device in ("cpu", "cuda")
    if torch._C._dispatch_has_kernel_for_dispatch_key("pwlu_det::norm_activation", device.upper())
}
"""The devices with a kernel; plain torch is slower than the modules."""


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
    - a norm is not ``nn.BatchNorm2d``, ``nn.SyncBatchNorm`` in evaluation or FrozenBatchNorm2d, has no weight
      and bias, or only one of two norms uses the statistics of the batch;
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
    fused = _fused(norm, activation, x, added, added_norm, fuse_relu)
    if fused is not None:
        return fused
    z = norm(x)
    if added is not None:
        shortcut = added if added_norm is None else added_norm(added)
        # In place, as in detectron2, if nothing else can have kept the norm's output.
        known = isinstance(norm, (_BatchNorm, nn.GroupNorm)) and is_plain_module(norm, type(norm))
        z = z.add_(shortcut) if known else z + shortcut
    return activation(z)


def _fused(norm, activation, x, added, added_norm, fuse_relu) -> Tensor | None:
    """The result of the op, or None if it does not apply."""
    norms = [norm] if added_norm is None else [norm, added_norm]
    tensors = [x] if added is None else [x, added]
    if not all(map(_is_fusible_tensor, tensors)) or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return None
    if added is not None and (added.shape != x.shape or added.dtype != x.dtype):
        return None
    uses_batch = {_uses_batch_statistics(own, tensor) for own, tensor in zip(norms, tensors)}
    if len(uses_batch) > 1 or None in uses_batch:
        return None
    (batch_statistics,) = uses_batch
    name = _op_of(activation, fuse_relu, follows=batch_statistics and added is None)
    if name is None:
        return None
    lists = [_norm_tensors(own, batch_statistics) for own in norms]
    parameters = [getattr(activation, parameter) for parameter in ACTIVATIONS[name]]
    if name == "swish" and parameters == [None]:
        parameters = [x.new_ones(x.shape[1], dtype=compute_dtype(x.dtype))]
    if not all(tensor.dtype in (x.dtype, compute_dtype(x.dtype)) for own in lists for tensor in own):
        return None
    added_list = [] if added is None else [added, *(lists[1] if added_norm is not None else [])]
    added_eps = 0.0 if added_norm is None else added_norm.eps
    y, statistics = ops.norm_activation(x, lists[0], norm.eps, name, parameters, added_list, added_eps)
    if batch_statistics:
        count = x.numel() // x.shape[1]
        for i, own in enumerate(norms):
            _update_running_statistics(own, *statistics[2 * i : 2 * i + 2], count)
        if name == "pwlu_phase1":
            activation.collect_from_norm(norm, statistics[1], count)
    return y


def _is_fusible_tensor(x: Tensor) -> bool:
    plain = type(x) in (Tensor, nn.Parameter)  # not a fake tensor, for example
    return (
        plain
        and x.layout == torch.strided
        and x.dim() == 4
        and x.device.type in _DEVICES
        and x.dtype in DTYPES
    )


def _op_of(activation: nn.Module, fuse_relu: bool, follows: bool) -> str | None:
    """The name of the op for an activation, or None.

    ``follows`` says whether the statistics of the activation's input follow from the norm.
    """
    kind = type(activation)
    if not is_plain_module(activation, kind):
        return None
    if kind is PWLU and activation.collects():
        return "pwlu_phase1" if follows and activation.holds_relu() else None
    if kind in (nn.ReLU, ReLU):
        return "relu" if fuse_relu else None
    if kind is RPAU:
        return None if activation.training else "pau"
    if kind is MetaAcon:
        return "meta_acon_pixel" if activation.mode == "pixel" else None
    return _OPS.get(kind)


# --- norms --------------------------------------------------------------------------------------


def _uses_batch_statistics(norm: nn.Module, x: Tensor) -> bool | None:
    """Whether a norm uses the statistics of the batch or fixed ones; None if it cannot be fused."""
    frozen = is_plain_frozen_norm(norm)
    if not frozen and not is_plain_module(norm, nn.BatchNorm2d, nn.SyncBatchNorm):
        return None
    if norm.weight is None or norm.bias is None or norm.num_features != x.shape[1]:
        return None
    if frozen:
        return False
    if not norm.training and norm.running_mean is not None and norm.running_var is not None:
        return False
    tracked = norm.running_mean is not None and norm.running_var is not None
    if type(norm) is nn.SyncBatchNorm or tracked != norm.track_running_stats:
        return None
    return True if x.numel() > x.shape[1] else None  # the module raises an error


def _norm_tensors(norm: nn.Module, batch_statistics: bool) -> list[Tensor]:
    affine = [norm.weight, norm.bias]
    return affine if batch_statistics else [*affine, norm.running_mean, norm.running_var]


@torch.no_grad()
def _update_running_statistics(norm: nn.Module, mean: Tensor, var: Tensor, count: int) -> None:
    """As ``nn.BatchNorm2d`` does. ``var`` is the population variance; the buffer has the unbiased one."""
    if not norm.training or not norm.track_running_stats:
        return
    momentum = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if momentum is None:  # a cumulative average
            momentum = 1.0 / float(norm.num_batches_tracked)
    momentum = 0.0 if momentum is None else momentum
    for running, new in ((norm.running_mean, mean), (norm.running_var, var * (count / (count - 1)))):
        running.lerp_(new.to(running.dtype), momentum)
