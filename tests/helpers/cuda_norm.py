"""Cases of a norm followed by an activation for :mod:`cuda_emulation`, and their expected results."""

from __future__ import annotations

import dataclasses

import norm_cases
import torch
from cuda_emulation import (
    BACKWARD,
    BACKWARD_PARAMETERS,
    BACKWARD_X,
    FORWARD,
    Case,
)
from cuda_pointwise import ACTIVATIONS

from pwlu_det.ops.norm_activation import ACTIVATIONS as SHAPES

OPS = FORWARD, BACKWARD, BACKWARD_X, BACKWARD_PARAMETERS
TOLERANCES = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Errors relative to the largest value of a result."""


@dataclasses.dataclass
class NormCase(Case):
    """The parameters are mean, var, weight and bias of the norm, those of the added tensor's norm, and the
    activation's: of PWLU, or one table ``[coefficients, channels]``."""

    call: norm_cases.Case = None
    """The arguments of the op."""

    @property
    def content(self) -> int:
        """0, 1 or 2: nothing is added, a tensor, or a tensor with a norm."""
        return min(2, len(self.call.added))

    def numbers(self, op: int) -> list[int]:
        name, own = self.call.activation, self.parameters[8:]
        last = [0] if not own else [own[0].shape[1] - 1] if name == "pwlu" else None
        last = last or [ACTIVATIONS.index(name), len(own[0])]
        return [*self.layout, self.content, int(len(self.call.norm) == 4), op, *last]

    def buffers(self, op: int) -> list[tuple[torch.Tensor, int]]:
        added = self.call.added[0] if self.call.added else self.x[:0]
        inputs = [*self.inputs(), (self.memory(added), self.offsets[1] * self.x.element_size())]
        rows = torch.full((4 * self.x.shape[1],), torch.nan, dtype=self.parameters[0].dtype)
        by_own = [(torch.full_like(p, torch.nan).flatten(), 0) for p in self.parameters[8:]]
        outputs = [self.output(), self.output(), (rows, 0), *by_own]
        return inputs + {FORWARD: outputs[:1], BACKWARD_X: outputs[:3], BACKWARD_PARAMETERS: by_own}.get(
            op, outputs
        )

    def results(self, op: int, buffers: list[torch.Tensor]) -> list[torch.Tensor]:
        """``[y, mean, var, ...]``, or the gradients in the order of the op's arguments."""
        outputs = buffers[len(self.parameters) + 3 :]
        if op == FORWARD:
            given = len(self.call.norm) == 4
            statistics = [] if given else [*buffers[:2], *(buffers[4:6] if self.content == 2 else [])]
            return [self.from_memory(outputs[0]), *statistics]
        own = [p.shape for p in self.parameters[8:]]
        first = 0 if op == BACKWARD_PARAMETERS else 3
        by_own = [value.view(shape) for value, shape in zip(outputs[first:], own)]
        if op == BACKWARD_PARAMETERS:
            return by_own
        rows = outputs[2].view(4, -1)
        results = [self.from_memory(outputs[0]), *rows[:2]]
        if self.content:
            results += [self.from_memory(outputs[1]), *(rows[2:] if self.content == 2 else [])]
        return results + (by_own if op == BACKWARD else [])


def make_case(
    activation,
    added="nothing",
    given=False,
    shape=(2, 3, 77),
    dtype=torch.float32,
    channels_last=False,
    offsets=(0, 0, 0),
    change=None,
    seed=0,
) -> NormCase:
    """``change`` may alter the arguments of the op."""
    call = norm_cases.make_case(activation, added, given, shape, seed=seed)
    if change:
        change(call)
    call = call.leaves(dtype, torch.promote_types(dtype, torch.float32))
    call = call.with_tensors([tensor.detach() for tensor in call.tensors])
    channels = shape[1]

    def arrays(norm):
        weight, bias, *statistics = norm or [torch.ones(channels), torch.zeros(channels)]
        return [*(statistics or [torch.full((channels,), torch.nan)] * 2), weight, bias]

    own = call.parameters
    if activation in norm_cases.RELU:
        own = []
    elif activation != "pwlu":
        own = [torch.cat([_rows(p, s) for p, s in zip(own, SHAPES[activation].values())])]
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1)).to(dtype)
    parameters = [*arrays(call.norm), *arrays(call.added[1:]), *own]
    return NormCase(call.x, grad, parameters, channels_last, offsets, call)


def _rows(parameter: torch.Tensor, shape: str) -> torch.Tensor:
    """A parameter as ``[coefficients, channels]``."""
    if parameter.dim() == 1:
        return parameter[None]
    return parameter if shape.startswith("S") else parameter.t()


def expected_results(case: NormCase, op: int) -> list[torch.Tensor]:
    """By the op on the CPU in float64, which ``tests/ops`` compares with NumPy."""
    exact = case.call.leaves(torch.float64)
    y, statistics = exact.fused()
    if op == FORWARD:
        return [y, *statistics]
    gradients = list(torch.autograd.grad(y, exact.learned, case.grad.double()))
    own = len(gradients) - len(exact.parameters)
    shapes = SHAPES[exact.activation].values()
    by_own = gradients[own:]
    if exact.activation in norm_cases.RELU:
        by_own = []
    elif exact.activation != "pwlu":
        by_own = [torch.cat([_rows(p, s) for p, s in zip(by_own, shapes)])]
    return {BACKWARD_X: gradients[:own], BACKWARD_PARAMETERS: by_own}.get(op, gradients[:own] + by_own)


def check(case: NormCase, op: int, results: list[torch.Tensor], tolerance: float = 0.0) -> None:
    """Compare every result with the expected one."""
    tolerance = tolerance or TOLERANCES[case.x.dtype]
    for i, (actual, wanted) in enumerate(zip(results, expected_results(case, op), strict=True)):
        assert actual.dtype == (case.x.dtype if actual.shape == case.x.shape else case.parameters[0].dtype)
        wanted = wanted.detach()
        largest = float(wanted.abs().max())
        error = float((actual.double() - wanted.reshape(actual.shape)).abs().max())
        assert error <= tolerance * largest + 1e-30, f"result {i} of op {op}: {error:.3g} of {largest:.3g}"
