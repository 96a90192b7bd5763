"""Contenders of ``tools/benchmark.py op``: activations on a single tensor."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import torch
from torch import Tensor, nn

from pwlu_det.activations.frelu import FReLU
from pwlu_det.activations.norm_activation import norm_activation
from pwlu_det.activations.pwlu import PWLU
from pwlu_det.activations.registry import ACTIVATIONS, build_activation, keeps_channels
from pwlu_det.benchmark.measure import Clock, Contender, Run
from pwlu_det.ops import reference

BASELINE = "torch.relu"
FUSED = ("apl", "acon_a", "acon_b", "acon_c", "mixture", "pau", "prelu", "pwlu", "slaf", "srelu", "swish")
"""The activations that are compared as one op with a norm."""

LEGEND = """Rows are named as in `MODEL.ACTIVATION.NAME`. In addition, `torch.*` are torch's own modules;
`pwlu:fallback` is PWLU without its kernels; `pwlu:plain-torch` is PWLU written in a few lines of torch, with
autograd; `pwlu:compile` is the same under torch.compile; `frelu:plain-torch` is F-ReLU as three torch ops;
and `frelu:conv` is the first of these, the depthwise convolution. `norm+relu` is torch's batch norm and its
ReLU in place, as in detectron2; `norm+NAME` are the same norm and an activation as one op, and
`norm+pwlu:steps` and `norm+relu:fused` are the other way round."""

PEERS: dict[str, tuple[str, Callable[[ModuleType, int, str], nn.Module]]] = {
    "rational_activations": (
        "rational.torch",
        lambda package, num_channels, device: package.Rational(cuda=device == "cuda"),
    ),
}
"""Third-party packages, compared if installed: the module to import, and a function that builds an activation
from the module, the number of channels and the device."""


@dataclass(frozen=True)
class Setting:
    """The settings shared by all contenders of a table."""

    shape: tuple[int, ...]
    """``[B, C, H, W]``"""
    channels_last: bool = False
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    num_intervals: int = 16


def installed_peers() -> list[str]:
    return [name for name, (module, _) in PEERS.items() if importlib.util.find_spec(module.split(".")[0])]


def builders(setting: Setting) -> dict[str, Callable[[int], nn.Module]]:
    """For each contender, a function that builds it for a number of channels."""
    n = setting.num_intervals
    table: dict[str, Callable[[int], nn.Module]] = {
        BASELINE: lambda num_channels: nn.ReLU(),
        "torch.silu": lambda num_channels: nn.SiLU(),
        "torch.prelu": lambda num_channels: nn.PReLU(num_channels).to(setting.dtype),
    }
    for name in filter(keeps_channels, ACTIVATIONS):
        table[name] = partial(build_activation, name, **({"num_intervals": n} if name == "pwlu" else {}))
    table["pwlu:fallback"] = partial(_PWLUBy, _Fallback.apply, num_intervals=n)
    table["pwlu:plain-torch"] = partial(_PWLUBy, plain_pwlu, num_intervals=n)
    table["pwlu:compile"] = partial(_compiled_pwlu, num_intervals=n)
    table["frelu:plain-torch"] = _PlainFReLU
    table["frelu:conv"] = lambda num_channels: FReLU(num_channels).conv
    table["norm+relu"] = lambda num_channels: nn.Sequential(
        nn.BatchNorm2d(num_channels), nn.ReLU(inplace=True)
    )
    table["norm+relu:fused"] = lambda num_channels: _Normed(nn.ReLU(), num_channels)
    for name in FUSED:
        table[f"norm+{name}"] = lambda num_channels, name=name: _Normed(
            table[name](num_channels), num_channels
        )
    table["norm+pwlu:steps"] = lambda num_channels: nn.Sequential(
        nn.BatchNorm2d(num_channels), table["pwlu"](num_channels)
    )
    for name in installed_peers():
        module, build = PEERS[name]
        table[name] = lambda num_channels, module=module, build=build: build(
            importlib.import_module(module), num_channels, setting.device
        )
    return table


def op_contenders(setting: Setting, names: Sequence[str] = (), baseline: str = BASELINE) -> list[Contender]:
    """Build the baseline and the contenders with the given names (none: all).

    Raises:
        ValueError: a name is unknown.
    """
    table = builders(setting)
    for name in (baseline, *names):
        if name not in table:
            raise ValueError(f"unknown contender '{name}'; it must be one of {', '.join(table)}")
    x = torch.randn(setting.shape, device=setting.device).to(setting.dtype)
    if setting.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_(True)
    others = [name for name in table if (not names or name in names) and name != baseline]
    return [_contender(name, table[name](setting.shape[1]), x) for name in (baseline, *others)]


def _contender(name: str, module: nn.Module, x: Tensor) -> Contender:
    module.to(x.device)
    if x.dtype == torch.float64:
        module.double()
    return Contender(name, (_inference(module, x), _training(module, x)), module)


def _inference(module: nn.Module, x: Tensor) -> Run:
    def run(clock: Clock):
        module.eval()
        with torch.no_grad(), _autocast(x):
            module(x)  # so that the caches are in the state in which this contender leaves them
            begin = clock.start()
            module(x)
            return {"forward": (begin, clock.mark())}

    return run


def _training(module: nn.Module, x: Tensor) -> Run:
    with torch.no_grad(), _autocast(x):
        grad = torch.randn_like(module.eval()(x))
    leaves = [x, *module.parameters()]

    def once(clock: Clock):
        for tensor in leaves:
            tensor.grad = None
        with _autocast(x):
            begin = clock.start()
            y = module(x)
            middle = clock.mark()
        y.backward(grad)
        end = clock.mark()
        return {"forward + backward": (begin, end), "backward": (middle, end)}

    def run(clock: Clock):
        module.train()
        once(clock)  # for the caches, as above
        return once(clock)

    return run


def _autocast(x: Tensor):
    """Autocast for half precision, as in mixed-precision training."""
    if x.dtype in (torch.float16, torch.bfloat16):
        return torch.autocast(x.device.type, x.dtype)
    return contextlib.nullcontext()


class _Normed(nn.Module):
    """A batch norm and an activation as one op."""

    def __init__(self, activation: nn.Module, num_channels: int):
        super().__init__()
        self.norm, self.activation = nn.BatchNorm2d(num_channels), activation

    def forward(self, x: Tensor) -> Tensor:
        return norm_activation(self.norm, self.activation, x, fuse_relu=True)


class _PWLUBy(PWLU):
    """A PWLU that is computed by another function with the same arguments."""

    def __init__(self, function: Callable[..., Tensor], num_channels: int, num_intervals: int):
        super().__init__(num_channels, num_intervals)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(
            x, self.points, self.left_bound, self.right_bound, self.left_slope, self.right_slope
        )


class _PlainFReLU(FReLU):
    """F-ReLU as one would write it with torch ops."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, self.norm(self.conv(x)))


