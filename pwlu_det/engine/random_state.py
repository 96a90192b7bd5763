"""Random states derived from the position in training, so that none of them have to be saved."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_all(seed: int, *key: int) -> None:
    """Seed Python, NumPy and torch (all devices) from ``seed`` and ``key``, which are integers >= 0."""
    sequence = np.random.SeedSequence(seed, spawn_key=key)  # distinguishes (1, 2) from (1, 2, 0)
    for_python, for_numpy, *for_torch = sequence.generate_state(4)
    random.seed(int(for_python))
    np.random.seed(for_numpy)
    torch.manual_seed(int(for_torch[0]) << 32 | int(for_torch[1]))


@contextmanager
def seeded(seed: int, *key: int) -> Iterator[None]:
    """Context manager: call :func:`seed_all`, and restore the states of the CPU generators on exit."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_all(seed, *key)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
