"""All config keys of this project, and reading a config."""

from __future__ import annotations

import os
from typing import Any

from pwlu_det.activations import ACTIVATIONS
from pwlu_det.activations.registry import default_options
from pwlu_det.errors import ConfigError

MAX_SEED = 2**31 - 1
"""The largest SEED: detectron2 adds the rank, and NumPy's seeds are below 2^32."""

# Keys of MODEL.ACTIVATION.PWLU that control its training. All other keys of a node are constructor options.
_TRAINING_KEYS = ("REALIGN", "PHASE1_ITERS", "PHASE1_EPOCHS")

# Limits of YAML: nesting, and the length of numbers.
_MAX_DEPTH, _MAX_NUMBER = 100, 1000
_NUMBER_START = tuple("+-.0123456789")

# detectron2's architectures whose heads can be converted.
_ARCHITECTURES = ("RetinaNet", "GeneralizedRCNN", "ProposalNetwork", "SemanticSegmentor", "PanopticFPN")


def add_pwlu_config(cfg) -> None:
    """Add this project's keys to a detectron2 config, in place."""
    from detectron2.config import CfgNode as CN

    if "ACTIVATION" in cfg.MODEL:  # a second call must not reset what has been set
        return _add_registered(cfg.MODEL.ACTIVATION, CN)
    # The dtype of SOLVER.AMP on a GPU: float16 (with loss scaling) or bfloat16. On a CPU, always bfloat16.
    cfg.SOLVER.AMP.DTYPE = "float16"

    # MODEL.META_ARCHITECTURE "Classifier", with which backbones are pretrained.
    cfg.MODEL.CLASSIFIER = CN()
    cfg.MODEL.CLASSIFIER.IN_FEATURES = ["res5"]
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 1000

    cfg.MODEL.ACTIVATION = node = CN()
    # relu, relu6, leaky_relu, rrelu, elu, celu, mish, softplus, swish, prelu, srelu, mixture, slaf, apl, pau,
    # rpau, acon_a, acon_b, acon_c, meta_acon, frelu, pwlu, or one that you have registered. All except relu
    # need one of the build_act_* backbones.
    node.NAME = "relu"
    # The stages to use it in: a subset of stem, res2, res3, res4, res5 and top (between P6 and P7 in
    # RetinaNet's FPN). Empty: as its authors do. All other stages keep ReLU.
    node.STAGES = []
    # The positions in each block: a subset of act1, act2 and act3 (the blocks of have no act3).
    # stem and top have one position each, which counts as act1. Empty: as its authors do.
    node.POSITIONS = []
    # Whether to also convert stages frozen by MODEL.BACKBONE.FREEZE_AT; their activations are frozen, too.
    node.CONVERT_FROZEN = False
    # The heads to use it in as well: a subset of retinanet, rpn, box_head, mask_head, keypoint_head,
    # sem_seg_head and res5 (the last stage of a C4 model). All ReLUs of a head are replaced; in res5, those
    # at POSITIONS. MODEL.META_ARCHITECTURE must then be ActRetinaNet, ActGeneralizedRCNN, ActProposalNetwork,
    # ActSemanticSegmentor or ActPanopticFPN.
    node.HEADS = []
    # Whether the blocks of the backbone call a batch norm and the activation after it, with the shortcut
    # added in between, as one op, which takes less memory and time. It applies to devices with kernels for
    # it, to BN, SyncBN and FrozenBN; all other norms and activations are called as modules.
    node.FUSE_NORM = True
    # Whether FUSE_NORM applies to the ReLUs in converted blocks, too. They are then equal to detectron2's to
    # rounding, not bit for bit.
    node.FUSE_RELU = False
    # Learning rate of the activations' pointwise parameters, relative to SOLVER.BASE_LR. Convolutions and
    # norms inside F-ReLU and Meta-ACON are trained like all others, except that the convolutions' biases are
    # not decayed.
    node.LR_FACTOR = 1.0
    # Weight decay of the activations' pointwise parameters.
    node.WEIGHT_DECAY = 0.0

    node.SWISH = CN()
    # x * sigmoid(beta * x) with one learned beta per channel, instead of beta = 1.
    node.SWISH.TRAINABLE_BETA = False

    node.APL = CN()
    # S, the number of hinges in addition to ReLU's. The authors of APL use 5; those of PWLU find that
    # unstable and use 3.
    node.APL.NUM_HINGES = 3

    node.PAU = CN()
    # Whether to learn one function per channel, or one per layer (as the authors do).
    node.PAU.CHANNEL_WISE = False
    # The function approximated at initialization: leaky_relu (the authors') or relu.
    node.PAU.START = "leaky_relu"

    # PAU with randomized coefficients in training.
    node.RPAU = node.PAU.clone()
    # For each element, each coefficient is drawn between 1 - ALPHA and 1 + ALPHA times its value.
    node.RPAU.ALPHA = 0.01

    node.META_ACON = CN()
    # One beta per sample and channel (channel), per sample (layer), or per element (pixel).
    node.META_ACON.MODE = "channel"
    # r of mode channel, which has max(r, C / r) channels between its two convolutions.
    node.META_ACON.REDUCTION = 16

    node.PWLU = CN()
    # N, the number of intervals between the bounds; the paper recommends 8 to 16.
    node.PWLU.NUM_INTERVALS = 16
    # Whether to learn one function per channel, or one per layer.
    node.PWLU.CHANNEL_WISE = True
    # The initial bounds are -INIT_BOUND and INIT_BOUND: the paper's "fix-init-x" if REALIGN is False.
    node.PWLU.INIT_BOUND = 3.0
    # Learn in two phases: act as ReLU and collect input statistics, then align the bounds with them.
    node.PWLU.REALIGN = True
    # T', the first iteration of phase II: PHASE1_ITERS if >= 0, else PHASE1_EPOCHS (rounded down).
    node.PWLU.PHASE1_ITERS = -1
    node.PWLU.PHASE1_EPOCHS = 5
    # Weight of the old value in the running mean and standard deviation.
    node.PWLU.STAT_MOMENTUM = 0.9
    # Distance of the realigned bounds from the mean, in standard deviations.
    node.PWLU.NUM_SIGMA = 3.0

    _add_registered(node, CN)


