"""Every config key of this project, and how a config is read."""

from __future__ import annotations

from typing import Any

from pwlu_det.activations import ACTIVATIONS
from pwlu_det.activations.registry import default_options
from pwlu_det.errors import ConfigError

# Keys of MODEL.ACTIVATION.PWLU that say how it is trained; all other keys of a node are constructor options.
_TRAINING_KEYS = ("REALIGN", "PHASE1_ITERS", "PHASE1_EPOCHS")


def add_pwlu_config(cfg) -> None:
    """Add the ``MODEL.ACTIVATION`` node and ``SOLVER.AMP.DTYPE`` to a detectron2 config, in place."""
    from detectron2.config import CfgNode as CN

    if "ACTIVATION" in cfg.MODEL:  # a second call must not reset what has been set
        return _add_registered(cfg.MODEL.ACTIVATION, CN)
    # What SOLVER.AMP.ENABLED computes in on a GPU: float16 with a scaled loss, or bfloat16; a CPU: bfloat16.
    cfg.SOLVER.AMP.DTYPE = "float16"

    cfg.MODEL.ACTIVATION = node = CN()
    # relu, relu6, leaky_relu, rrelu, elu, celu, mish, softplus, swish, prelu, srelu, mixture, slaf, apl, pau,
    # rpau, acon_a, acon_b, acon_c, meta_acon, frelu, pwlu, or one that you have registered. Anything but relu
    # needs one of the build_act_* backbones.
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

    _add_registered(node, CN)


def _add_registered(node, CN) -> None:
    """Add a node with the constructor's options for each activation that a user has registered."""
    for name in ACTIVATIONS:
        key, options = name.upper(), default_options(name)
        if key not in node and options:
            node[key] = CN({option.upper(): default for option, default in options.items()})
        elif options and not isinstance(node[key], CN):
            raise ConfigError(
                f"The activation '{name}' has options, but MODEL.ACTIVATION.{key} is a key of its own; "
                "register the activation under another name"
            )


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


def activation_options(cfg) -> dict[str, Any]:
    """The constructor's options of the activation ``MODEL.ACTIVATION.NAME``, from its node."""
    node = cfg.MODEL.ACTIVATION
    options = node.get(node.NAME.upper(), {})
    return {key.lower(): value for key, value in options.items() if key not in _TRAINING_KEYS}


def phase1_iters(cfg, num_images: int | None = None) -> int | None:
    """T', the first iteration of phase II: ``PHASE1_ITERS``, or else ``PHASE1_EPOCHS`` rounded down.

    Args:
        num_images: in the training set; without it T' is None where it is given in epochs.

    Raises:
        ConfigError: T' is not before the end of the training, so that the PWLUs would never learn.
    """
    node = cfg.MODEL.ACTIVATION.PWLU
    if not node.REALIGN:
        return 0  # also ends phase I of sites that MODEL.WEIGHTS has left in it
    if node.PHASE1_ITERS >= 0:
        key, iters = "PHASE1_ITERS", node.PHASE1_ITERS
    elif num_images is None:
        return None
    else:
        key, iters = "PHASE1_EPOCHS", node.PHASE1_EPOCHS * num_images // cfg.SOLVER.IMS_PER_BATCH
    if iters >= cfg.SOLVER.MAX_ITER:
        raise ConfigError(
            f"MODEL.ACTIVATION.PWLU.{key}: phase I would last {iters} iterations; it must be less than "
            f"SOLVER.MAX_ITER = {cfg.SOLVER.MAX_ITER}, or the PWLUs would never learn "
            "(MODEL.ACTIVATION.PWLU.PHASE1_ITERS sets it)"
        )
    return iters


def on_cpu(cfg) -> bool:
    """Whether ``MODEL.DEVICE`` is a CPU, as ``cpu`` or ``cpu:0``."""
    return cfg.MODEL.DEVICE.split(":")[0] == "cpu"


def _check_no_none(cfg, defaults, prefix: str = "") -> None:
    """A merge lets nothing take the place of any value, where it keeps all other types."""
    for key, default in defaults.items():
        if isinstance(default, dict):
            _check_no_none(cfg[key], default, f"{prefix}{key}.")
        else:
            allowed = f"of the type of its default {default!r}, {type(default).__name__}"
            if cfg[key] is None and default is not None:
                raise ConfigError(f"{prefix}{key} is None; it must be {allowed}")


def _text(error: Exception) -> str:
    # str() of a KeyError is its message in quotes
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
