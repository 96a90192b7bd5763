"""Every config key of this project, how a config is read, and what is wrong with one."""

from __future__ import annotations

import os
import tempfile

import torch

from pwlu_det.activations.acon import MODES as META_ACON_MODES
from pwlu_det.activations.pau import STARTS as PAU_STARTS
from pwlu_det.activations.registry import POSITIONS, STAGES, get_family_for_resnet
from pwlu_det.errors import ConfigError

AMP_DTYPES = ("float16", "bfloat16")
MASK_FORMATS = ("polygon", "bitmask")

# Of numbers that could be any, but for memory and for the range of float32.
MAX_COUNT = 1024
MAX_HINGES = 32  # of APL: its kernels hold 64 parameters of a channel
MAX_WIDTH = 1e6

_STOCK_BACKBONES = (
    "build_resnet_backbone",
    "build_resnet_fpn_backbone",
    "build_retinanet_resnet_fpn_backbone",
)


def add_pwlu_config(cfg) -> None:
    """Add the ``MODEL.ACTIVATION`` node and ``SOLVER.AMP.DTYPE`` to a detectron2 config, in place."""
    from detectron2.config import CfgNode as CN

    # What SOLVER.AMP.ENABLED computes in on a GPU: float16 with a scaled loss, or bfloat16; a CPU: bfloat16.
    cfg.SOLVER.AMP.DTYPE = "float16"

    cfg.MODEL.ACTIVATION = node = CN()
    # relu, relu6, leaky_relu, rrelu, elu, celu, mish, softplus, swish, prelu, srelu, mixture, slaf, apl, pau,
    # rpau, acon_a, acon_b, acon_c, meta_acon, frelu or pwlu. Anything but relu needs one of the build_act_*
    # backbones.
    node.NAME = "relu"
    # Where to put it, out of stem, res2, res3, res4, res5 and top (between P6 and P7 of RetinaNet's FPN).
    # Empty: where its authors do. All other places keep ReLU.
    node.STAGES = []
    # Which places of each block, out of act1, act2 and act3 (act2 is the last of R-18's and R-34's blocks).
    # stem and top have one place each, which counts as act1. Empty: where its authors do.
    node.POSITIONS = []
    # Whether stages frozen by MODEL.BACKBONE.FREEZE_AT are converted too; their activations are then frozen.
    node.CONVERT_FROZEN = False
    # Learning rate of the activations' pointwise parameters, relative to SOLVER.BASE_LR. Convolutions and
    # norms inside of F-ReLU and Meta-ACON are trained as all others are, but for their convolutions' biases,
    # which are not decayed.
    node.LR_FACTOR = 1.0
    # Weight decay of the activations' pointwise parameters.
    node.WEIGHT_DECAY = 0.0

    node.SWISH = CN()
    # x * sigmoid(beta * x) with one learned beta a channel, in place of beta = 1.
    node.SWISH.TRAINABLE_BETA = False

    node.APL = CN()
    # S, the number of hinges beside that at 0: 5 for its authors, 3 (5 was unstable) for those of PWLU.
    node.APL.NUM_HINGES = 3

    node.PAU = CN()
    # One function for each channel, or one for each layer (the authors').
    node.PAU.CHANNEL_WISE = False
    # What it approximates at first: leaky_relu (the authors') or relu.
    node.PAU.START = "leaky_relu"

    # PAU with other coefficients for each element in training.
    node.RPAU = node.PAU.clone()
    # They are drawn between 1 - ALPHA and 1 + ALPHA times their value.
    node.RPAU.ALPHA = 0.01

    node.META_ACON = CN()
    # What beta is computed for: each channel, layer (of each sample) or pixel (of each channel).
    node.META_ACON.MODE = "channel"
    # r of mode channel, which has max(r, C / r) channels between its two convolutions.
    node.META_ACON.REDUCTION = 16

    node.PWLU = CN()
    # N, the number of intervals between the bounds; the paper recommends 8 to 16.
    node.PWLU.NUM_INTERVALS = 16
    # One function for each channel, or one for each layer.
    node.PWLU.CHANNEL_WISE = True
    # The bounds at the start are -INIT_BOUND and INIT_BOUND: the paper's "fix-init-x" where REALIGN is False.
    node.PWLU.INIT_BOUND = 3.0
    # Learn in two phases: be ReLU and collect statistics of the inputs, then align the bounds with them.
    node.PWLU.REALIGN = True
    # T', the first iteration of phase II: in iterations where >= 0, else in epochs (rounded down).
    node.PWLU.PHASE1_ITERS = -1
    node.PWLU.PHASE1_EPOCHS = 5
    # Weight of the old value in the running mean and standard deviation.
    node.PWLU.STAT_MOMENTUM = 0.9
    # The realigned bounds lie this many standard deviations from the mean.
    node.PWLU.NUM_SIGMA = 3.0


