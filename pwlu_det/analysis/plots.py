"""Plots of learned activations: of one checkpoint, or of several as a strip or an animation."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from torch import Tensor

from pwlu_det.analysis.snapshots import Site, Snapshot
from pwlu_det.checkpoint.atomic import atomic_writer

# Okabe and Ito's palette, which is suitable for color-blind readers.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_DARK = "0.25"
_WIDTH = 8.3  # inches: the width of a README at 100 dots per inch


def plot_pwlus(
    snapshots: Sequence[Snapshot], output: str, names: Sequence[str] = (), num_channels: int = 5
) -> None:
    """Plot learned PWLUs as in the paper's figure 7: a few channels of a few sites, with their bounds.

    Several snapshots are plotted as a strip, or as an animation if ``output`` ends in ``.gif``.

    Args:
        snapshots: snapshots of one model, from :func:`read_snapshots`.
        output: the file to write. Its extension determines the format, one of those that matplotlib supports.
        names: the sites. Default: eight (four for several snapshots), evenly spaced from first to last.
        num_channels: the number of channels per site.

    Raises:
        ValueError: a site does not exist, or the format is unknown.
        OSError: the file cannot be written.
    """
    known = sorted({*Figure().canvas.get_supported_filetypes(), "gif"})
    ending = os.path.splitext(output)[1][1:].lower()
    if ending not in known:
        raise ValueError(f"the plot's file name is {output!r}; it must end in one of {', '.join(known)}")
    names = names or _choose_sites(snapshots[0], 8 if len(snapshots) == 1 else 4)
    with atomic_writer(output) as f:
        if ending == "gif":
            _write_gif(f, draw_pages(snapshots, names, num_channels), _durations(snapshots, names))
            return
        draw = draw_strip if len(snapshots) > 1 else lambda *arguments: draw_pages(*arguments)[0]
        draw(snapshots, names, num_channels).savefig(f, dpi=200, format=ending)


def draw_pages(snapshots: Sequence[Snapshot], names: Sequence[str], num_channels: int = 5) -> list[Figure]:
    """One figure per snapshot, with one panel per site.

    All figures have the same axes and channels: those that differ most from ReLU in the last snapshot.

    Raises:
        ValueError: a site does not exist.
    """
    views = [_choose_view(snapshots, name, num_channels) for name in names]
    columns = min(4, len(views))
    rows = -(-len(views) // columns)
    figures = []
    for snapshot, title in zip(snapshots, _titles(snapshots, names)):
        figure = _make_figure(0.6 + 2.0 * rows)
        figure.suptitle(" · ".join(title), fontsize=10)
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis, view in zip(axes, views):
            _draw_site(axis, snapshot.sites[view.name], view)
            axis.set_title(view.name, fontsize=9)
        for axis in axes[len(views) :]:
            axis.remove()
        figures.append(figure)
    return figures


def draw_strip(snapshots: Sequence[Snapshot], names: Sequence[str], num_channels: int = 5) -> Figure:
    """One figure with a column per snapshot and a row per site; see :func:`draw_pages`."""
    views = [_choose_view(snapshots, name, num_channels) for name in names]
    figure = _make_figure(0.7 + len(views) * 0.9 * _WIDTH / len(snapshots))
    axes = figure.subplots(len(views), len(snapshots), squeeze=False, sharex="row", sharey="row")
    for row, view in zip(axes, views):
        row[0].set_ylabel(view.name, fontsize=8)
        for axis, snapshot in zip(row, snapshots):
            _draw_site(axis, snapshot.sites[view.name], view)
    for axis, title in zip(axes[0], _titles(snapshots, names)):
        axis.set_title("\n".join(title), fontsize=8)
    return figure


@dataclass
class _View:
    """The settings shared by all plots of a site."""

    name: str
    channels: list[int]
    x: Tensor
    """the inputs, ``[400]``: from the lowest left bound to the highest right bound, and a little more"""
    y_limits: tuple[float, float]


def _choose_sites(snapshot: Snapshot, number: int) -> list[str]:
    names = list(snapshot.sites)
    chosen = torch.linspace(0, len(names) - 1, min(number, len(names))).round().int().tolist()
    return [names[i] for i in chosen]


def _choose_view(snapshots: Sequence[Snapshot], name: str, num_channels: int) -> _View:
    if name not in snapshots[0].sites:
        raise ValueError(f"unknown PWLU {name!r}; it must be one of {', '.join(snapshots[0].sites)}")
    history = [snapshot.sites[name] for snapshot in snapshots]
    left, right = history[-1].bounds.split(1, dim=1)
    width = (right - left).clamp(min=1e-4)
    x = left + torch.linspace(0, 1, 200) * width
    difference = (history[-1](x) - x.relu()).abs().mean(1) / width[:, 0]
    channels = difference.argsort(descending=True)[:num_channels].tolist()

    placed = [site for site in history if not site.collecting] or history
    low, high = torch.cat([site.bounds[channels] for site in placed]).flatten().aminmax()
    margin = 0.08 * (high - low).clamp(min=1e-4)
    x = torch.linspace(low - margin, high + margin, 400, dtype=low.dtype)
    low, high = torch.cat([site(x.expand(len(left), -1))[channels] for site in history]).flatten().aminmax()
    margin = 0.05 * (high - low).clamp(min=1e-4)
    return _View(name, channels, x, (float(low - margin), float(high + margin)))


def _phases(snapshots: Sequence[Snapshot], names: Sequence[str]) -> list[str]:
    """The phase shown by each plot; the first one of phase II after phase I has a caption of its own."""
    phases = []
    for snapshot in snapshots:
        collecting = {snapshot.sites[name].collecting for name in names}
        if collecting == {True}:
            phases.append("phase I: ReLU")
        elif collecting == {False}:
            after_phase1 = phases and phases[-1].startswith("phase I:")
            phases.append(f"phase II: {'bounds placed' if after_phase1 else 'shape learned'}")
        else:
            phases.append("phases I and II")
    return phases


def _titles(snapshots: Sequence[Snapshot], names: Sequence[str]) -> list[list[str]]:
    """The lines of each title."""
    return [
        [phase] if snapshot.iterations is None else [f"after {snapshot.iterations} iterations", phase]
        for snapshot, phase in zip(snapshots, _phases(snapshots, names))
    ]


def _make_figure(height: float) -> Figure:
    figure = Figure((_WIDTH, height), layout="constrained")
    handles = [
        Line2D([], [], linestyle=":", color=_DARK, label="ReLU"),
        Line2D([], [], color=_COLORS[0], label="function of one channel"),
        Line2D([], [], linestyle="", marker="o", markersize=4, color=_COLORS[0], label="its bounds"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    return figure


def _draw_site(axis: Axes, site: Site, view: _View) -> None:
    y = site(view.x.expand(len(site.bounds), -1))
    if site.collecting:  # all channels have the same function
        axis.plot(view.x, y[0], color=_DARK, linewidth=1.5)
    else:
        ends = site(site.bounds)
        axis.set_prop_cycle(color=_COLORS)
        for c in view.channels:
            (line,) = axis.plot(view.x, y[c], linewidth=1.2)
            axis.plot(site.bounds[c], ends[c], "o", markersize=4, color=line.get_color())
    axis.plot(view.x, view.x.relu(), ":", color=_DARK, linewidth=1)
    axis.set_xlim(float(view.x[0]), float(view.x[-1]))
    axis.set_ylim(*view.y_limits)
    axis.tick_params(labelsize=7)


def _durations(snapshots: Sequence[Snapshot], names: Sequence[str]) -> list[int]:
    """The duration of each frame in milliseconds: longer at the start of each phase and at the end."""
    phases = _phases(snapshots, names)
    new = [phase != before for phase, before in zip(phases, ["", *phases])]
    return [*(1500 if is_new else 500 for is_new in new[:-1]), 3000]


def _write_gif(f: BinaryIO, figures: Sequence[Figure], durations: list[int]) -> None:
    frames = []
    for figure in figures:
        frame = io.BytesIO()
        figure.savefig(frame, dpi=100, format="png")
        frames.append(Image.open(frame).convert("RGB"))
    frames[0].save(f, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