def _add_registered(node, CN) -> None:
    """Add a node with the constructor's options for each user-registered activation."""
    for name in ACTIVATIONS:
        key, options = name.upper(), default_options(name)
        if key not in node and options:
            node[key] = CN({option.upper(): default for option, default in options.items()})
        elif options and not isinstance(node[key], CN):
            raise ConfigError(
                f"The activation '{name}' has options, but MODEL.ACTIVATION.{key} is already another key; "
                "register the activation under a different name"
            )


def load_config(config_file: str, overrides: list[str]):
    """Build a config from detectron2's defaults and ours, a YAML file, and ``KEY VALUE`` overrides.

    Raises:
        ConfigError: the file cannot be read, has unsafe YAML tags, or has an unknown key or a wrong type.
    """
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_pwlu_config(cfg)
    defaults = cfg.clone()
    try:
        _check_config_file(config_file)
        cfg.merge_from_file(config_file, allow_unsafe=False)
    except RecursionError as error:
        why = "it is nested too deeply, or its _BASE_ refers back to it"
        raise ConfigError(f"--config-file {config_file}: {why}") from error
    except Exception as error:  # detectron2 does not check what the YAML contains, so anything can be raised
        raise ConfigError(f"--config-file {config_file}: {_text(error)}") from error
    try:
        cfg.merge_from_list(overrides)
    except Exception as error:  # as above: each value may be any Python literal
        raise ConfigError(f"command line: {_text(error)}") from error
    _check_no_none(cfg, defaults)
    return cfg


def _check_config_file(path: str) -> None:
    """Call :func:`check_yaml` for a config file and for those that ``_BASE_`` names."""
    import yaml

    for _ in range(100):  # _BASE_ may refer back to the file
        if not os.path.isfile(path):
            if os.path.exists(path):  # opening a named pipe would wait for its other end
                raise ValueError(f"{path} is not a regular file")
            return  # detectron2 reports the missing file
        with open(path) as f:
            text = f.read()
        check_yaml(text)
        content = yaml.safe_load(text)
        if not isinstance(content, dict):
            raise ValueError(f"{path} must contain keys and values, such as 'VERSION: 2'")
        base = content.get("_BASE_")
        if not isinstance(base, str):
            return
        path = os.path.join(os.path.dirname(path), os.path.expanduser(base))


