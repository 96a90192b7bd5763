"""The Piecewise Linear Unit of Zhou et al. 2021, with two-phase learning (section 3.3)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pwlu_det import ops
from pwlu_det.activations.parameters import version_of, write_in_place
from pwlu_det.activations.pwlu_fit import bounds_of, fit, normal_quantiles
from pwlu_det.activations.registry import check_option, register_activation
from pwlu_det.ops.derivatives import KeepInGraph
from pwlu_det.ops.pwlu import PARAMETERS

COLLECTING = 1
"""Phase I: the parameters hold ReLU and are frozen, and the site collects statistics of its input."""
LEARNING = 2
"""Phase II: the site learns."""

_BUFFERS = ("phase", "running_mean", "running_std", "num_batches")

_NO_HOOK = (
    "PWLU: a site was built for learning in two phases, but no TwoPhaseHook is registered with the trainer. "
    "It stays ReLU until its realign() is called, and nothing protects its parameters from weight decay. "
    "Register pwlu_det.build_phase_hook(cfg, data_loader) before training, or use pwlu_det.TwoPhase."
)
_CHANGED = (
    "PWLU: the parameters of a site in phase I are no longer those of ReLU; the site computes the function "
    "that they define. Has an optimizer moved them? pwlu_det.TwoPhaseHook keeps them frozen in phase I."
)
_NO_STATISTICS = (
    "PWLU: realign() was called on a site without statistics, so its bounds are the initial ones. Statistics "
    "are collected in phase I, by forwards in training mode with gradients."
)


@dataclass
class Moments:
    """Per-channel moments of a batch, which can be pooled over processes. P is C, or 1 if layer-wise."""

    count: int
    """Number of elements per channel."""
    mean: Tensor
    """``[P]``."""
    deviation: Tensor
    """``[P]``, the sum of squared deviations from the mean."""


@register_activation("pwlu")
class PWLU(nn.Module):
    r"""Piecewise Linear Unit (equation 1), with N intervals of equal length between B_L and B_R.

    It starts as ReLU: Y_P = ReLU at the demarcation points of [-``init_bound``, ``init_bound``], K_L = 0,
    K_R = 1 (exactly ReLU if N is even). A new module is in phase II: an ordinary module that any training
    loop can train. :meth:`begin_collecting` puts it into phase I, and :meth:`realign` ends phase I.

    The function is always that of the parameters, in either phase. The phase only says whether a training
    forward collects statistics, and tells :class:`~pwlu_det.TwoPhaseHook` to keep the parameters frozen.

    Args:
        num_channels: C of the ``[B, C, *]`` input.
        num_intervals: N.
        channel_wise: learn one function per channel instead of one per layer (parameters then have C = 1).
        init_bound: x in the paper's "fix-init-x".
        stat_momentum: weight of the old value in the running statistics (equation 5).
        num_sigma: half the distance between the realigned bounds, in standard deviations (equation 6).

    Attributes:
        points: Y_P, ``[C, N+1]``.
        left_bound, right_bound, left_slope, right_slope: B_L, B_R, K_L, K_R, ``[C]``.
        running_mean, running_std: mu and sigma of equation 5, ``[C]``, float32.
        phase, num_batches: the phase (1 or 2), and the number of batches in the statistics.
        defers_update: append the moments of each training forward to ``batch_moments``, for the caller to
            pool over calls and processes and pass to :meth:`update_statistics`. By default, each forward
            updates the statistics itself.
        original: an activation that it replaces, or None for ReLU: computed in phase I, and fitted by
            :meth:`realign`. It is not in the state dict.
        expects_hook: warn, once, if a training forward collects statistics while ``defers_update`` is False.

    Raises:
        OptionError: an argument is out of range.
    """

    MIN_REALIGNED_WIDTH = 1e-2
    """Minimum distance between realigned bounds. It applies to channels with little variation (dead ones)."""

    def __init__(
        self,
        num_channels: int,
        num_intervals: int = 16,
        channel_wise: bool = True,
        init_bound: float = 3.0,
        stat_momentum: float = 0.9,
        num_sigma: float = 3.0,
    ):
        super().__init__()
        for option, value, fits, allowed in (
            ("num_channels", num_channels, num_channels >= 1, "at least 1"),
            ("num_intervals", num_intervals, 1 <= num_intervals <= 1024, "at least 1 and at most 1024"),
            ("init_bound", init_bound, 0 < init_bound <= 1e6, "positive and at most 1e6"),
            ("stat_momentum", stat_momentum, 0 <= stat_momentum < 1, "in [0, 1)"),
            ("num_sigma", num_sigma, 0 < num_sigma <= 1e6, "positive and at most 1e6"),
        ):
            check_option("PWLU", option, value, fits, allowed)
        self.num_channels = num_channels
        self.num_intervals = num_intervals
        self.channel_wise = channel_wise
        self.init_bound = init_bound
        self.stat_momentum = stat_momentum
        self.num_sigma = num_sigma

        size = num_channels if channel_wise else 1
        self.points = nn.Parameter(torch.empty(size, num_intervals + 1))
        for name in list(PARAMETERS)[1:]:
            self.register_parameter(name, nn.Parameter(torch.empty(size)))
        self.register_buffer("phase", torch.tensor(LEARNING))
        self.register_buffer("num_batches", torch.tensor(0))
        self.register_buffer("running_mean", torch.zeros(size))
        self.register_buffer("running_std", torch.zeros(size))
        self._collecting = False
        self._read_phase: tuple[Tensor | None, int] = (None, 0)
        self._checked_versions: list[int] = []
        self.defers_update = False
        self.expects_hook = False
        self.original: Callable[[Tensor], Tensor] | None = None
        self._has_warned_of_change = False
        self.batch_moments: list[Moments] = []
        self._reset_to_relu(*self._initial_bounds())

    def __getstate__(self) -> dict[str, Any]:
        # A copy, or a module saved during training, is not known to the hook that pools the statistics.
        return {**self.__dict__, "defers_update": False, "batch_moments": []}

    def extra_repr(self) -> str:
        return f"{self.num_channels}, num_intervals={self.num_intervals}, channel_wise={self.channel_wise}"

    @property
    def collecting(self) -> bool:
        """Whether the site is in phase I, according to the ``phase`` buffer."""
        # Reading the buffer waits for the GPU, so it is only read after it has been written.
        if torch.compiler.is_compiling() or self.phase.is_meta:
            return self._collecting
        read, version = self._read_phase
        if read is not self.phase or version != version_of(read):
            self._collecting = int(self.phase) == COLLECTING
            self._read_phase = self.phase, version_of(self.phase)
        return self._collecting

    @property
    def computes_original(self) -> bool:
        """Whether the site computes ``original`` instead of the function of its parameters."""
        return self.original is not None and self.collecting

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, *]`` to the same shape, dtype and layout."""
        if not self._collects():
            if self.computes_original:
                return self.original(x)
            return ops.pwlu(x, *self._parameter_list())
        if self.expects_hook and not self.defers_update:
            # Once per site: detectron2's convolutions reset Python's memory of the warnings it has shown.
            self.expects_hook = False
            warnings.warn(_NO_HOOK, stacklevel=2)
        y, mean, deviation = ops.pwlu_phase1(x, *self._parameter_list())
        if self.original is not None:
            y = KeepInGraph.apply(self.original(x), *self._parameter_list())
        elif not torch.compiler.is_compiling() and not self._holds_relu():
            if not self._has_warned_of_change:
                self._has_warned_of_change = True
                warnings.warn(_CHANGED, stacklevel=2)
            y = ops.pwlu(x, *self._parameter_list())
        self._collect(Moments(x.numel() // mean.numel(), mean, deviation))
        return y

    @torch.no_grad()
    def start_as(self, original: Callable[[Tensor], Tensor], x: Tensor) -> None:
        """Fit the function to another activation by least squares over inputs ``x``, ``[C, S]``.

        The bounds are ``num_sigma`` standard deviations to either side of the mean, but within the inputs.
        """
        self.original = original
        x = x.double() if self.channel_wise else x.double().reshape(1, -1)
        left, right = bounds_of(x, self.num_sigma, self.MIN_REALIGNED_WIDTH)
        self._write(fit(original, x, left, right, self.num_intervals))

    @torch.no_grad()
    def begin_collecting(self) -> None:
        """Enter phase I: set the parameters to ReLU, and discard all statistics.

        If N is odd, the bounds are moved so that 0 is a demarcation point: the right bound becomes
        ``init_bound`` h / (N - h) with h = (N + 1) / 2 (if N = 1, the bounds are 0 and ``init_bound``).

        Until :meth:`realign`, a training forward is exactly ReLU. The parameters stay in the autograd graph,
        with zero gradients. An optimizer with weight decay would still change them: hide them from the
        optimizer, as :class:`~pwlu_det.TwoPhaseHook` does.
        """
        self._write_phase1_parameters()
        for buffer in (self.num_batches, self.running_mean, self.running_std):
            buffer.zero_()
        self.batch_moments.clear()
        self._set_phase(COLLECTING)

    @torch.no_grad()
    def update_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Apply equation 5 with the per-channel mean and population standard deviation of a batch, ``[C]``.

        A batch with an infinite or NaN value is ignored: the running statistics would never recover from it.
        """
        counts = (mean.isfinite() & std.isfinite()).all()
        momentum = torch.where(self.num_batches == 0, 0.0, self.stat_momentum)
        for running, new in ((self.running_mean, mean), (self.running_std, std)):
            running.copy_(torch.where(counts, running * momentum + (1 - momentum) * new, running))
        self.num_batches += counts

    @torch.no_grad()
    def realign(self) -> None:
        """Enter phase II by equation 6: bounds at mu -+ 3 sigma, and ReLU at the new demarcation points.

        With an ``original``, the function is fitted to it instead, over a normal distribution of inputs.
        Without statistics, a warning is issued, and the bounds become -``init_bound`` and ``init_bound``.

        With FSDP2, all processes must call it together, with equal statistics, while the parameters are
        sharded; after a forward without a backward, call ``reshard()``. :class:`~pwlu_det.TwoPhaseHook` does.
        """
        if self.num_batches > 0:
            half_width = (self.num_sigma * self.running_std).clamp(min=self.MIN_REALIGNED_WIDTH / 2)
            self._reset_to_relu(self.running_mean - half_width, self.running_mean + half_width)
        else:
            warnings.warn(_NO_STATISTICS, stacklevel=3)  # level 2 is the decorator
            self._reset_to_relu(*self._initial_bounds())
        self._set_phase(LEARNING)

    def _set_phase(self, phase: int) -> None:
        self.phase.fill_(phase)
        self._collecting = phase == COLLECTING  # used on the meta device and by torch.compile

    def _collects(self) -> bool:
        # Only training collects: PreciseBN and evaluation disable gradients, and a frozen site has none.
        trains = self.training and torch.is_grad_enabled()
        return trains and self.collecting and any(p.requires_grad for p in self._parameter_list())

    def _parameter_list(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name) for name in PARAMETERS)

    def _collect(self, moments: Moments) -> None:
        if self.defers_update:
            self.batch_moments.append(moments)
        elif moments.count > 0:
            self.update_statistics(moments.mean, (moments.deviation / moments.count).sqrt())

    def _initial_bounds(self) -> tuple[Tensor, Tensor]:
        right = torch.full_like(self.running_mean, self.init_bound)
        return -right, right

    @torch.no_grad()
    def _reset_to_relu(self, left_bound: Tensor, right_bound: Tensor) -> None:
        """Apply equation 6."""
        if self.original is not None:
            center, sigma = (left_bound + right_bound) / 2, (right_bound - left_bound) / (2 * self.num_sigma)
            x = center[:, None] + sigma[:, None] * normal_quantiles().to(sigma)
            return self._write(fit(self.original, x, left_bound, right_bound, self.num_intervals))
        dtype = self.points.dtype
        self._write(self._relu_parameters(left_bound.to(dtype), right_bound.to(dtype)))

    def _write(self, values: Sequence[Tensor]) -> None:
        """Set the parameters in place: the optimizer and DDP hold references to them."""
        for parameter, value in zip(self._parameter_list(), values):
            write_in_place(parameter, value.to(parameter.dtype))

    def _relu_parameters(self, left_bound: Tensor, right_bound: Tensor) -> tuple[Tensor, ...]:
        """Y_P = ReLU at the demarcation points, K_L = 0 and K_R = 1 for these bounds, in their dtype."""
        like = {"dtype": left_bound.dtype, "device": left_bound.device}
        fraction = torch.linspace(0, 1, self.num_intervals + 1, **like)
        points = torch.lerp(left_bound[:, None], right_bound[:, None], fraction).relu()
        return points, left_bound, right_bound, torch.zeros_like(left_bound), torch.ones_like(left_bound)

    def _phase1_parameters(self) -> list[Tensor]:
        """ReLU with 0 at a demarcation point, rounded from float32 to the dtype of the parameters."""
        n = self.num_intervals
        left, right = (bound.float() for bound in self._initial_bounds())
        if n % 2:
            h = (n + 1) // 2  # intervals to the right of 0
            length = self.init_bound / max(n - h, 1)
            left, right = left if n > 1 else torch.zeros_like(left), torch.full_like(right, h * length)
        points, *others = self._relu_parameters(left, right)
        if n % 2:  # products, so that 0 is exact
            points = (torch.arange(h - n, h + 1, dtype=torch.float64, device=left.device) * length).relu()
            points = points.float().expand(len(left), -1)
        return [value.to(self.points.dtype) for value in (points, *others)]

    def _write_phase1_parameters(self) -> None:
        self._write(self._phase1_parameters())

    def _holds_relu(self) -> bool:
        """Whether the parameters are still those that :meth:`begin_collecting` wrote."""
        parameters = self._parameter_list()
        if self.points.is_meta:
            return True
        versions = [version_of(p) for p in parameters]
        # On a GPU the comparison synchronizes, so it is only done after a parameter has been written.
        if not self.points.is_cuda or versions != self._checked_versions:
            if not all(map(torch.equal, parameters, self._phase1_parameters())):
                return False
            self._checked_versions = versions
        return True

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        found = {name for name in (*PARAMETERS, *_BUFFERS) if prefix + name in state_dict}
        lacking = [name for name in PARAMETERS if name not in found]
        if found and lacking:
            errors.append(
                f"the file has only some parameters of the PWLU '{prefix[:-1]}' ({', '.join(lacking)} "
                "missing or of a different shape). Was it saved with a NUM_INTERVALS other than "
                f"{self.num_intervals}, or a CHANNEL_WISE other than {self.channel_wise}?"
            )
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)
        if found and "phase" not in found:
            self._set_phase(LEARNING)  # parameters without a phase count as trained
        if found and not self.phase.is_meta and self.collecting:
            self._settle_phase1(state_dict[prefix + "points"].dtype)

    @torch.no_grad()
    def _settle_phase1(self, saved_dtype: torch.dtype) -> None:
        """After loading a file saved in phase I: decide whether its parameters are initial or trained.

        They are initial if they are ReLU, and 0 is at the demarcation point where :meth:`begin_collecting`
        places it, or in the middle. They are then rewritten, since older versions of this package used other
        bounds for odd N. Anything else is a trained function, such as that of an averaged model whose
        ``phase`` was never updated, and enters phase II.
        """
        _, left_bound, right_bound, *_ = parameters = self._parameter_list()
        largest = max(float(left_bound.abs().max()), float(right_bound.abs().max()))
        tolerance = 4 * torch.finfo(saved_dtype).eps * largest
        relu = self._relu_parameters(left_bound, right_bound)
        is_relu = all(torch.allclose(p, r, rtol=0, atol=tolerance) for p, r in zip(parameters, relu))
        n, h = self.num_intervals, (self.num_intervals + 1) // 2
        offsets = left_bound * h + right_bound * (n - h), left_bound + right_bound
        if is_relu and any(offset.abs().max() <= n * tolerance for offset in offsets):
            self._write_phase1_parameters()
        else:
            self._set_phase(LEARNING)
