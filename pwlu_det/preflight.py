"""All checks before a run: the config, and the data and weights that it refers to."""

from __future__ import annotations

import os
import tempfile

import torch

from pwlu_det.activations.registry import OptionError, build_activation
from pwlu_det.backbone.placement import HEADS, POSITIONS, STAGES, get_placement
from pwlu_det.checkpoint.checkpointer import has_resumable
from pwlu_det.checkpoint.reader import read_checkpoint
from pwlu_det.config import (
    MAX_SEED,
    activation_options,
    architecture,
    check_architecture,
    on_cpu,
    phase1_iters,
)
from pwlu_det.data.classification import FLIPS
from pwlu_det.data.dataset_check import check_datasets
from pwlu_det.errors import ConfigError, PwluDetError
from pwlu_det.ops.kernels import find_misuse

AMP_DTYPES = ("float16", "bfloat16")
MASK_FORMATS = ("polygon", "bitmask")
_STOCK_BACKBONES = (
    "build_resnet_backbone",
    "build_resnet_fpn_backbone",
    "build_retinanet_resnet_fpn_backbone",
    "build_resnet_deeplab_backbone",
    "build_trident_resnet_backbone",
)


def check_config(cfg, num_processes: int = 1) -> None:
    """Check the keys needed for training, evaluation and export, before anything is built.

    Raises:
        ConfigError: a value is not allowed; the message names the key.
    """
    misuse = find_misuse()
    if misuse:
        raise ConfigError(misuse)
    node = cfg.MODEL.ACTIVATION
    try:
        get_placement(node.NAME)
    except PwluDetError as error:
        raise ConfigError(f"MODEL.ACTIVATION.NAME: {error}") from error
    _check_subset("MODEL.ACTIVATION.STAGES", node.STAGES, STAGES)
    _check_subset("MODEL.ACTIVATION.POSITIONS", node.POSITIONS, POSITIONS)
    _check_subset("MODEL.ACTIVATION.HEADS", node.HEADS, tuple(HEADS))
    check_architecture(cfg)
    backbone = cfg.MODEL.BACKBONE.NAME
    _check(
        # With a stock backbone, only heads can be converted.
        node.NAME == "relu" or bool(node.HEADS) or backbone not in _STOCK_BACKBONES,
        "MODEL.BACKBONE.NAME",
        backbone,
        f"{backbone.replace('build_', 'build_act_', 1)} for MODEL.ACTIVATION.NAME {node.NAME!r}",
    )
    mask_format = cfg.INPUT.MASK_FORMAT
    _check(mask_format in MASK_FORMATS, "INPUT.MASK_FORMAT", mask_format, f"one of {', '.join(MASK_FORMATS)}")
    for key in ("LR_FACTOR", "WEIGHT_DECAY"):
        _check(0 <= node[key] < float("inf"), f"MODEL.ACTIVATION.{key}", node[key], "at least 0 and finite")
    if cfg.TEST.AUG.ENABLED and architecture(cfg) != "GeneralizedRCNN":
        raise ConfigError(
            "TEST.AUG.ENABLED is True; it must be False for MODEL.META_ARCHITECTURE "
            f"{cfg.MODEL.META_ARCHITECTURE}"
        )
    if architecture(cfg) == "Classifier":
        _check_classifier(cfg)
    workers = cfg.DATALOADER.NUM_WORKERS
    _check(workers >= 0, "DATALOADER.NUM_WORKERS", workers, "at least 0")
    _check(cfg.SEED <= MAX_SEED, "SEED", cfg.SEED, f"at most {MAX_SEED}, or negative for a random one")
    _check_options(cfg)
    if node.NAME == "pwlu":
        _check_phases(node.PWLU)
    _check_norms(cfg, num_processes)


def check_training(cfg, num_processes: int = 1) -> None:
    """Check the keys needed for training only.

    Raises:
        ConfigError: a value is not allowed; the message names the key.
    """
    # If REFERENCE_WORLD_SIZE is set, the batch is for that many processes and is scaled to the actual number.
    batch, num_processes = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE or num_processes
    allowed = f"a multiple of the number of processes, {num_processes}"
    _check(batch > 0 and batch % num_processes == 0, "SOLVER.IMS_PER_BATCH", batch, allowed)
    rate = cfg.SOLVER.BASE_LR
    _check(0 <= rate < float("inf"), "SOLVER.BASE_LR", rate, "at least 0 and finite")
    period = cfg.SOLVER.CHECKPOINT_PERIOD
    _check(period >= 1, "SOLVER.CHECKPOINT_PERIOD", period, "at least 1")
    dtype = cfg.SOLVER.AMP.DTYPE
    _check(dtype in AMP_DTYPES, "SOLVER.AMP.DTYPE", dtype, f"one of {', '.join(AMP_DTYPES)}")
    if cfg.MODEL.ACTIVATION.NAME == "pwlu":
        phase1_iters(cfg)
    if not cfg.MODEL.WEIGHTS:
        why = "when MODEL.WEIGHTS is empty: frozen layers would keep their random initialization"
        freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
        _check(freeze_at == 0, "MODEL.BACKBONE.FREEZE_AT", freeze_at, f"0 {why}")
        norm = cfg.MODEL.RESNETS.NORM
        _check(norm != "FrozenBN", "MODEL.RESNETS.NORM", norm, f"BN, SyncBN or GN {why}")


