"""The training hook that takes PWLUs through their two phases (section 3.3 of the paper)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from pwlu_det.activations.pwlu import PWLU
from pwlu_det.config import phase1_iters
from pwlu_det.engine.optimizer import hide_while_stepping
from pwlu_det.errors import ConfigError

# A child of detectron2's logger, so that it uses detectron2's handlers and log files.
logger = logging.getLogger(f"detectron2.{__name__}")


class TwoPhaseHook(HookBase):
    """Phase I up to iteration T' - 1, realignment before the first forward of iteration T', then phase II.

    In phase I, the statistics of each iteration are pooled over all calls of a site and over all processes,
    in one all-reduce. The PWLU parameters are hidden from the optimizer: while it steps, they have no
    gradient and are in none of its groups, so weight decay, momentum and clipping do not affect them.

    All state is in the modules' buffers, and so in every checkpoint. Sites that are in phase II from the
    start (loaded from ``MODEL.WEIGHTS``, or built without ``REALIGN``) and frozen sites are left unchanged.
    The order relative to other hooks does not matter.

    Args:
        phase1_iters: T', the number of iterations of phase I.
    """

    def __init__(self, phase1_iters: int):
        self.phase1_iters = phase1_iters
        self._sites: dict[str, PWLU] = {}
        self._pooled_iter = -1
        self._undo: Callable[[], None] | None = None

    def before_train(self) -> None:
        self._sites = trainable_sites(self.trainer.model)
        for site in self._sites.values():
            site.defers_update = True
        logger.log(
            logging.INFO if self._sites else logging.WARNING,
            f"PWLU: {len(self._collecting())} of {len(self._sites)} trainable sites collect statistics "
            f"up to iteration {self.phase1_iters}",
        )
        self._undo = hide_while_stepping(self.trainer.optimizer, self._prepare_step)

    def before_step(self) -> None:
        collecting = self._collecting()
        for site in collecting.values():
            site.batch_moments.clear()  # from forwards outside of training steps
        if collecting and self.trainer.iter >= self.phase1_iters:
            self._realign(collecting)

    def after_step(self) -> None:
        self._pool_statistics()  # in case the loss scaler has skipped the optimizer's step

    def after_train(self) -> None:
        if self._undo is not None:
            self._undo()
        for site in self._sites.values():
            site.defers_update = False
        if self._collecting():
            logger.warning(
                f"PWLU: {len(self._collecting())} sites are still in phase I, and so still ReLU: training "
                f"ended before iteration {self.phase1_iters}"
            )

    def _collecting(self) -> dict[str, PWLU]:
        return {name: site for name, site in self._sites.items() if site.collecting}

    def _realign(self, sites: dict[str, PWLU]) -> None:
        without = [name for name, site in sites.items() if site.num_batches == 0]
        if without:
            logger.warning(
                f"PWLU: {len(without)} of {len(sites)} sites have no statistics because they were not called "
                f"in training mode; they keep their initial bounds: {', '.join(without)}"
            )
        _reshard(self.trainer.model)
        for site in sites.values():
            site.realign()
        logger.info(_describe(list(sites.values()), self.trainer.iter))

    def _prepare_step(self) -> list[nn.Parameter]:
        """Pool the statistics before the optimizer steps, and return the parameters to hide from it."""
        # Not right after the forward: with activation checkpointing, sites are also called in the backward.
        self._pool_statistics()
        frozen = [p for site in self._collecting().values() for p in site.parameters()]
        for parameter in frozen:
            parameter.grad = None
        return frozen

    def _pool_statistics(self) -> None:
        sites = self._collecting().values()
        if not sites or self._pooled_iter == self.trainer.iter:
            return
        self._pooled_iter = self.trainer.iter
        # Include sites that this process has not called: other processes may have.
        packed = torch.cat([_pack(site) for site in sites])
        if comm.get_world_size() > 1:
            dist.all_reduce(packed)
        for site, sums in zip(sites, packed.split([1 + 2 * s.running_mean.numel() for s in sites])):
            site.update_statistics(*_unpack(sums))
            site.batch_moments.clear()


def build_phase_hook(cfg, data_loader) -> TwoPhaseHook | None:
    """Build the hook for ``trainer.register_hooks`` from ``trainer.cfg`` and ``trainer.data_loader``.

    Returns None if the activation is not PWLU.

    Raises:
        ConfigError: phase I would not end before training does, or it is given in epochs and the data
            loader has no dataset with a length.
    """
    if cfg.MODEL.ACTIVATION.NAME != "pwlu":
        return None
    iters = phase1_iters(cfg)
    return TwoPhaseHook(phase1_iters(cfg, _count_images(data_loader)) if iters is None else iters)


def _count_images(data_loader) -> int:
    """The number of training images, after detectron2 has dropped those without annotations."""
    # detectron2 nests batching, sampling and the dataset; each layer holds the next one as `dataset`.
    dataset = getattr(data_loader, "dataset", None)  # without it, the length would be that of the batches
    while hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    try:
        return len(dataset)
    except TypeError as error:
        raise ConfigError(
            "MODEL.ACTIVATION.PWLU.PHASE1_EPOCHS: the data loader has no dataset with a length, so its "
            "epochs cannot be counted; set MODEL.ACTIVATION.PWLU.PHASE1_ITERS instead"
        ) from error


def trainable_sites(model: nn.Module) -> dict[str, PWLU]:
    """All PWLUs of a model that are not frozen, by name."""
    sites = {name: module for name, module in model.named_modules() if isinstance(module, PWLU)}
    return {name: site for name, site in sites.items() if any(p.requires_grad for p in site.parameters())}


def _pack(site: PWLU) -> Tensor:
    """Count, sum and sum of squares over all calls, ``[1 + 2 P]``, which can be summed over processes."""
    packed = torch.zeros(
        1 + 2 * site.running_mean.numel(), dtype=torch.float64, device=site.running_mean.device
    )
    for moments in site.batch_moments:
        mean = moments.mean.double()
        squares = moments.deviation.double() + moments.count * mean**2
        packed += torch.cat([mean.new_tensor([moments.count]), moments.count * mean, squares])
    return packed


def _unpack(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation, ``[P]``; NaN if there are no elements."""
    mean, mean_square = (sums[1:] / sums[0]).chunk(2)
    return mean, (mean_square - mean**2).clamp(min=0).sqrt()


def _reshard(model: nn.Module) -> None:
    """End what a forward without backward leaves under FSDP2: gathered parameters, whose changes are lost."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # sharded by FSDP2


def _describe(sites: Sequence[PWLU], iteration: int) -> str:
    left = torch.cat([_whole(site.left_bound.detach()) for site in sites])
    right = torch.cat([_whole(site.right_bound.detach()) for site in sites])
    return (
        f"PWLU: realigned {len(sites)} sites at iteration {iteration}; left bounds in "
        f"[{left.min():.4g}, {left.max():.4g}], right bounds in [{right.min():.4g}, {right.max():.4g}]"
    )