def check_yaml(text: str) -> None:
    """Check that YAML can be loaded and printed in a time proportional to the length of its text.

    Raises:
        ValueError: its aliases make it larger than its text, it is nested too deeply, or a number in it is
            too long.
        yaml.YAMLError: it is not valid YAML.
    """
    import yaml

    sizes: dict[str | None, int] = {}  # of anchored nodes
    stack: list[tuple[str | None, int]] = [(None, 0)]  # anchors and sizes of the nodes not yet closed
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append((event.anchor, 1))
            if len(stack) > _MAX_DEPTH:
                raise ValueError("it is nested too deeply")
            continue
        if isinstance(event, yaml.AliasEvent):
            size = sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            size = sizes[event.anchor] = 1
            # Numbers to the base 60, such as 1:30:00, take quadratic time.
            if event.style is None and event.value[:1] in _NUMBER_START and len(event.value) > _MAX_NUMBER:
                raise ValueError(f"it has a number of more than {_MAX_NUMBER} characters")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = stack.pop()
            sizes[anchor] = size
        else:  # the start or end of a document
            continue
        stack[-1] = stack[-1][0], stack[-1][1] + size
        if stack[-1][1] > max(len(text), 1000):
            raise ValueError("its aliases (*name) repeat its content too often")


def activation_options(cfg) -> dict[str, Any]:
    """The constructor options of the activation ``MODEL.ACTIVATION.NAME``, from its node."""
    node = cfg.MODEL.ACTIVATION
    options = node.get(node.NAME.upper(), {})
    return {key.lower(): value for key, value in options.items() if key not in _TRAINING_KEYS}


def phase1_iters(cfg, num_images: int | None = None) -> int | None:
    """T', the first iteration of phase II: ``PHASE1_ITERS`` if >= 0, else ``PHASE1_EPOCHS`` (rounded down).

    Args:
        num_images: number of training images. Without it, None is returned if T' is given in epochs.

    Raises:
        ConfigError: T' is not before the end of training, so the PWLUs would never learn.
    """
    node = cfg.MODEL.ACTIVATION.PWLU
    if not node.REALIGN:
        return 0  # also ends phase I of sites that MODEL.WEIGHTS left in phase I
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
            "(set MODEL.ACTIVATION.PWLU.PHASE1_ITERS)"
        )
    return iters


def architecture(cfg) -> str:
    """``MODEL.META_ARCHITECTURE``, without the prefix of the architectures that convert heads."""
    return cfg.MODEL.META_ARCHITECTURE.removeprefix("Act")


def check_architecture(cfg) -> None:
    """Check that the architecture converts the heads of ``MODEL.ACTIVATION.HEADS``, if there are any.

    Raises:
        ConfigError: it is one of detectron2's, which ignore that key.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if cfg.MODEL.ACTIVATION.HEADS and name in _ARCHITECTURES:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE is {name!r}; it must be 'Act{name}' for MODEL.ACTIVATION.HEADS "
            f"{cfg.MODEL.ACTIVATION.HEADS}"
        )


def on_cpu(cfg) -> bool:
    """Whether ``MODEL.DEVICE`` is a CPU, such as ``cpu`` or ``cpu:0``."""
    return cfg.MODEL.DEVICE.split(":")[0] == "cpu"


def _check_no_none(cfg, defaults, prefix: str = "") -> None:
    """Raise ConfigError if a value was replaced by None, the only change of type that merging allows."""
    for key, default in defaults.items():
        if isinstance(default, dict):
            _check_no_none(cfg[key], default, f"{prefix}{key}.")
        else:
            allowed = f"of the type of its default {default!r}, {type(default).__name__}"
            if cfg[key] is None and default is not None:
                raise ConfigError(f"{prefix}{key} is None; it must be {allowed}")


def _text(error: Exception) -> str:
    # str() of a KeyError puts the message in quotes
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return text[:2000] or type(error).__name__  # detectron2's messages contain the whole value
