"""Pictures of learned activations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pwlu_det import ops

_PARAMETERS = ("points", "left_bound", "right_bound", "left_slope", "right_slope")


def plot_pwlus(state: Mapping[str, Tensor], output: Path, num_sites: int = 8, num_channels: int = 5) -> None:
    """Draw learned PWLUs as the paper's figure 7 does: a few channels of a few sites, bounds marked.

    Args:
        state: a model's state dict; sites are found by their keys.
        output: the picture, in any format that matplotlib writes.
        num_sites: how many sites, evenly chosen from the first to the last.
        num_channels: how many channels of each, those whose functions differ most from ReLU.

    Raises:
        ValueError: the state dict holds no PWLU.
    """
    from matplotlib.figure import Figure

    sites = [key.removesuffix(".points") for key in state if key.endswith(".points")]
    if not sites:
        raise ValueError("the file holds no PWLU: no key ends in '.points'")
    chosen = torch.linspace(0, len(sites) - 1, min(num_sites, len(sites))).round().int().tolist()
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, index in zip(axes, chosen):
        _plot_site(axis, [state[f"{sites[index]}.{name}"].float() for name in _PARAMETERS], num_channels)
        axis.set_title(sites[index].removeprefix("backbone.").removeprefix("bottom_up."), fontsize=9)
    for axis in axes[len(chosen) :]:
        axis.remove()
    figure.savefig(output, dpi=120)


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
