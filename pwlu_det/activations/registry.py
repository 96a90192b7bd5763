"""The registry of activations: names, as used in configs, and classes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from pwlu_det.errors import PwluDetError

ACTIVATIONS: dict[str, type[nn.Module]] = {}
"""All registered classes by name, in order of registration."""

T = TypeVar("T", bound=type[nn.Module])


class UnknownActivationError(PwluDetError):
    """No activation is registered under the name; the message lists all names."""


class OptionError(PwluDetError):
    """An option of an activation is out of range."""

    def __init__(self, activation: str, option: str, value: Any, allowed: str):
        super().__init__(activation, option, value, allowed)
        self.activation, self.option, self.value, self.allowed = activation, option, value, allowed

    def __str__(self) -> str:
        return f"{self.activation}: {self.option} is {self.value!r}; it must be {self.allowed}"


def check_option(activation: str, option: str, value: Any, fits: bool, allowed: str) -> None:
    """Raise :class:`OptionError` unless ``fits`` is True; ``allowed`` completes "it must be ..."."""
    if not fits:
        raise OptionError(activation, option, value, allowed)


def register_activation(name: str) -> Callable[[T], T]:
    """Class decorator that registers an activation under a name, for use in Python and YAML.

    The class is an ``nn.Module`` that maps ``[B, C, *]`` to the same shape, dtype and layout, out of place.
    Its constructor takes ``num_channels`` and then options, each with a default. In a config, the options are
    the keys of the node ``MODEL.ACTIVATION.<NAME>``, in upper case. An option named ``norm`` is a function
    that takes the number of channels and returns a norm; with a config, it builds the backbone's norm. An
    argument named ``inplace`` is not an option: it is for libraries that call ``act_layer(inplace=True)``.

    Parameters of the module itself are optimized as pointwise parameters (``MODEL.ACTIVATION.LR_FACTOR`` and
    ``WEIGHT_DECAY``), and those of its submodules like the backbone's. None may be named ``weight``.

    Raises:
        ValueError: the name is already taken, or the constructor has a different signature.
    """

    def register(cls: T) -> T:
        if name in ACTIVATIONS:
            raise ValueError(f"register_activation: the name '{name}' is already used by {ACTIVATIONS[name]}")
        first, *options = inspect.signature(cls).parameters.values()
        if first.name != "num_channels" or any(o.default is o.empty for o in options):
            raise ValueError(
                f"register_activation('{name}'): the constructor of {cls.__name__} must take num_channels, "
                "followed by options that all have defaults"
            )
        ACTIVATIONS[name] = cls
        if first.default is first.empty:
            _require_channels(cls)
        return cls

    return register


def _require_channels(cls: type[nn.Module]) -> None:
    """Make the constructor explain what to do if a library calls it without the number of channels."""
    construct = cls.__init__

    @functools.wraps(construct)
    def checked(self, *arguments: Any, **named: Any) -> None:
        if not arguments and "num_channels" not in named:
            raise TypeError(
                f"{cls.__name__} needs num_channels, the number of channels of its input. If a library takes "
                f"the class and does not pass it, as timm does with act_layer, build the model with ReLU and "
                f"replace each ReLU with {cls.__name__}(num_channels), as pwlu_det.convert_model does; in a "
                "detectron2 backbone, use pwlu_det.convert_activations"
            )
        construct(self, *arguments, **named)

    cls.__init__ = checked


def get_activation(name: str) -> type[nn.Module]:
    """The class registered under a name.

    Raises:
        UnknownActivationError: no activation is registered under the name.
    """
    if name not in ACTIVATIONS:
        raise UnknownActivationError(
            f"unknown activation '{name}'; it must be one of {', '.join(sorted(ACTIVATIONS))}"
        )
    return ACTIVATIONS[name]


def default_options(name: str) -> dict[str, Any]:
    """The options of an activation except ``norm``, with their defaults; ``inplace`` is not one."""
    _, *options = inspect.signature(get_activation(name)).parameters.values()
    return {option.name: option.default for option in options if option.name not in ("norm", "inplace")}


def keeps_channels(name: str) -> bool:
    """Whether an activation has as many output channels as input channels; all but Maxout do."""
    return getattr(get_activation(name), "keeps_channels", True)


def takes_norm(name: str) -> bool:
    """Whether an activation has an option ``norm``."""
    return "norm" in inspect.signature(get_activation(name)).parameters


def build_activation(name: str, num_channels: int, **options: Any) -> nn.Module:
    """Build an activation for ``[B, num_channels, *]``, with default options unless given.

    Args:
        name: a registered name such as ``"pwlu"``.
        num_channels: number of output channels. The input has as many, or twice as many for ``"maxout"``.
        options: keyword arguments of the constructor.

    Raises:
        UnknownActivationError: no activation is registered under the name.
        OptionError: an option is out of range.
    """
    return get_activation(name)(num_channels, **options)
