"""The training hook that takes PWLUs through their two phases (section 3.3 of the paper)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from pwlu_det.activations.pwlu import PWLU, Moments
from pwlu_det.config import phase1_iters
from pwlu_det.engine.optimizer import hide_while_stepping

# A child of detectron2's logger, so that it uses detectron2's handlers and log files.
logger = logging.getLogger(f"detectron2.{__name__}")


class TwoPhaseHook(HookBase):
    """Phase I up to iteration T' - 1, realignment before the first forward of iteration T', then phase II.

    In phase I, each training forward of the model pools the batch statistics over all processes in one
    all-reduce. The PWLU parameters are hidden from the optimizer: while it steps, they have no gradient and
    are in none of its groups, so weight decay, momentum and clipping do not affect them.

    All state is in the modules' buffers, and so in every checkpoint. Sites that are in phase II from the
    start (loaded from ``MODEL.WEIGHTS``, or built without ``REALIGN``) and frozen sites are left unchanged.
    The order relative to other hooks does not matter.

    Args:
        phase1_iters: T', the number of iterations of phase I.
    """

    def __init__(self, phase1_iters: int):
        self.phase1_iters = phase1_iters
        self._sites: list[PWLU] = []
        self._undo: list[Callable[[], None]] = []

    def before_train(self) -> None:
        model = self.trainer.model
        self._sites = trainable_sites(model)
        for site in self._sites:
            site.refresh_phase()
            site.defers_update = True
        collecting = sum(site.collecting for site in self._sites)
        logger.info(
            f"PWLU: {collecting} of {len(self._sites)} trainable sites collect statistics "
            f"up to iteration {self.phase1_iters}"
        )
        self._undo = [
            model.register_forward_hook(lambda *_: self._pool_statistics()).remove,
            hide_while_stepping(self.trainer.optimizer, self._frozen_parameters),
        ]

    def before_step(self) -> None:
        if self.trainer.iter < self.phase1_iters:
            return
        collecting = [site for site in self._sites if site.collecting]
        for site in collecting:
            site.realign()
        if collecting:
            logger.info(_describe(collecting, self.trainer.iter))

    def after_train(self) -> None:
        for undo in self._undo:
            undo()
        for site in self._sites:
            site.defers_update = False

    def _pool_statistics(self) -> None:
        sites = [site for site in self._sites if site.batch_moments is not None]
        if not sites:  # evaluation, PreciseBN, phase II
            return
        packed = torch.cat([_pack(site.batch_moments) for site in sites])
        if comm.get_world_size() > 1:
            dist.all_reduce(packed)
        for site, sums in zip(sites, packed.split([1 + 2 * s.running_mean.numel() for s in sites])):
            site.update_statistics(*_unpack(sums))
            site.batch_moments = None

    def _frozen_parameters(self) -> list[nn.Parameter]:
        """The parameters of all sites in phase I; their gradients are set to None."""
        frozen = [p for site in self._sites if site.collecting for p in site.parameters()]
        for parameter in frozen:
            parameter.grad = None
        return frozen


def build_phase_hook(cfg, data_loader) -> TwoPhaseHook | None:
    """Build the hook for ``trainer.register_hooks`` from ``trainer.cfg`` and ``trainer.data_loader``.

    Returns None if the activation is not PWLU.

    Raises:
        ConfigError: phase I would last as long as the training.
    """
    if cfg.MODEL.ACTIVATION.NAME != "pwlu":
        return None
    iters = phase1_iters(cfg)
    return TwoPhaseHook(phase1_iters(cfg, _count_images(data_loader)) if iters is None else iters)


def _count_images(data_loader) -> int:
    """The number of training images, after detectron2 has dropped those without annotations."""
    # detectron2 nests batching, sampling and the data set; each layer holds the next one as `dataset`.
    while hasattr(data_loader, "dataset"):
        data_loader = data_loader.dataset
    return len(data_loader)


def trainable_sites(model: nn.Module) -> list[PWLU]:
    """All PWLUs in a model that are not frozen."""
    return [m for m in model.modules() if isinstance(m, PWLU) and m.points.requires_grad]


def _pack(moments: Moments) -> Tensor:
    """Count, sum and sum of squares, ``[1 + 2 P]``, float64: these can be summed over processes."""
    mean = moments.mean.double()
    squares = moments.deviation.double() + moments.count * mean**2
    return torch.cat([mean.new_tensor([moments.count]), moments.count * mean, squares])


def _unpack(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation, ``[P]``."""
    count = sums[0].clamp(min=1)
    mean, mean_square = (sums[1:] / count).chunk(2)
    return mean, (mean_square - mean**2).clamp(min=0).sqrt()


def _describe(sites: Sequence[PWLU], iteration: int) -> str:
    left = torch.cat([site.left_bound.detach() for site in sites])
    right = torch.cat([site.right_bound.detach() for site in sites])
    return (
        f"PWLU: realigned {len(sites)} sites at iteration {iteration}; left bounds in "
        f"[{left.min():.4g}, {left.max():.4g}], right bounds in [{right.min():.4g}, {right.max():.4g}]"
    )
