"""The training hook that takes PWLUs through their two phases (section 3.3 of the paper)."""

from __future__ import annotations

import logging

from detectron2.engine import HookBase

from pwlu_det.activations.two_phase import TwoPhase
from pwlu_det.config import phase1_iters
from pwlu_det.errors import ConfigError

# A child of detectron2's logger, so that it uses detectron2's handlers and log files.
logger = logging.getLogger(f"detectron2.{__name__}")


class TwoPhaseHook(HookBase):
    """:class:`~pwlu_det.TwoPhase` for detectron2's trainers.

    All state is in the modules' buffers, and so in every checkpoint. Sites that are in phase II from the
    start (loaded from ``MODEL.WEIGHTS``, or built without ``REALIGN``) and frozen sites are left unchanged.
    The order relative to other hooks does not matter.

    Args:
        phase1_iters: T', the number of iterations of phase I.
    """

    def __init__(self, phase1_iters: int):
        self.phase1_iters = phase1_iters
        self._phases: TwoPhase | None = None

    def before_train(self) -> None:
        self._phases = TwoPhase(self.trainer.model, self.trainer.optimizer, self.phase1_iters, logger)

    def before_step(self) -> None:
        self._phases.iteration = self.trainer.iter
        self._phases.before_step()

    def after_step(self) -> None:
        self._phases.after_step()

    def after_train(self) -> None:
        if self._phases is not None:
            self._phases.close()


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
