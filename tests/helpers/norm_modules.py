"""Sites of a norm and an activation, perhaps with an added tensor, and what a call leaves behind."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from pwlu_det import ops
from pwlu_det.activations import build_activation
from pwlu_det.activations.norm_activation import norm_activation

C = 6
FUSED = ["apl", "acon_a", "acon_b", "acon_c", "mixture", "pau", "prelu", "pwlu", "slaf", "srelu", "swish"]
CONTENTS = ("nothing", "tensor", "norm")


def record_calls(monkeypatch, record: Callable) -> list:
    """A list to which each call of the op appends ``record(activation, added)``."""
    calls, op = [], ops.norm_activation

    def recorded(x, norm, eps, activation, parameters, added, added_eps):
        calls.append(record(activation, added))
        return op(x, norm, eps, activation, parameters, added, added_eps)

    monkeypatch.setattr(ops, "norm_activation", recorded)
    return calls


def randomised(norm):
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 2)
    return norm


def build(name="pwlu", norm=nn.BatchNorm2d, added="nothing", **options):
    """A model of two norms (the second may be None) and an activation, its maps, and the same in float64."""
    own = nn.ModuleList([randomised(norm(C)), build_activation(name, C, **options)])
    own.append(randomised(norm(C)) if added == "norm" else nn.Identity())
    maps = [torch.randn(3, C, 5, 7) * 2 + 1 for _ in range(1 if added == "nothing" else 2)]
    return own, maps


def arguments_of(model, maps):
    norm, activation, added_norm = model
    return (norm, activation, *maps, *([] if isinstance(added_norm, nn.Identity) else [added_norm]))


def steps(norm, activation, x, added=None, added_norm=None):
    z = norm(x)
    if added is not None:
        z = z + (added if added_norm is None else added_norm(added))
    return activation(z)


def trace(function, model, maps, iterations=1):
    """Outputs, gradients and buffers after some calls."""
    model = copy.deepcopy(model)
    maps = [m.detach().clone().requires_grad_() for m in maps]
    results = {}
    for i in range(iterations):
        y = function(*arguments_of(model, [m * (1 + i) for m in maps]))
        results[f"y{i}"] = y.detach()
        if y.requires_grad:
            weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
            (y * weights).sum().backward()
    for i, m in enumerate(maps):
        results[f"map{i}"] = m.grad
    results |= {name: p.grad for name, p in model.named_parameters()}
    results |= dict(model.named_buffers())
    return results


def assert_equal_traces(model, maps, iterations=1, **kwargs):
    actual = trace(lambda *a: norm_activation(*a, **kwargs), model, maps, iterations)
    expected = trace(steps, model, maps, iterations)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert actual[name] is None, name
        else:
            scale = float(value.abs().max()) or 1.0
            torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=2e-5 * scale, msg=name)
