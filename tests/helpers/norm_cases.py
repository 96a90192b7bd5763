"""Arguments for norm_activation, and what it computes: in NumPy, and as separate steps in torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import oracle
import oracle_activations
import torch
import torch.nn.functional as F

from pwlu_det.ops.norm_activation import ACTIVATIONS

RELU = ("relu", "pwlu_phase1")
EPS, ADDED_EPS = 1e-5, 1e-3
CONTENTS = ("nothing", "tensor", "norm")
"""What is added to the norm's output."""


def oracle_of(activation: str):
    """The activation in NumPy, of ``x`` and its parameters."""
    if activation in RELU:
        return lambda x, *_parameters: np.maximum(x, 0)
    if activation == "pwlu":
        return lambda x, points, *others: oracle.from_function(
            oracle.forward(oracle.per_function(x, len(points)), points, *others), x.shape
        )
    if activation == "meta_acon_pixel":
        return lambda x, p1, p2: oracle_activations.smooth_maximum(
            oracle_activations.column(p1, x) * x,
            oracle_activations.column(p2, x) * x,
            oracle_activations.sigmoid(x),
        )
    return getattr(oracle_activations, activation)


@dataclass
class Case:
    """Tensors for one call; ``norm`` and ``added`` as the op takes them."""

    activation: str
    x: torch.Tensor
    norm: list[torch.Tensor]
    added: list[torch.Tensor]
    parameters: list[torch.Tensor]

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [self.x, *self.norm, *self.added, *self.parameters]

    @property
    def learned(self) -> list[torch.Tensor]:
        """All tensors but given statistics, in the order of the gradients."""
        return [self.x, *self.norm[:2], *self.added[:3], *self.parameters]

    def with_tensors(self, values: list) -> Case:
        values = iter(values)
        take = lambda count: [next(values) for _ in range(count)]  # noqa: E731
        (x,) = take(1)
        return Case(
            self.activation, x, take(len(self.norm)), take(len(self.added)), take(len(self.parameters))
        )

    def leaves(self, dtype: torch.dtype, parameter_dtype: torch.dtype | None = None) -> Case:
        """A copy whose learned tensors require gradients."""
        maps = {id(self.x), *(id(r) for r in self.added[:1])}
        copies = []
        for tensor in self.tensors:
            own = dtype if id(tensor) in maps else parameter_dtype or dtype
            copies.append(tensor.detach().to(own, copy=True))
        case = self.with_tensors(copies)
        for tensor in case.learned:
            tensor.requires_grad_()
        return case

    def arguments(self) -> tuple:
        return self.x, self.norm, EPS, self.added, ADDED_EPS, self.activation, self.parameters

    def fused(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ops.pwlu_det.norm_activation(*self.arguments())

    def steps(self) -> torch.Tensor:
        """Norm, addition and activation, one by one."""
        z = _batch_norm(self.x, self.norm, EPS)
        if self.added:
            r, *norm = self.added
            z = z + (_batch_norm(r, norm, ADDED_EPS) if norm else r)
        if self.activation in RELU:
            return z.relu() + 0 * sum(p.sum() for p in self.parameters)
        return getattr(torch.ops.pwlu_det, self.activation)(z, *self.parameters)


def _batch_norm(x, norm, eps):
    weight, bias, *statistics = norm
    mean, var = statistics or (None, None)
    return F.batch_norm(x, mean, var, weight, bias, training=not statistics, eps=eps)


def make_case(
    activation: str,
    added: str = "nothing",
    given: bool = False,
    shape=(2, 3, 4, 5),
    layer_wise: bool = False,
    memory_format=torch.contiguous_format,
    seed: int = 0,
) -> Case:
    """In float64."""
    generator = torch.Generator().manual_seed(seed)
    channels = shape[1]

    def normal(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    def norm():
        return [normal(channels), normal(channels)] + (
            [normal(channels), normal(channels).square() + 0.1] if given else []
        )

    sizes = {"C": channels, "P": 1 if layer_wise else channels, "S": 3, "N+1": 9}
    parameters = []
    for name, dims in ACTIVATIONS[activation].items():
        offset = {"left_bound": -1.5, "right_bound": 1.5, "left": -1, "right": 1}.get(name, 0)
        parameters.append(0.3 * normal(*(sizes[d] if d in sizes else int(d) for d in dims.split())) + offset)
    x = 3 * normal(*shape) + 2 * normal(channels, *[1] * (len(shape) - 2))
    r = [normal(*shape)] if added != "nothing" else []
    if len(shape) == 4:
        x, r = x.to(memory_format=memory_format), [t.to(memory_format=memory_format) for t in r]
    return Case(activation, x, norm(), r + (norm() if added == "norm" else []), parameters)


def as_numpy(case: Case):
    """The function that the case computes, of the arrays of its learned tensors, and these arrays."""
    given = [tensor.numpy() for tensor in case.norm[2:]], [tensor.numpy() for tensor in case.added[3:]]
    num_added = min(3, len(case.added))
    column, activation = oracle_activations.column, oracle_of(case.activation)

    def normalise(x, weight, bias, statistics, eps):
        axes = tuple(axis for axis in range(x.ndim) if axis != 1)
        mean, var = statistics or (x.mean(axes), x.var(axes))
        normal = (x - column(mean, x)) / np.sqrt(column(var, x) + eps)
        return normal * column(weight, x) + column(bias, x)

    def function(x, weight, bias, *others):
        added, parameters = others[:num_added], others[num_added:]
        z = normalise(x, weight, bias, given[0], EPS)
        if len(added) == 1:
            z = z + added[0]
        elif added:
            z = z + normalise(*added, given[1], ADDED_EPS)
        return activation(z, *parameters)

    return function, [tensor.detach().numpy() for tensor in case.learned]
