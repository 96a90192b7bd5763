"""The registry of activations, and the factory that makes one from its name or from a config."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pwlu_det.activations.pwlu import PWLU
from pwlu_det.activations.simple import PReLU, ReLU, Swish

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


ACTIVATIONS: dict[str, Family] = {
    "relu": Family(ReLU),
    "swish": Family(Swish),
    "prelu": Family(PReLU),
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


def build_activation(cfg_or_name, num_channels: int) -> nn.Module:
    """Build one activation for ``[B, num_channels, *]``.

    Args:
        cfg_or_name: a name such as ``"pwlu"``, which takes the family's defaults (a PWLU is then an ordinary
            module, in phase II), or a config with ``MODEL.ACTIVATION``, whose node of the family gives the
            options; with ``REALIGN`` a PWLU then starts in phase I.

    Raises:
        ValueError: an unknown name, or an option out of its range.
    """
    if isinstance(cfg_or_name, str):
        return get_family(cfg_or_name).module(num_channels)
    node = cfg_or_name.MODEL.ACTIVATION
    family = get_family(node.NAME)
    options = node.get(node.NAME.upper(), {})
    arguments = {key.lower(): value for key, value in options.items() if key not in LEARNING_KEYS}
    activation = family.module(num_channels, **arguments)
    if options.get("REALIGN", False):
        activation.begin_collecting()
    return activation


def activation_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What the activations of a model learn, frozen parameters included."""
    families = tuple(family.module for family in ACTIVATIONS.values())
    activations = [module for module in model.modules() if isinstance(module, families)]
    return [p for activation in activations for p in activation.parameters()]
