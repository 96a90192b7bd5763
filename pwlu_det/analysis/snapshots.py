"""Read the PWLUs in checkpoints, without building the models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pwlu_det import ops
from pwlu_det.activations.pwlu import COLLECTING, LEARNING
from pwlu_det.checkpoint.reader import read_checkpoint
from pwlu_det.errors import CheckpointError
from pwlu_det.ops.pwlu import PARAMETERS


@dataclass
class Site:
    """The PWLU of one activation site."""

    parameters: list[Tensor]
    """Y_P ``[P, N+1]``, then B_L, B_R, K_L and K_R ``[P]``, in float64"""
    collecting: bool
    """whether it is in phase I, in which it is ReLU and its bounds have no meaning yet"""

    @property
    def bounds(self) -> Tensor:
        """B_L and B_R of each channel, ``[P, 2]``."""
        return torch.stack(self.parameters[1:3], dim=1)

    def __call__(self, x: Tensor) -> Tensor:
        """Apply each channel's function to its row of ``x``, ``[P, K]`` to ``[P, K]``."""
        return x.relu() if self.collecting else ops.pwlu(x.T.contiguous(), *self.parameters).T


@dataclass
class Snapshot:
    """The PWLUs of a model at one point in its training."""

    iterations: int | None
    """the number of completed iterations; None if the file does not have it, as in an exported backbone"""
    sites: dict[str, Site]
    """by name, without the prefixes of a detector's backbone, such as ``res2.0.act1``"""


def read_snapshots(paths: Sequence[str]) -> list[Snapshot]:
    """Read one file of weights, or several checkpoints of one training run, in the given order.

    Raises:
        CheckpointError: a file cannot be read, contains no PWLU, or contains a damaged one; or one of several
            files has no iteration, or has different PWLUs than the first.
    """
    snapshots: list[Snapshot] = []
    for path in paths:
        checkpoint = read_checkpoint(path)
        try:
            snapshots.append(_take_snapshot(checkpoint))
            if len(paths) > 1:
                _check_same_run(snapshots[-1], snapshots[0], paths[0])
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
    return snapshots


def _take_snapshot(checkpoint: Mapping[str, Any]) -> Snapshot:
    state, iteration = checkpoint["model"], checkpoint.get("iteration")
    names = [key.removesuffix(".points") for key in state if key.endswith(".points")]
    if not names:
        raise ValueError("the file contains no PWLU: no key ends in '.points'")
    sites = {n.removeprefix("backbone.").removeprefix("bottom_up."): _take_site(state, n) for n in names}
    # detectron2 counts iterations from 0, and a checkpoint has the number of the last completed one.
    return Snapshot(iteration + 1 if isinstance(iteration, int) else None, sites)


def _take_site(state: Mapping[str, Tensor], name: str) -> Site:
    parameters = [state.get(f"{name}.{parameter}") for parameter in PARAMETERS]
    if any(p is None or not p.float().isfinite().all() for p in parameters):
        raise ValueError(f"its PWLU {name} is incomplete, or has values that are not finite in float32")
    points, *others = parameters
    fits = points.dim() == 2 and points.shape[0] >= 1 and points.shape[1] >= 2
    if not fits or any(p.shape != points.shape[:1] for p in others):
        raise ValueError(f"its PWLU {name} has parameters whose shapes do not match")
    phase = state.get(f"{name}.phase", torch.tensor(LEARNING))  # parameters without a phase count as trained
    return Site([p.detach().double() for p in parameters], bool((phase == COLLECTING).any()))


def _check_same_run(snapshot: Snapshot, first: Snapshot, first_path: str) -> None:
    if snapshot.iterations is None:
        raise ValueError("the file has no 'iteration'; several files must be checkpoints of one training run")
    shapes, expected = (
        {name: site.parameters[0].shape for name, site in s.sites.items()} for s in (snapshot, first)
    )
    unfit = [name for name in {**expected, **shapes} if shapes.get(name) != expected.get(name)]
    if unfit:
        raise ValueError(
            f"its PWLUs differ from those of {first_path}: {len(unfit)} are missing, extra or of another "
            f"shape; the first is {unfit[0]}. Several files must be checkpoints of one training run"
        )
