"""Learning in two phases (section 3.3 of the PWLU paper) in any training loop."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from pwlu_det.activations.parameters import hide_while_stepping
from pwlu_det.activations.pwlu import PWLU


class TwoPhase:
    """Phase I up to iteration T' - 1, realignment before the first forward of iteration T', then phase II.

    In phase I, the statistics of each iteration are pooled over all calls of a site and over all processes,
    in one all-reduce. The PWLU parameters are hidden from the optimizer: while it steps, they have no
    gradient and are in none of its groups, so weight decay, momentum and clipping do not affect them.

    Only sites that are in phase I when training starts take part (:meth:`PWLU.begin_collecting`); frozen
    sites do not. Phases and statistics are in the modules' buffers, and so in each state dict of the model;
    :meth:`state_dict` has the iteration.

    Args:
        model: the model, also one wrapped in DDP or sharded by FSDP2.
        optimizer: its optimizer.
        phase1_iters: T', the number of iterations of phase I.
        logger: where the switch is reported.

    Attributes:
        iteration: the number of iterations that have ended.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        phase1_iters: int,
        logger: logging.Logger | None = None,
    ):
        self.phase1_iters, self.iteration = phase1_iters, 0
        self._model, self._logger = model, logger or logging.getLogger(__name__)
        self.sites = trainable_sites(model)
        for site in self.sites.values():
            site.defers_update = True
        self._pooled_iter = -1
        self._logger.log(
            logging.INFO if self.sites else logging.WARNING,
            f"PWLU: {len(self.collecting())} of {len(self.sites)} trainable sites collect statistics "
            f"up to iteration {phase1_iters}",
        )
        self._undo = hide_while_stepping(optimizer, self._prepare_step)

    def before_step(self) -> None:
        """Call before the forward of each iteration."""
        collecting = self.collecting()
        for site in collecting.values():
            site.batch_moments.clear()  # from forwards outside of training steps
        if collecting and self.iteration >= self.phase1_iters:
            self._realign(collecting)

    def after_step(self) -> None:
        """Call after the optimizer's step."""
        self._pool_statistics()  # in case the loss scaler has skipped the optimizer's step
        self.iteration += 1

    def close(self) -> None:
        """Undo the changes of the optimizer and of the sites, at the end of training."""
        self._undo()
        for site in self.sites.values():
            site.defers_update = False
        if self.collecting():
            self._logger.warning(
                f"PWLU: {len(self.collecting())} sites are still in phase I, and so still ReLU: training "
                f"ended before iteration {self.phase1_iters}"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"iteration": self.iteration}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.iteration = state["iteration"]

    def collecting(self) -> dict[str, PWLU]:
        """The sites in phase I, by name."""
        return {name: site for name, site in self.sites.items() if site.collecting}

    def _realign(self, sites: dict[str, PWLU]) -> None:
        without = [name for name, site in sites.items() if site.num_batches == 0]
        if without:
            self._logger.warning(
                f"PWLU: {len(without)} of {len(sites)} sites have no statistics because they were not called "
                f"in training mode; they keep their initial bounds: {', '.join(without)}"
            )
        _reshard(self._model)
        for site in sites.values():
            site.realign()
        self._logger.info(_describe(list(sites.values()), self.iteration))

    def _prepare_step(self) -> list[nn.Parameter]:
        """Pool the statistics before the optimizer steps, and return the parameters to hide from it."""
        # Not right after the forward: with activation checkpointing, sites are also called in the backward.
        self._pool_statistics()
        frozen = [p for site in self.collecting().values() for p in site.parameters()]
        for parameter in frozen:
            parameter.grad = None
        return frozen

    def _pool_statistics(self) -> None:
        sites = self.collecting().values()
        if not sites or self._pooled_iter == self.iteration:
            return
        self._pooled_iter = self.iteration
        # Include sites that this process has not called: other processes may have.
        packed = torch.cat([_pack(site) for site in sites])
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(packed)
        for site, sums in zip(sites, packed.split([1 + 2 * s.running_mean.numel() for s in sites])):
            site.update_statistics(*_unpack(sums))
            site.batch_moments.clear()


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
        if hasattr(module, "reshard"):  # torch.distributed.fsdp.FSDPModule, which old versions lack
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
