"""The registry of activations: each name that users write, and its class."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from pwlu_det.errors import PwluDetError

ACTIVATIONS: dict[str, type[nn.Module]] = {}
"""All registered classes by name, in the order of their registration."""

T = TypeVar("T", bound=type[nn.Module])


class UnknownActivationError(PwluDetError):
    """There is no activation of that name; the message lists all."""


class OptionError(PwluDetError):
    """An option of an activation is out of its range."""

    def __init__(self, activation: str, option: str, value: Any, allowed: str):
        super().__init__(activation, option, value, allowed)
        self.activation, self.option, self.value, self.allowed = activation, option, value, allowed

    def __str__(self) -> str:
        return f"{self.activation}: {self.option} is {self.value!r}; it must be {self.allowed}"


def check_option(activation: str, option: str, value: Any, fits: bool, allowed: str) -> None:
    """Raise :class:`OptionError` unless the value fits."""
    if not fits:
        raise OptionError(activation, option, value, allowed)


def register_activation(name: str) -> Callable[[T], T]:
    """Class decorator that makes an activation available under a name, in Python and in YAML.

    The class is an ``nn.Module`` that maps ``[B, C, *]`` to the same shape, dtype and layout, out of place.
    Its constructor takes ``num_channels`` and then options, each with a default. In a config they are the
    keys of the node ``MODEL.ACTIVATION.<NAME>``, in upper case. An option called ``norm`` is a function that
    makes the norm for a number of channels; a config gives it the norm of the backbone.

    Parameters of the module itself are optimized as pointwise parameters (``MODEL.ACTIVATION.LR_FACTOR`` and
    ``WEIGHT_DECAY``), those of its submodules as those of the backbone. None may be called ``weight``.

    Raises:
        ValueError: the name is taken, or the constructor is not of that form.
    """

    def register(cls: T) -> T:
        if name in ACTIVATIONS:
            raise ValueError(f"register_activation: the name '{name}' is already that of {ACTIVATIONS[name]}")
        first, *options = inspect.signature(cls).parameters.values()
        if first.name != "num_channels" or any(o.default is o.empty for o in options):
            raise ValueError(
                f"register_activation('{name}'): the constructor of {cls.__name__} must take num_channels, "
                "and then options that all have defaults"
            )
        ACTIVATIONS[name] = cls
        return cls

    return register


def get_activation(name: str) -> type[nn.Module]:
    """The class that is registered under a name.

    Raises:
        UnknownActivationError: there is none.
    """
    if name not in ACTIVATIONS:
        raise UnknownActivationError(
            f"unknown activation '{name}'; known are {', '.join(sorted(ACTIVATIONS))}"
        )
    return ACTIVATIONS[name]


def default_options(name: str) -> dict[str, Any]:
    """The options of an activation but for ``norm``, with their defaults."""
    _, *options = inspect.signature(get_activation(name)).parameters.values()
    return {option.name: option.default for option in options if option.name != "norm"}


def keeps_channels(name: str) -> bool:
    """Whether the output of an activation has the channels of its input, as all but Maxout's has."""
    return getattr(get_activation(name), "keeps_channels", True)


def takes_norm(name: str) -> bool:
    """Whether an activation has an option ``norm``."""
    return "norm" in inspect.signature(get_activation(name)).parameters


def build_activation(name: str, num_channels: int, **options: Any) -> nn.Module:
    """Build one activation for ``[B, num_channels, *]``, by default with its authors' options.

    Args:
        name: a registered name such as ``"pwlu"``.
        num_channels: of the output; also of the input, but for ``"maxout"``, which halves them.
        options: what the constructor takes.

    Raises:
        UnknownActivationError: there is no activation of that name.
        OptionError: an option is out of its range.
    """
    return get_activation(name)(num_channels, **options)