def load_config(config_file: str, overrides: list[str]):
    """Read a YAML file over detectron2's defaults and ours, then ``KEY VALUE`` overrides.

    Raises:
        ConfigError: the file cannot be read, holds YAML's unsafe tags, or has a key or type that is unknown.
    """
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_pwlu_config(cfg)
    defaults = cfg.clone()
    try:
        cfg.merge_from_file(config_file, allow_unsafe=False)
    except RecursionError as error:
        why = "it is nested too deeply, or is its own _BASE_"
        raise ConfigError(f"--config-file {config_file}: {why}") from error
    except Exception as error:  # YAML may hold anything, and detectron2 takes it for a config at once
        raise ConfigError(f"--config-file {config_file}: {_text(error)}") from error
    try:
        cfg.merge_from_list(overrides)
    except Exception as error:  # as above: each value is a Python literal
        raise ConfigError(f"command line: {_text(error)}") from error
    _check_no_none(cfg, defaults)
    return cfg


def check_config(cfg, num_processes: int = 1) -> None:
    """Check what can be known before anything is built.

    Raises:
        ConfigError: see the class.
    """
    node = cfg.MODEL.ACTIVATION
    try:
        get_family_for_resnet(node.NAME)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _check_subset("MODEL.ACTIVATION.STAGES", node.STAGES, STAGES)
    _check_subset("MODEL.ACTIVATION.POSITIONS", node.POSITIONS, POSITIONS)
    backbone = cfg.MODEL.BACKBONE.NAME
    _check(
        node.NAME == "relu" or backbone not in _STOCK_BACKBONES,
        "MODEL.BACKBONE.NAME",
        backbone,
        f"{backbone.replace('build_', 'build_act_', 1)} for MODEL.ACTIVATION.NAME {node.NAME!r}",
    )
    mask_format = cfg.INPUT.MASK_FORMAT
    _check(mask_format in MASK_FORMATS, "INPUT.MASK_FORMAT", mask_format, f"one of {', '.join(MASK_FORMATS)}")
    for key in ("LR_FACTOR", "WEIGHT_DECAY"):
        _check(0 <= node[key] < float("inf"), f"MODEL.ACTIVATION.{key}", node[key], "at least 0, and finite")
    if node.NAME == "pwlu":
        _check_pwlu(node.PWLU)
    elif node.NAME == "apl":
        _check_count("MODEL.ACTIVATION.APL.NUM_HINGES", node.APL.NUM_HINGES, MAX_HINGES)
    elif node.NAME in ("pau", "rpau"):
        _check_pau(node.NAME.upper(), node[node.NAME.upper()])
    elif node.NAME == "meta_acon":
        _check_meta_acon(node.META_ACON, cfg.MODEL.RESNETS.NORM)
    _check_norms(cfg, num_processes)


