"""Parameters: written in place, and hidden from an optimizer that has them in its groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer


def version_of(tensor: Tensor) -> int:
    """The version counter, which in-place operations increment; -1 for inference tensors, which have none."""
    return -1 if tensor.is_inference() else tensor._version


def write_in_place(parameter: Tensor, value: Tensor) -> None:
    """Copy in place. For a sharded parameter (FSDP2), all processes must pass the same full value."""
    if hasattr(parameter, "device_mesh"):
        value = dist.tensor.distribute_tensor(value, parameter.device_mesh, parameter.placements)
    parameter.copy_(value)


def hide_while_stepping(
    optimizer: Optimizer, find: Callable[[], Iterable[nn.Parameter]]
) -> Callable[[], None]:
    """Remove the parameters returned by ``find()`` from the optimizer's groups during each step.

    They are then unaffected by gradient clipping, weight decay and momentum.

    Returns:
        A function that undoes this.
    """
    # One object per optimizer: two separate ones would restore the groups in the wrong order.
    if not hasattr(optimizer, "hidden_parameters"):
        optimizer.hidden_parameters = _HiddenParameters(optimizer)
    optimizer.hidden_parameters.finders.append(find)

    def undo() -> None:
        optimizer.hidden_parameters.finders.remove(find)
        optimizer.hidden_parameters.put_back()  # after a step that raised
        if not optimizer.hidden_parameters.finders:
            optimizer.hidden_parameters.remove()
            del optimizer.hidden_parameters

    return undo


class _HiddenParameters:
    """The parameters that one or more callers hide from an optimizer."""

    def __init__(self, optimizer: Optimizer):
        self.finders: list[Callable[[], Iterable[nn.Parameter]]] = []
        self._optimizer = optimizer
        self._whole_groups: list[list[nn.Parameter]] = []
        cls = type(optimizer)
        if not getattr(cls.step, "hooked", False):  # detectron2's clipping classes bypass step hooks
            cls.step = Optimizer.profile_hook_step(cls.step)
            cls.step.hooked = True
        self._handles = (
            optimizer.register_step_pre_hook(lambda *_: self.take_out()),
            optimizer.register_step_post_hook(lambda *_: self.put_back()),
        )

    def take_out(self) -> None:
        if self._whole_groups:  # nested call: the clipping optimizer's step calls that of its base class
            return
        hidden = {p for find in self.finders for p in find()}
        self._whole_groups = [group["params"] for group in self._optimizer.param_groups]
        for group in self._optimizer.param_groups:
            group["params"] = [p for p in group["params"] if p not in hidden]

    def put_back(self) -> None:
        for group, parameters in zip(self._optimizer.param_groups, self._whole_groups):
            group["params"] = parameters
        self._whole_groups = []

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
