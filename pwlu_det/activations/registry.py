"""The registry of activations, and the factory that makes one from its name or from a config."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pwlu_det.activations.acon import AconA, AconB, AconC, MetaAcon, Swish
from pwlu_det.activations.apl import APL
from pwlu_det.activations.frelu import FReLU
from pwlu_det.activations.pau import PAU, RPAU
from pwlu_det.activations.pwlu import PWLU
from pwlu_det.activations.rectifiers import Maxout, Mixture, PReLU, SReLU
from pwlu_det.activations.simple import CELU, ELU, LeakyReLU, Mish, ReLU, ReLU6, RReLU, Softplus
from pwlu_det.activations.slaf import SLAF

STAGES = ("stem", "res2", "res3", "res4", "res5", "top")
POSITIONS = ("act1", "act2", "act3")

LEARNING_KEYS = ("REALIGN", "PHASE1_ITERS", "PHASE1_EPOCHS")
"""Keys of a family's config node that say how it is trained; all others, in lower case, are what the
constructor takes."""


@dataclass(frozen=True)
class Family:
    """One activation: how a site is made, and where its authors put it."""

    module: type[nn.Module]
    """called with the number of channels and the family's options"""
    stages: tuple[str, ...] = STAGES
    positions: tuple[str, ...] = POSITIONS
    positions_of_basic_blocks: tuple[str, ...] = POSITIONS
    has_norm: bool = False
    """takes an option ``norm`` that makes the norm of a number of channels"""
    unfit: str = ""
    """why it cannot take the place of a ReLU, where that is so"""


ACTIVATIONS: dict[str, Family] = {
    "relu": Family(ReLU),
    "relu6": Family(ReLU6),
    "leaky_relu": Family(LeakyReLU),
    "rrelu": Family(RReLU),
    "elu": Family(ELU),
    "celu": Family(CELU),
    "mish": Family(Mish),
    "softplus": Family(Softplus),
    "swish": Family(Swish),
    "prelu": Family(PReLU),
    "srelu": Family(SReLU),
    "mixture": Family(Mixture),
    "maxout": Family(Maxout, unfit="it needs twice the channels that a block's convolutions give"),
    # Not after the addition: x^2 of a sum that no norm holds overflows within a few blocks.
    "slaf": Family(SLAF, positions=("act1", "act2"), positions_of_basic_blocks=("act1",)),
    "apl": Family(APL),
    "pau": Family(PAU),
    "rpau": Family(RPAU),
    "acon_a": Family(AconA),
    "acon_b": Family(AconB),
    "acon_c": Family(AconC),
    # After the 3x3 convolution. A basic block has two of them: after the first is our reading.
    "meta_acon": Family(MetaAcon, STAGES[1:5], ("act2",), ("act1",), has_norm=True),
    "frelu": Family(FReLU, STAGES[1:4], has_norm=True),
    "pwlu": Family(PWLU),
}


def get_family(name: str) -> Family:
    """Look up an activation by its name in YAML.

    Raises:
        ValueError: there is none of that name; the message lists all.
    """
    if name not in ACTIVATIONS:
        raise ValueError(
            f"MODEL.ACTIVATION.NAME: unknown activation '{name}'; known are {', '.join(sorted(ACTIVATIONS))}"
        )
    return ACTIVATIONS[name]


def get_family_for_resnet(name: str) -> Family:
    """:func:`get_family` of what can take the place of a ReLU.

    Raises:
        ValueError: an unknown activation, or one that cannot; the message says why.
    """
    family = get_family(name)
    if family.unfit:
        raise ValueError(f"MODEL.ACTIVATION.NAME: '{name}' cannot replace a ResNet's ReLUs: {family.unfit}")
    return family


def build_activation(cfg_or_name, num_channels: int) -> nn.Module:
    """Build one activation for ``[B, num_channels, *]``.

    Args:
        cfg_or_name: a name such as ``"pwlu"``, which takes the family's defaults (a PWLU is then an ordinary
            module, in phase II; a norm is ``nn.BatchNorm2d``), or a config with ``MODEL.ACTIVATION``, whose
            node of the family gives the options; with ``REALIGN`` a PWLU then starts in phase I, and a norm
            is that of ``MODEL.RESNETS.NORM``.
        num_channels: of the result (of the input, too, but for ``"maxout"``, which halves them).

    Raises:
        ValueError: an unknown name, or an option out of its range.
    """
    if isinstance(cfg_or_name, str):
        return get_family(cfg_or_name).module(num_channels)
    node = cfg_or_name.MODEL.ACTIVATION
    family = get_family(node.NAME)
    options = node.get(node.NAME.upper(), {})
    arguments = {key.lower(): value for key, value in options.items() if key not in LEARNING_KEYS}
    if family.has_norm:
        arguments["norm"] = lambda channels: _build_norm(cfg_or_name.MODEL.RESNETS.NORM, channels)
    activation = family.module(num_channels, **arguments)
    if options.get("REALIGN", False):
        activation.begin_collecting()
    return activation


def activation_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What the activations of a model learn pointwise, frozen parameters included.

    Convolutions and norms inside of F-ReLU and Meta-ACON are not among them.
    """
    return [p for activation in _activations(model) for p in activation.parameters(recurse=False)]


def convolution_biases(model: nn.Module) -> list[nn.Parameter]:
    """The biases of the convolutions inside of activations, which their authors do not decay."""
    inner = (module for activation in _activations(model) for module in activation.children())
    return [module.bias for module in inner if isinstance(module, nn.Conv2d)]


def _activations(model: nn.Module) -> list[nn.Module]:
    families = tuple(family.module for family in ACTIVATIONS.values())
    return [module for module in model.modules() if isinstance(module, families)]


def _build_norm(name: str, num_channels: int) -> nn.Module:
    from detectron2.layers import get_norm  # a config is detectron2's, names alone work without it

    return get_norm(name, num_channels) or nn.Identity()