def check_training(cfg, num_processes: int = 1) -> None:
    """Check what only training needs.

    Raises:
        ConfigError: see the class.
    """
    # With REFERENCE_WORLD_SIZE it is the batch of so many processes, and is scaled to those that there are.
    batch, num_processes = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE or num_processes
    allowed = f"a multiple of the number of processes, {num_processes}"
    _check(batch > 0 and batch % num_processes == 0, "SOLVER.IMS_PER_BATCH", batch, allowed)
    dtype = cfg.SOLVER.AMP.DTYPE
    _check(dtype in AMP_DTYPES, "SOLVER.AMP.DTYPE", dtype, f"one of {', '.join(AMP_DTYPES)}")
    node = cfg.MODEL.ACTIVATION.PWLU
    if cfg.MODEL.ACTIVATION.NAME == "pwlu" and node.REALIGN:
        check_phase1_iters(node.PHASE1_ITERS, "MODEL.ACTIVATION.PWLU.PHASE1_ITERS", cfg.SOLVER.MAX_ITER)
    if not cfg.MODEL.WEIGHTS:
        why = "when MODEL.WEIGHTS is empty: frozen layers would keep their random start"
        freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
        _check(freeze_at == 0, "MODEL.BACKBONE.FREEZE_AT", freeze_at, f"0 {why}")
        norm = cfg.MODEL.RESNETS.NORM
        _check(norm != "FrozenBN", "MODEL.RESNETS.NORM", norm, f"BN, SyncBN or GN {why}")


def check_files(cfg, resume: bool, training: bool) -> list[str]:
    """Check that the data sets and the weights can be used, and that the output folder can be written.

    Returns:
        Lines for the log, on what is left out of the data sets.

    Raises:
        ConfigError: see the class.
    """
    from pwlu_det.data.dataset_check import check_datasets

    _check_device(cfg.MODEL.DEVICE)
    _check(not training or cfg.DATASETS.TRAIN, "DATASETS.TRAIN", cfg.DATASETS.TRAIN, "one data set or more")
    weights = cfg.MODEL.WEIGHTS
    if not (resume and os.path.exists(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))):
        _check(training or weights, "MODEL.WEIGHTS", weights, "the file to evaluate, or use --resume")
        _check_weights(weights)
    notes = check_datasets(cfg, training)
    try:
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        with tempfile.TemporaryFile(dir=cfg.OUTPUT_DIR):
            pass
    except (OSError, ValueError) as error:  # the latter for what cannot be a name
        raise ConfigError(f"OUTPUT_DIR '{cfg.OUTPUT_DIR}' cannot be written: {error}") from error
    return notes


def _check_weights(weights: str) -> None:
    from pwlu_det.checkpoint.reader import read_checkpoint

    path, _, options = weights.partition("?")  # as detectron2 has it
    known = options in ("", "matching_heuristics=True")
    _check(known, "MODEL.WEIGHTS", weights, "a path, which ?matching_heuristics=True may follow")
    if path and "://" not in path:
        _check(os.path.isfile(path), "MODEL.WEIGHTS", weights, "a file that exists")
        read_checkpoint(path)  # here, to know it before anything is built


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"MODEL.DEVICE is {name!r}; it must be a device that torch knows, as 'cpu'"
        ) from error
    if device.type == "cuda":
        number = torch.cuda.device_count() if torch.cuda.is_available() else 0
        _check(number > 0, "MODEL.DEVICE", name, "'cpu' on this machine: torch finds no GPU")
        _check((device.index or 0) < number, "MODEL.DEVICE", name, f"one of {number} GPUs: cuda:0 and so on")


def check_phase1_iters(phase1_iters: int, key: str, max_iter: int) -> None:
    """Check that phase II is reached.

    Raises:
        ConfigError: T' >= MAX_ITER.
    """
    if phase1_iters >= max_iter:
        raise ConfigError(
            f"{key}: phase I would last {phase1_iters} iterations; it must be less than SOLVER.MAX_ITER = "
            f"{max_iter}, or the PWLUs would never learn (MODEL.ACTIVATION.PWLU.PHASE1_ITERS sets it)"
        )


