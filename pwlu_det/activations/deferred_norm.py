"""The output of a norm that is not computed yet, so that an activation can compute both as one op."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pwlu_det import ops
from pwlu_det.activations.modules import is_plain_frozen_norm, is_plain_module, sync_group, track_statistics
from pwlu_det.ops.library import DTYPES, compute_dtype
from pwlu_det.ops.norm_activation import ACTIVATIONS

DEVICES = {
    device
    for device in ("cpu", "cuda")
    if torch._C._dispatch_has_kernel_for_dispatch_key("pwlu_det::norm_activation", device.upper())
}
"""The devices with a kernel; plain torch is slower than the modules."""

_OPS = {getattr(torch.ops.pwlu_det, name): name for name in ACTIVATIONS if name != "relu"}
_RELUS = (F.relu, torch.relu, torch.relu_)
_ADDITIONS = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)

# Attributes of the tensor that are those of the norm's input, so that reading them does not compute it.
_SHARED = {"device", "dim", "dtype", "is_cuda", "is_meta", "layout", "ndim", "numel", "shape", "size"}
_SHARED |= {"new_empty", "new_full", "new_ones", "new_zeros"}

# Operators that Python looks up in the class. Those of additions are defined below.
_OPERATORS = (
    *("eq", "ne", "lt", "le", "gt", "ge", "neg", "abs", "invert", "sub", "rsub", "mul", "rmul", "truediv"),
    *("rtruediv", "floordiv", "mod", "pow", "rpow", "matmul", "rmatmul", "and", "or", "xor", "getitem"),
    *("setitem", "len", "iter", "bool", "float", "int"),
)


class NormCall:
    """A call ``norm(x)`` that has not been made yet.

    Attributes:
        batch_statistics: whether the statistics are those of the batch.
        group: the process group over which they are pooled, or None.
        fused, called: whether it has been computed by an op together with an activation, or by the norm.
    """

    def __init__(self, norm: nn.Module, x: Tensor, batch_statistics: bool):
        self.norm, self.x, self.batch_statistics = norm, x, batch_statistics
        self.group = sync_group(norm) if batch_statistics else None
        self.grad_enabled = torch.is_grad_enabled()
        self.fused = self.called = False

    def tensors(self) -> list[Tensor]:
        """The tensors of the norm, as the op takes them."""
        affine = [self.norm.weight, self.norm.bias]
        return affine if self.batch_statistics else [*affine, self.norm.running_mean, self.norm.running_var]

    def compute(self) -> Tensor:
        """The output of the norm, a new tensor."""
        with torch.set_grad_enabled(self.grad_enabled):
            is_first, self.called = not (self.fused or self.called), True
            if is_first:
                return _call(self.norm, self.x)
            # Not by the norm, which would update its running statistics once more. PReLU with a slope of 1 is
            # the identity.
            slope = self.x.new_ones(self.x.shape[1], dtype=compute_dtype(self.x.dtype))
            return _call_op([self], [], "prelu", [slope])[0]


class DeferredNorm:
    """``norm(x)``, or ``norm(x)`` plus a tensor or another deferred norm, not yet computed.

    The op of an activation computes it together with its own result (:func:`pwlu_det.ops.norm_activation`).
    All other functions and methods of tensors work on the tensor, which the modules then compute. It is not a
    ``torch.Tensor``: what torch does not dispatch, such as ``torch.autograd.Function.apply``, needs
    :meth:`tensor`.
    """

    def __init__(self, calls: list[NormCall], added: list[Tensor], fuse_relu: bool):
        self._calls, self._added, self._fuse_relu = calls, added, fuse_relu
        self._tensor: Tensor | None = None

    def tensor(self) -> Tensor:
        """The tensor, computed at the first call."""
        if self._tensor is None:
            result, *others = (call.compute() for call in self._calls)
            for other in (*others, *self._added):
                result = result.add_(other)  # in place, as in detectron2: norms do not save their output
            self._tensor = result
        return self._tensor

    def __getattr__(self, name: str):
        return getattr(self._calls[0].x if name in _SHARED else self.tensor(), name)

    @classmethod
    def __torch_function__(cls, function, _types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = None
        if function in _ADDITIONS and not kwargs:
            result = _sum(*args)
        elif args and isinstance(args[0], cls):
            if function in _OPS and not kwargs:
                result = args[0]._activate(_OPS[function], args[1:])
            elif function in _RELUS:
                result = args[0]._relu(function is torch.relu_ or kwargs.get("inplace", False))
        if result is not None:
            return result
        args, kwargs = tree_map(lambda v: v.tensor() if isinstance(v, cls) else v, (args, kwargs))
        return function(*args, **kwargs)

    def _is_computed(self) -> bool:
        return self._tensor is not None or any(call.fused or call.called for call in self._calls)

    def _is_single(self) -> bool:
        """Whether it is ``norm(x)``, to which something can be added."""
        return len(self._calls) == 1 and not self._added and not self._is_computed()

    def _activate(self, name: str, parameters: Sequence[Tensor]) -> Tensor | tuple[Tensor, ...] | None:
        """The results of an activation's op, or None if it cannot be fused."""
        first, *others = self._calls
        alike = all((c.batch_statistics, c.group) == (first.batch_statistics, first.group) for c in others)
        if self._is_computed() or not alike or first.grad_enabled != torch.is_grad_enabled():
            return None
        if name == "pwlu_phase1" and (others or self._added or not first.batch_statistics):
            return None  # the statistics of its input do not follow from the norm
        y, statistics, count = _call_op(self._calls, self._added, name, parameters)
        for i, call in enumerate(self._calls):
            call.fused = True
            if call.batch_statistics:
                track_statistics(call.norm, statistics[2 * i], statistics[2 * i + 1], count)
        if name == "pwlu_phase1":
            return y, *_moments(first, statistics[1], len(parameters[0]))
        return y

    def _relu(self, in_place: bool) -> Tensor | None:
        y = self._activate("relu", []) if self._fuse_relu else None
        if in_place:
            self._tensor = y
        return y

    def __add__(self, other):
        total = _sum(self, other)
        return self.tensor() + other if total is None else total

    __radd__ = __add__

    def __iadd__(self, other):
        total = _sum(self, other)
        if total is None:
            self._tensor = self.tensor().add_(other)
        else:
            self._calls, self._added = total._calls, total._added
        return self

    __hash__ = object.__hash__


