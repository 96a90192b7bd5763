"""convert_model(): another activation in any torch model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pwlu_det.activations import PWLU, build_activation
from pwlu_det.activations.modules import evaluating
from pwlu_det.conversion.calls import CallSites, Dispatching
from pwlu_det.conversion.install import Installation
from pwlu_det.conversion.record import Place, record
from pwlu_det.conversion.report import ConversionReport, Site
from pwlu_det.errors import PwluDetError

_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.Mish),
    *(nn.Softplus, nn.Hardtanh, nn.PReLU, nn.RReLU),
)


class ChannelsLast(nn.Module):
    """An activation for ``[B, C, *]``, applied to ``[B, *, C]``."""

    def __init__(self, activation: nn.Module):
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x.movedim(-1, 1)).movedim(1, -1)


def convert_model(
    model: nn.Module, name: str, example_inputs: Any, min_map_size: int = 2, **options: Any
) -> tuple[nn.Module, ConversionReport]:
    """Replace the activations of any model, in place.

    The model is called once in evaluation mode, without gradients, to find each line that calls an activation
    of torch, as a module or as a function. Each gets an activation of its own, for the channels that it
    has; a line that is called several times, such as that of a head applied to several feature maps, has one.
    The state dict only gains keys. Batch-norm statistics, modes, random state and ``requires_grad`` stay.

    A new PWLU starts as the activation that it replaces: by least squares over the inputs that the example
    gives it. In phase I, it computes that activation itself, and at the end it is fitted anew, within the
    bounds of equation 6 (:class:`~pwlu_det.TwoPhase`). Others start as their papers say.

    Activations of inputs whose last dimension holds the channels, ``[B, *, C]``, use that dimension. Which it
    is follows from the last convolution, norm or linear layer before the activation.

    Args:
        model: the model. ``torch.compile`` does not support those that call an activation as a function,
            or one module on several lines.
        name: a registered activation, such as ``"pwlu"``.
        example_inputs: the argument, or a tuple of the arguments, of a call that reaches all activations.
        min_map_size: activations whose maps have no side of at least this size are kept. An input without
            spatial dimensions has size 1.
        options: options of the activation, such as ``num_intervals=32``.

    Returns:
        ``model``, and a report of what was replaced, what was not, and why.

    Raises:
        PwluDetError: there is nothing to replace, the model has been converted before, or it does not work
            with activations that are not in place. It is then unchanged.
    """
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if any(isinstance(m, (CallSites, Dispatching)) for m in model.modules()):
        raise PwluDetError("convert_model: the model has been converted before")
    places, others, before = record(model, inputs)
    names = {module: name for name, module in model.named_modules()}
    kept = [
        Site(names.get(p.module or p.owner, ""), p.function, p.channels, p.channel_dim, reason)
        for p in places
        if (reason := p.obstacle(min_map_size))
    ]
    reason = "it is not a function that is replaced"
    kept += [Site(names.get(owner, ""), function, reason=reason) for owner, function in others]
    chosen = [place for place in places if not place.obstacle(min_map_size)]
    if not chosen:
        raise PwluDetError(f"convert_model: the model has no activation to replace; {ConversionReport(kept)}")
    activations = [_build(name, place, options) for place in chosen]
    installation = Installation(model, places, chosen)
    try:
        _check_same_output(model, inputs, before)
        report = ConversionReport()
        for place, activation in zip(chosen, activations):
            installation.put(place, activation.train(place.owner.training))
            report.sites.append(_describe(name, installation.name(place), place, activation))
        report.sites += [*kept, *_unreached(model, places, activations)]
        with evaluating(model):
            report.output_error = _difference(model(*inputs), before)
    except BaseException:
        installation.undo()
        raise
    return model, report


def _check_same_output(model: nn.Module, inputs: tuple, expected: Any) -> None:
    """Check that the original activations give the same output out of place."""
    with evaluating(model):
        difference = _difference(model(*inputs), expected)
    if difference is not None and not difference < 1e-5:
        raise PwluDetError(
            "convert_model: the model's output changes if its activations are not in place: a line reads a "
            "tensor after an activation has changed it, or the output is random, or it is NaN"
        )


def _build(name: str, place: Place, options: dict[str, Any]) -> nn.Module:
    activation = build_activation(name, place.channels, **options)
    x = place.inputs()
    activation.to(x.device, torch.float64 if place.example.dtype == torch.float64 else None)
    if isinstance(activation, PWLU):
        activation.start_as(place.original, x)
    return activation if place.channel_dim == 1 else ChannelsLast(activation)


def _describe(name: str, own: str, place: Place, activation: nn.Module) -> Site:
    inner = activation.activation if isinstance(activation, ChannelsLast) else activation
    x = place.inputs()
    with torch.no_grad(), evaluating(inner):
        y, expected = inner(x[None, :, :, None])[0, :, :, 0], place.original(x)
    error = float((y - expected).norm() / expected.norm().clamp(min=1e-30))
    fitted = isinstance(inner, PWLU)
    warning = f"it starts as {name}, not as the {place.function} that was there"
    warning = "" if fitted or error < 1e-6 else warning
    return Site(own, place.function, len(x), place.channel_dim, "", warning, error if fitted else None)


def _unreached(model: nn.Module, places: list[Place], activations: list[nn.Module]) -> list[Site]:
    new = {m for activation in activations for m in activation.modules()}
    seen = {place.module for place in places} | new
    return [
        Site(name, type(module).__name__, reason="it has parameters or random numbers of its own")
        if isinstance(module, (nn.PReLU, nn.RReLU))
        else Site(name, type(module).__name__, reason="the example does not reach it")
        for name, module in model.named_modules()
        if isinstance(module, _MODULES) and module not in seen
    ]


def _difference(actual: Any, expected: Any) -> float | None:
    """The relative difference of two outputs in the Euclidean norm; None if their shapes differ."""
    pairs = [
        (a.double(), b.double())
        for a, b in zip(_tensors(actual), _tensors(expected))
        if b.is_floating_point()
    ]
    if not pairs or any(a.shape != b.shape for a, b in pairs):
        return None
    change = sum(float((a - b).square().sum()) for a, b in pairs)
    return (change / max(sum(float(b.square().sum()) for _, b in pairs), 1e-300)) ** 0.5


def _tensors(output: Any) -> list[Tensor]:
    """The tensors of an output, which may have detectron2's Instances and Boxes in it."""
    found = []
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif hasattr(leaf, "get_fields"):
            found += _tensors(leaf.get_fields())
        elif isinstance(getattr(leaf, "tensor", None), Tensor):
            found.append(leaf.tensor)
    return found
