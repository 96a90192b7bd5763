"""Exact resume: a resumed run equals an uninterrupted one, bit for bit."""

from __future__ import annotations

import logging
import math
from typing import Any

import yaml
from detectron2.engine import HookBase
from detectron2.engine.hooks import PreciseBN
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pwlu_det.checkpoint.checkpointer import Resumable
from pwlu_det.config import MAX_SEED, check_yaml
from pwlu_det.engine.data_stream import enter_stream
from pwlu_det.engine.gather import EachIteration
from pwlu_det.engine.random_state import seed_all
from pwlu_det.errors import CheckpointError

logger = logging.getLogger(f"detectron2.{__name__}")

# Keys, or prefixes of keys, that do not affect the result of training.
_FREE = (
    *("OUTPUT_DIR", "VERSION", "VIS_PERIOD", "CUDNN_BENCHMARK", "DATALOADER.NUM_WORKERS"),
    *("MODEL.DEVICE", "MODEL.WEIGHTS", "SOLVER.CHECKPOINT_PERIOD"),
    *("DATASETS.TEST", "DATASETS.PROPOSAL_FILES_TEST", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST", "TEST."),
)


class ExactResume(HookBase):
    """Resumes the data stream where the run stopped, and seeds all other randomness by the iteration.

    The state dict of this hook holds what no other state dict does: the config, the number of processes, and
    each process's running ``loss_normalizer`` (of RetinaNet). The hook must come after all hooks that run the
    model in training, and before the one that writes checkpoints.
    """

    def __init__(self, cfg):
        self.seed, self.config = cfg.SEED, cfg.dump()
        self._normalizers = EachIteration()
        self._loaded = [None] * comm.get_world_size()

    def before_train(self) -> None:
        enter_stream(self.trainer.data_loader, self.trainer.start_iter)

    def before_step(self) -> None:
        seed_all(self.seed, self.trainer.iter, comm.get_rank())

    def after_step(self) -> None:
        # In each iteration, since a checkpoint can be written after any of them.
        normalizer = getattr(_without_ddp(self.trainer.model), "loss_normalizer", None)
        if normalizer is not None:
            self._normalizers(normalizer)

    def state_dict(self) -> dict[str, Any]:
        return {"config": self.config, "loss_normalizers": self._normalizers.newest() or self._loaded}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loaded = _check_normalizers(state["loss_normalizers"])
        num_processes = len(self._loaded)
        if num_processes != comm.get_world_size():
            logger.warning(
                f"The checkpoint was saved by a run with {num_processes} processes and is resumed with "
                f"{comm.get_world_size()}: the weights will not be exactly those of an uninterrupted run."
            )
        _restore_normalizer(_without_ddp(self.trainer.model), self._loaded)


class ResumablePreciseBN(PreciseBN):
    """PreciseBN whose data stream continues where the interrupted run stopped."""

    def __init__(self, period: int, model: nn.Module, data_loader, num_iter: int):
        super().__init__(period, model, data_loader, num_iter)
        self.period, self.data_loader, self.num_iter = period, data_loader, num_iter

    def before_train(self) -> None:
        if self.period > 0:
            enter_stream(self.data_loader, self.trainer.start_iter // self.period * self.num_iter)


def warn_of_changes(resumable: Resumable, cfg) -> None:
    """Log the keys that affect training and differ between ``cfg`` and the config of the resumed run."""
    saved, file = _saved_config(resumable), resumable.file
    if saved is None:
        logger.warning(
            f"{file} was not saved by pwlu_det.Trainer, so its seed is unknown: the order of the training "
            "data will differ from that of the original run."
        )
        return
    changes = describe_changes(saved, yaml.safe_load(cfg.dump()))
    if changes:
        logger.warning(f"{file} was saved with a different config. Changed keys:\n  " + "\n  ".join(changes))


def describe_changes(old: dict, new: dict) -> list[str]:
    """Lines "KEY: old -> new" for the keys of two nested configs that affect training and differ."""
    before, after = _flatten(old), _flatten(new)
    keys = sorted(key for key in before.keys() | after.keys() if not key.startswith(_FREE))
    absent = "(no such key)"
    pairs = {key: (before.get(key, absent), after.get(key, absent)) for key in keys}
    return [f"{key}: {a!r} -> {b!r}" for key, (a, b) in pairs.items() if a != b]


def settle_seed(cfg, resumable: Resumable | None = None):
    """Replace a negative ``SEED`` by that of the resumed run, or by a random one that all processes share.

    Args:
        cfg: a config; it is not modified.
        resumable: the checkpoint to be resumed, if any.

    Returns:
        ``cfg`` itself if its ``SEED`` is not negative, else a modified copy.
    """
    if cfg.SEED >= 0:
        return cfg
    saved = _saved_config(resumable) if resumable and resumable.file else None
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = _seed_of(saved, resumable.file) if saved else comm.shared_random_seed()
    cfg.freeze()
    return cfg


def _seed_of(saved: dict, file: str) -> int:
    seed = saved.get("SEED")
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise CheckpointError(f"{file}: its SEED is {seed!r}; it must be an integer from 0 to {MAX_SEED}")
    return seed


def _saved_config(resumable: Resumable) -> dict | None:
    try:
        state = resumable.content["trainer"].get("hooks", {}).get(ExactResume.__qualname__)
        if not state:
            return None
        check_yaml(state["config"])
        return dict(yaml.safe_load(state["config"]))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f"{resumable.file} has no valid trainer state: {error}") from error


def _flatten(node: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in node.items():
        flat.update(
            _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        )
    return flat


def _check_normalizers(values: Any) -> list[float | None]:
    """Check what a checkpoint says of the ``loss_normalizer`` of each process; None for models without it."""
    fits = isinstance(values, list) and len(values) > 0
    if not fits or not all(v is None or (type(v) in (int, float) and 0 < v < math.inf) for v in values):
        raise CheckpointError(
            f"its loss_normalizers are {values!r}; they must be one positive number per process"
        )
    return values


def _restore_normalizer(model: nn.Module, normalizers: list[float | None]) -> None:
    known = [n for n in normalizers if n is not None]
    if known:
        same = len(normalizers) == comm.get_world_size()
        model.loss_normalizer = normalizers[comm.get_rank()] if same else sum(known) / len(known)


def _without_ddp(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model