def _operator(name: str):
    return lambda self, *others: getattr(self.tensor(), name)(*others)


for _name in _OPERATORS:
    setattr(DeferredNorm, f"__{_name}__", _operator(f"__{_name}__"))


def _sum(a, b) -> DeferredNorm | None:
    """The sum of two terms, of which one is deferred; None if the sum cannot be."""
    first, second = (a, b) if isinstance(a, DeferredNorm) else (b, a)
    if not first._is_single() or (isinstance(second, DeferredNorm) and not second._is_single()):
        return None
    (own,) = first._calls
    calls, added = (second._calls, []) if isinstance(second, DeferredNorm) else ([], [second])
    term = calls[0].x if calls else second
    if not is_fusible_tensor(term) or (term.shape, term.dtype) != (own.x.shape, own.x.dtype):
        return None
    return DeferredNorm([own, *calls], added, first._fuse_relu)


def _call_op(
    calls: Sequence[NormCall], added: list[Tensor], name: str, parameters: Sequence[Tensor]
) -> tuple[Tensor, Tensor, int | Tensor]:
    """The result of the op, the statistics of the batch, and the number of elements per channel."""
    first, *others = calls
    added_eps = 0.0
    if others:
        added, added_eps = [others[0].x, *others[0].tensors()], others[0].norm.eps
    arguments = first.x, first.tensors(), first.norm.eps, name, parameters, added, added_eps
    if first.group is not None:
        return ops.norm_activation_sync(*arguments, first.group)
    return *ops.norm_activation(*arguments), first.x.numel() // first.x.shape[1]


