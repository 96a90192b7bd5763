"""Ending a run on SIGTERM, which clusters send before they reclaim a machine."""

from __future__ import annotations

import logging
import signal
import threading

from detectron2.engine import HookBase
from detectron2.utils import comm

from pwlu_det.engine.gather import EachIteration

logger = logging.getLogger(f"detectron2.{__name__}")

EXIT_STATUS = 128 + signal.SIGTERM  # as a shell reports it


class StopOnSignal(HookBase):
    """On a SIGTERM to any process, write a checkpoint after the iteration and exit with status 143.

    The hook must come after all hooks whose state is in the checkpoint.
    """

    def __init__(self):
        self._asked = False
        self._previous = None
        self._gather = EachIteration()

    def before_train(self) -> None:
        if threading.current_thread() is threading.main_thread():  # only the main thread can handle signals
            self._previous = signal.signal(signal.SIGTERM, self._note)

    def after_step(self) -> None:
        if not any(self._gather(float(self._asked))):
            return
        name = f"model_{self.trainer.iter:07d}"
        logger.warning(f"Received SIGTERM: writing {name}.pth, then exiting. --resume continues from there.")
        if comm.is_main_process():
            self.trainer.checkpointer.save(name, iteration=self.trainer.iter)
        comm.synchronize()
        raise SystemExit(EXIT_STATUS)

    def after_train(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def _note(self, *_) -> None:
        self._asked = True