class _Fallback(torch.autograd.Function):
    """PWLU without its kernels."""

    @staticmethod
    def forward(ctx, x, *parameters):
        ctx.save_for_backward(x, *parameters)
        return reference.pwlu(x, *parameters)

    @staticmethod
    def backward(ctx, grad):
        return reference.pwlu_backward(grad, *ctx.saved_tensors)


def plain_pwlu(
    x: Tensor,
    points: Tensor,
    left_bound: Tensor,
    right_bound: Tensor,
    left_slope: Tensor,
    right_slope: Tensor,
) -> Tensor:
    """Channel-wise PWLU as one would write it with torch ops, differentiated by autograd.

    ``x`` is ``[B, C, H, W]``, ``points`` is ``[C, N+1]``, and the other parameters are ``[C]``.
    """
    num_points = points.shape[1]
    first = torch.arange(points.shape[0], device=x.device).view(-1, 1, 1) * num_points
    left, right, slope_left, slope_right = (
        p.view(-1, 1, 1) for p in (left_bound, right_bound, left_slope, right_slope)
    )
    u = (x - left) * ((num_points - 1) / (right - left))
    k = u.detach().floor().clamp(0, num_points - 2)
    index = first + k.long()
    low, high = points.take(index), points.take(index + 1)
    y = low + (high - low) * (u - k)
    y = torch.where(x < left, points[:, :1, None] + slope_left * (x - left), y)
    y = torch.where(x >= right, points[:, -1:, None] + slope_right * (x - right), y)
    return y.to(x.dtype)


def _compiled_pwlu(num_channels: int, num_intervals: int) -> nn.Module:
    # All shapes share one function, and torch.compile stops recompiling a function after a few shapes.
    torch.compiler.reset()
    return _PWLUBy(torch.compile(plain_pwlu, dynamic=False), num_channels, num_intervals)