def _moments(call: NormCall, var: Tensor, num_functions: int) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared deviations of a batch norm's output, without looking at it.

    With weight gamma and bias beta, a channel of it has mean beta and variance gamma^2 var / (var + eps).
    """
    norm, count = call.norm, call.x.numel() // call.x.shape[1]
    mean, weight = norm.bias.detach().to(var.dtype, copy=True), norm.weight.detach().to(var.dtype)
    deviation = count * weight.square() * (var / (var + norm.eps))  # NaN if var is infinite
    if num_functions == 1:
        deviation = (deviation + count * (mean - mean.mean()).square()).sum(0, keepdim=True)
        mean = mean.mean(0, keepdim=True)
    return mean, deviation


# --- which norms can be deferred ----------------------------------------------------------------


class DeferringNorm:
    """A norm whose output is deferred where that is possible.

    Attributes:
        fuse_relu: whether ReLU is an activation that it waits for.
        calls: if it is a list, all deferred calls are appended to it.
    """

    fuse_relu: bool = False
    calls: list[NormCall] | None = None

    def forward(self, x: Tensor) -> Tensor | DeferredNorm:
        deferred = defer(self, x, self.fuse_relu)
        if self.calls is not None and isinstance(deferred, DeferredNorm):
            self.calls += deferred._calls
        return deferred

    def compute(self, x: Tensor) -> Tensor:
        return super().forward(x)


class DeferringBatchNorm2d(DeferringNorm, nn.BatchNorm2d):
    """``nn.BatchNorm2d``, deferred."""


class DeferringSyncBatchNorm(DeferringNorm, nn.SyncBatchNorm):
    """``nn.SyncBatchNorm``, deferred."""


_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, DeferringBatchNorm2d, DeferringSyncBatchNorm)


def defer(norm: nn.Module, x: Tensor, fuse_relu: bool) -> DeferredNorm | Tensor:
    """``norm(x)``, deferred if it is a batch norm that the op supports."""
    traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
    batch_statistics = None if traced or not is_fusible_tensor(x) else _uses_batch_statistics(norm, x)
    if batch_statistics is None:
        return _call(norm, x)
    return DeferredNorm([NormCall(norm, x, batch_statistics)], [], fuse_relu)


def is_fusible_tensor(x) -> bool:
    plain = type(x) in (Tensor, nn.Parameter)  # not a fake tensor, for example
    return (
        plain
        and x.layout == torch.strided
        and x.dim() == 4
        and x.device.type in DEVICES
        and x.dtype in DTYPES
    )


def _call(norm: nn.Module, x: Tensor) -> Tensor:
    return norm.compute(x) if isinstance(norm, DeferringNorm) else norm(x)


def _uses_batch_statistics(norm: nn.Module, x: Tensor) -> bool | None:
    """Whether a norm uses the statistics of the batch or fixed ones; None if it cannot be fused."""
    frozen = is_plain_frozen_norm(norm)
    if not frozen and not is_plain_module(norm, *_BATCH_NORMS):
        return None
    if norm.weight is None or norm.bias is None or len(norm.weight) != x.shape[1] or norm.eps == 0:
        return None  # torch's own norm treats a variance of 0 specially
    tensors = [norm.weight, norm.bias]
    tracked = norm.running_mean is not None and norm.running_var is not None
    if tracked:
        tensors += [norm.running_mean, norm.running_var]
    if any(tensor.dtype not in (x.dtype, compute_dtype(x.dtype)) for tensor in tensors):
        return None
    if frozen or (tracked and not norm.training):
        return False
    if tracked != norm.track_running_stats:
        return None
    # The norm itself raises an error for a single element. With several processes, all must decide alike.
    return True if x.numel() > x.shape[1] or sync_group(norm) is not None else None