def _check_pwlu(node) -> None:
    prefix = "MODEL.ACTIVATION.PWLU."
    n = node.NUM_INTERVALS
    _check_count(prefix + "NUM_INTERVALS", n)
    _check(
        n % 2 == 0 or (node.REALIGN and node.PHASE1_ITERS != 0),
        prefix + "NUM_INTERVALS",
        n,
        "even where it learns from the start (REALIGN False or PHASE1_ITERS 0): else it cannot start as ReLU",
    )
    for key in ("INIT_BOUND", "NUM_SIGMA"):
        _check(0 < node[key] <= MAX_WIDTH, prefix + key, node[key], f"positive and at most {MAX_WIDTH:g}")
    _check(node.PHASE1_ITERS >= -1, prefix + "PHASE1_ITERS", node.PHASE1_ITERS, "at least 0, or -1 (unset)")
    _check(node.PHASE1_EPOCHS >= 0, prefix + "PHASE1_EPOCHS", node.PHASE1_EPOCHS, "at least 0")
    _check(0 <= node.STAT_MOMENTUM < 1, prefix + "STAT_MOMENTUM", node.STAT_MOMENTUM, "in [0, 1)")


def _check_pau(name: str, node) -> None:
    prefix = f"MODEL.ACTIVATION.{name}."
    _check(node.START in PAU_STARTS, prefix + "START", node.START, f"one of {', '.join(PAU_STARTS)}")
    alpha = node.get("ALPHA", 0)
    _check(0 <= alpha <= 1, prefix + "ALPHA", alpha, "in [0, 1]")


def _check_meta_acon(node, norm: str) -> None:
    prefix = "MODEL.ACTIVATION.META_ACON."
    _check(node.MODE in META_ACON_MODES, prefix + "MODE", node.MODE, f"one of {', '.join(META_ACON_MODES)}")
    _check_count(prefix + "REDUCTION", node.REDUCTION)
    _check(
        norm != "GN" or node.MODE != "channel",
        "MODEL.RESNETS.NORM",
        norm,
        f"BN, SyncBN or FrozenBN where {prefix}MODE is channel: GN's 32 groups do not fit its few channels",
    )


def _check_norms(cfg, num_processes: int) -> None:
    if num_processes == 1 or cfg.MODEL.DEVICE != "cpu":
        return
    for part in ("RESNETS", "FPN", "RETINANET", "ROI_BOX_HEAD", "ROI_MASK_HEAD"):
        norm = cfg.MODEL[part].NORM
        _check(norm != "SyncBN", f"MODEL.{part}.NORM", norm, "BN or GN: torch's SyncBN works on GPUs only")


def _check_no_none(cfg, defaults, prefix: str = "") -> None:
    """A merge lets nothing take the place of any value, where it keeps all other types."""
    for key, default in defaults.items():
        if isinstance(default, dict):
            _check_no_none(cfg[key], default, f"{prefix}{key}.")
        else:
            allowed = f"of the type of its default {default!r}, {type(default).__name__}"
            _check(cfg[key] is not None or default is None, prefix + key, None, allowed)


def _check_count(key: str, number: int, most: int = MAX_COUNT) -> None:
    _check(1 <= number <= most, key, number, f"at least 1 and at most {most}")


def _check_subset(key: str, chosen: list[str], allowed: tuple[str, ...]) -> None:
    _check(all(name in allowed for name in chosen), key, chosen, f"out of {', '.join(allowed)}, or empty")


def _check(fits: bool, key: str, value, allowed: str) -> None:
    if not fits:
        raise ConfigError(f"{key} is {value!r}; it must be {allowed}")


def _text(error: Exception) -> str:
    # str() of a KeyError is its message in quotes
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