def check_files(cfg, resume: bool, training: bool) -> list[str]:
    """Check that the datasets and the weights can be used, and that the output directory is writable.

    Returns:
        Lines for the log about images and annotations that are left out of the datasets.

    Raises:
        ConfigError: the value of a key is not valid for the files or this machine.
        CheckpointError: ``MODEL.WEIGHTS`` cannot be read.
        DatasetError: a dataset is missing or damaged.
    """
    _check_device(cfg.MODEL.DEVICE)
    _check(not training or cfg.DATASETS.TRAIN, "DATASETS.TRAIN", cfg.DATASETS.TRAIN, "one dataset or more")
    weights = cfg.MODEL.WEIGHTS
    if not (resume and has_resumable(cfg.OUTPUT_DIR)):
        _check(training or weights, "MODEL.WEIGHTS", weights, "the file to evaluate, unless --resume is used")
        _check_weights(weights)
    notes = check_datasets(cfg, training)
    try:
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        with tempfile.TemporaryFile(dir=cfg.OUTPUT_DIR):
            pass
    except (OSError, ValueError) as error:  # ValueError: not a valid file name
        raise ConfigError(f"OUTPUT_DIR '{cfg.OUTPUT_DIR}' cannot be written: {error}") from error
    return notes


def _check_classifier(cfg) -> None:
    features, kind, flip = cfg.MODEL.CLASSIFIER.IN_FEATURES, cfg.INPUT.CROP.TYPE, cfg.INPUT.RANDOM_FLIP
    _check(len(features) == 1, "MODEL.CLASSIFIER.IN_FEATURES", features, "one feature of the backbone")
    why = f"for MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE!r}"
    _check(kind == "absolute", "INPUT.CROP.TYPE", kind, f"'absolute' {why}")
    _check(flip in FLIPS, "INPUT.RANDOM_FLIP", flip, f"one of {', '.join(FLIPS)} {why}")


def _check_weights(weights: str) -> None:
    path, _, options = weights.partition("?")  # detectron2's syntax
    known = options in ("", "matching_heuristics=True")
    _check(known, "MODEL.WEIGHTS", weights, "a path, optionally followed by ?matching_heuristics=True")
    if path and "://" not in path:
        _check(os.path.isfile(path), "MODEL.WEIGHTS", weights, "an existing file")
        read_checkpoint(path)  # to fail before anything is built


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"MODEL.DEVICE is {name!r}; it must be a valid torch device, such as 'cpu' or 'cuda'"
        ) from error
    if device.type == "cuda":
        number = torch.cuda.device_count() if torch.cuda.is_available() else 0
        _check(number > 0, "MODEL.DEVICE", name, "'cpu' on this machine: torch finds no GPU")
        _check((device.index or 0) < number, "MODEL.DEVICE", name, f"a GPU with an index below {number}")


def _check_options(cfg) -> None:
    """Let the activation's constructor check its options."""
    name = cfg.MODEL.ACTIVATION.NAME
    node = f"MODEL.ACTIVATION.{name.upper()}"
    try:
        with torch.random.fork_rng(devices=[]):  # some parameters are initialized randomly
            build_activation(name, num_channels=2, **activation_options(cfg))
    except OptionError as error:
        key = f"{node}.{error.option.upper()}"
        raise ConfigError(f"{key} is {error.value!r}; it must be {error.allowed}") from error
    except ValueError as error:  # from a user-registered activation
        raise ConfigError(f"{node}: {error}") from error


def _check_phases(node) -> None:
    prefix = "MODEL.ACTIVATION.PWLU."
    _check(
        node.NUM_INTERVALS % 2 == 0 or (node.REALIGN and node.PHASE1_ITERS != 0),
        prefix + "NUM_INTERVALS",
        node.NUM_INTERVALS,
        "an even number without phase I (REALIGN False or PHASE1_ITERS 0): PWLU could not start as ReLU",
    )
    _check(node.PHASE1_ITERS >= -1, prefix + "PHASE1_ITERS", node.PHASE1_ITERS, "at least 0, or -1 (unset)")
    _check(node.PHASE1_EPOCHS >= 0, prefix + "PHASE1_EPOCHS", node.PHASE1_EPOCHS, "at least 0")


def _check_norms(cfg, num_processes: int) -> None:
    node, norm = cfg.MODEL.ACTIVATION, cfg.MODEL.RESNETS.NORM
    if norm == "GN" and node.NAME == "meta_acon" and node.META_ACON.MODE == "channel":
        raise ConfigError(
            f"MODEL.RESNETS.NORM is {norm!r}; it must be BN, SyncBN or FrozenBN if "
            "MODEL.ACTIVATION.META_ACON.MODE is channel: its hidden layer can have fewer channels than GN's "
            "32 groups"
        )
    if num_processes == 1 or not on_cpu(cfg):
        return
    for part in ("RESNETS", "FPN", "RETINANET", "ROI_BOX_HEAD", "ROI_MASK_HEAD"):
        norm = cfg.MODEL[part].NORM
        _check(norm != "SyncBN", f"MODEL.{part}.NORM", norm, "BN or GN: torch's SyncBN only supports GPUs")


def _check_subset(key: str, chosen: list[str], allowed: tuple[str, ...]) -> None:
    _check(
        all(name in allowed for name in chosen), key, chosen, f"a subset of {', '.join(allowed)}, or empty"
    )


def _check(fits: bool, key: str, value, allowed: str) -> None:
    if not fits:
        raise ConfigError(f"{key} is {value!r}; it must be {allowed}")
