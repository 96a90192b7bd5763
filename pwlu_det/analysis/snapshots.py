"""The PWLUs in checkpoints, read without building the models that they belong to."""

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
    """The PWLU of one place in a network."""

    parameters: list[Tensor]
    """Y_P ``[P, N+1]``, then B_L, B_R, K_L and K_R ``[P]``, in float64"""
    collecting: bool
    """whether it is in phase I: it is ReLU then, and its bounds have no meaning yet"""

    @property
    def bounds(self) -> Tensor:
        """B_L and B_R of each channel, ``[P, 2]``."""
        return torch.stack(self.parameters[1:3], dim=1)

    def __call__(self, x: Tensor) -> Tensor:
        """Each channel's function of its own row of ``x``, ``[P, K]`` to ``[P, K]``."""
        return x.relu() if self.collecting else ops.pwlu(x.T.contiguous(), *self.parameters).T


@dataclass
class Snapshot:
    """The PWLUs of a model at one point of its training."""

    iterations: int | None
    """the number of iterations trained so far; None where the file does not say, as an exported backbone"""
    sites: dict[str, Site]
    """by name, without the prefixes of a detector's backbone: ``res2.0.act1``"""


def read_snapshots(paths: Sequence[str]) -> list[Snapshot]:
    """Read one file of weights, or several checkpoints of one training run, in the order given.

    Raises:
        CheckpointError: a file cannot be read, or holds no PWLU or a damaged one; or, of several files, one
            has no iteration, or other PWLUs than the first.
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
        raise ValueError("the file holds no PWLU: no key ends in '.points'")
    sites = {n.removeprefix("backbone.").removeprefix("bottom_up."): _take_site(state, n) for n in names}
    # detectron2 counts iterations from 0, and a checkpoint names the last one that it has seen.
    return Snapshot(iteration + 1 if isinstance(iteration, int) else None, sites)


def _take_site(state: Mapping[str, Tensor], name: str) -> Site:
    parameters = [state.get(f"{name}.{parameter}") for parameter in PARAMETERS]
    if any(p is None or not p.float().isfinite().all() for p in parameters):
        raise ValueError(f"its PWLU {name} is incomplete, or not finite in float32")
    points, *others = parameters
    fits = points.dim() == 2 and points.shape[0] >= 1 and points.shape[1] >= 2
    if not fits or any(p.shape != points.shape[:1] for p in others):
        raise ValueError(f"its PWLU {name} has parameters whose shapes do not fit together")
    phase = state.get(f"{name}.phase", torch.tensor(LEARNING))  # parameters by themselves are trained ones
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
            f"its PWLUs are not those of {first_path}: {len(unfit)} are missing, of another shape or too "
            f"many, the first is {unfit[0]}; several files must be checkpoints of one training run"
        )
