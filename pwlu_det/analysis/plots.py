"""Pictures of learned activations."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor

from pwlu_det import ops
from pwlu_det.checkpoint.atomic import atomic_writer

_PARAMETERS = ("points", "left_bound", "right_bound", "left_slope", "right_slope")


def plot_pwlus(state: Mapping[str, Tensor], output: str, num_sites: int = 8, num_channels: int = 5) -> None:
    """Draw learned PWLUs as the paper's figure 7 does: a few channels of a few sites, bounds marked.

    Args:
        state: a model's state dict; sites are found by their keys.
        output: the picture, in the format that its ending names, out of those that matplotlib writes.
        num_sites: how many sites, evenly chosen from the first to the last.
        num_channels: how many channels of each, those whose functions differ most from ReLU.

    Raises:
        ValueError: the state dict holds no PWLU or a damaged one, or the format is unknown.
        OSError: the picture cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    known, ending = figure.canvas.get_supported_filetypes(), os.path.splitext(output)[1][1:].lower()
    if ending not in known:
        raise ValueError(f"the picture's name must end in one of {', '.join(known)}, and {output!r} does not")
    sites = [key.removesuffix(".points") for key in state if key.endswith(".points")]
    if not sites:
        raise ValueError("the file holds no PWLU: no key ends in '.points'")
    chosen = torch.linspace(0, len(sites) - 1, min(num_sites, len(sites))).round().int().tolist()
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    figure.set_size_inches(2.6 * columns, 2.2 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, index in zip(axes, chosen):
        _plot_site(axis, _parameters(state, sites[index]), num_channels)
        axis.set_title(sites[index].removeprefix("backbone.").removeprefix("bottom_up."), fontsize=9)
    for axis in axes[len(chosen) :]:
        axis.remove()
    with atomic_writer(output) as f:
        figure.savefig(f, dpi=120, format=ending)


def _parameters(state: Mapping[str, Tensor], site: str) -> list[Tensor]:
    parameters = [state.get(f"{site}.{name}") for name in _PARAMETERS]
    if any(p is None or not p.isfinite().all() for p in parameters):
        raise ValueError(f"its {site} is no whole PWLU, or not finite")
    points, *others = parameters
    if points.dim() != 2 or 0 in points.shape or any(p.shape != points.shape[:1] for p in others):
        raise ValueError(f"its {site} has parameters whose shapes do not fit together")
    return [p.float() for p in parameters]


def _plot_site(axis, parameters: list[Tensor], num_channels: int) -> None:
    points, left_bound, right_bound, *_ = parameters
    # [P, 200]: a tenth of the width beyond the bounds on either side
    fraction = torch.linspace(-0.1, 1.1, 200)
    x = left_bound[:, None] + fraction * (right_bound - left_bound)[:, None]
    y = ops.pwlu(x.T.contiguous(), *parameters).T
    difference = (y - x.relu()).abs().mean(1) / (right_bound - left_bound)
    channels = difference.argsort(descending=True)[:num_channels]
    for c in channels.tolist():
        (line,) = axis.plot(x[c], y[c], linewidth=1.2)
        ends = ([left_bound[c], right_bound[c]], [points[c, 0], points[c, -1]])
        axis.plot(*ends, "o", markersize=3, color=line.get_color())
    span = torch.tensor([x[channels].min(), x[channels].max()])
    axis.plot(*[torch.linspace(*span, 100), torch.linspace(*span, 100).relu()], ":", color="0.5", linewidth=1)
    axis.tick_params(labelsize=7)
