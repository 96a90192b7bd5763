"""The Piecewise Linear Unit of Zhou et al. 2021, with two-phase learning (section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pwlu_det import ops
from pwlu_det.activations.registry import check_option, register_activation

COLLECTING = 1
"""Phase I: the site computes ReLU and collects statistics of its input; its parameters are frozen."""
LEARNING = 2
"""Phase II: the site computes and learns the piecewise linear function."""

_PARAMETERS = ("points", "left_bound", "right_bound", "left_slope", "right_slope")
_BUFFERS = ("phase", "running_mean", "running_std", "num_batches")


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

    It is initialized to ReLU: Y_P = ReLU at the demarcation points of [-``init_bound``, ``init_bound``],
    K_L = 0, K_R = 1 (exactly ReLU if N is even). A new module is in phase II: an ordinary module for any
    training loop. :meth:`begin_collecting` puts it into phase I, and :meth:`realign` ends phase I.

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
        defers_update: if True, a training forward in phase I leaves the batch's moments in ``batch_moments``,
            and the caller pools them over processes and calls :meth:`update_statistics`. If False, each
            training forward updates the statistics itself.

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
        for name in _PARAMETERS[1:]:
            self.register_parameter(name, nn.Parameter(torch.empty(size)))
        self.register_buffer("phase", torch.tensor(LEARNING))
        self.register_buffer("num_batches", torch.tensor(0))
        self.register_buffer("running_mean", torch.zeros(size))
        self.register_buffer("running_std", torch.zeros(size))
        self._collecting = False
        self.defers_update = False
        self.batch_moments: Moments | None = None
        self._reset_to_relu(torch.full((size,), -init_bound), torch.full((size,), init_bound))

    def extra_repr(self) -> str:
        return f"{self.num_channels}, num_intervals={self.num_intervals}, channel_wise={self.channel_wise}"

    @property
    def collecting(self) -> bool:
        """Whether the site is in phase I."""
        return self._collecting

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, *]`` to the same shape, dtype and layout; exactly ReLU in phase I."""
        if not self._collecting:
            return ops.pwlu(x, *self._parameter_list())
        # Only training collects: PreciseBN and evaluation disable gradients, and a frozen site has none.
        if not (self.training and torch.is_grad_enabled() and self.points.requires_grad):
            return F.relu(x)
        y, mean, deviation = ops.pwlu_phase1(x, *self._parameter_list())
        self._collect(Moments(x.numel() // mean.numel(), mean, deviation))
        return y

    def begin_collecting(self) -> None:
        """Enter phase I: reset all statistics, and compute exactly ReLU until :meth:`realign`.

        The parameters stay in the autograd graph, with zero gradients. An optimizer with weight decay or
        momentum would still change them: hide them from the optimizer, as :class:`TwoPhaseHook` does.
        """
        for buffer in (self.num_batches, self.running_mean, self.running_std):
            buffer.zero_()
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

        A site that has seen no batch keeps its initial bounds.
        """
        if self.num_batches > 0:
            half_width = (self.num_sigma * self.running_std).clamp(min=self.MIN_REALIGNED_WIDTH / 2)
            self._reset_to_relu(self.running_mean - half_width, self.running_mean + half_width)
        self._set_phase(LEARNING)

    def refresh_phase(self) -> None:
        """Re-read the ``phase`` buffer. Required after it is written other than by ``load_state_dict``."""
        # forward uses a Python flag: reading the buffer would synchronize with the GPU at each call.
        self._collecting = int(self.phase) == COLLECTING

    def _set_phase(self, phase: int) -> None:
        self.phase.fill_(phase)
        self.refresh_phase()

    def _parameter_list(self) -> tuple[Tensor, ...]:
        return self.points, self.left_bound, self.right_bound, self.left_slope, self.right_slope

    def _collect(self, moments: Moments) -> None:
        if self.defers_update:
            self.batch_moments = moments
        elif moments.count > 0:
            self.update_statistics(moments.mean, (moments.deviation / moments.count).sqrt())

    @torch.no_grad()
    def _reset_to_relu(self, left_bound: Tensor, right_bound: Tensor) -> None:
        """Apply equation 6 in place: the optimizer and DDP hold references to these parameters."""
        self.left_bound.copy_(left_bound)
        self.right_bound.copy_(right_bound)
        self.left_slope.fill_(0.0)
        self.right_slope.fill_(1.0)
        like = {"dtype": self.points.dtype, "device": self.points.device}
        fraction = torch.linspace(0, 1, self.num_intervals + 1, **like)
        self.points.copy_(torch.lerp(self.left_bound[:, None], self.right_bound[:, None], fraction).relu())

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        found = {name for name in (*_PARAMETERS, *_BUFFERS) if prefix + name in state_dict}
        lacking = [name for name in _PARAMETERS if name not in found]
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
        self.refresh_phase()
