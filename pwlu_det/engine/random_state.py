"""Random numbers as a function of where in the training they are drawn, so that none of them need saving."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_all(seed: int, *key: int) -> None:
    """Seed the generators of Python, NumPy and torch (all devices) by numbers >= 0, all of which count."""
    sequence = np.random.SeedSequence(seed, spawn_key=key)  # by which (1, 2) is not (1, 2, 0)
    for_python, for_numpy, *for_torch = sequence.generate_state(4)
    random.seed(int(for_python))
    np.random.seed(for_numpy)
    torch.manual_seed(int(for_torch[0]) << 32 | int(for_torch[1]))


@contextmanager
def seeded(seed: int, *key: int) -> Iterator[None]:
    """Run a block as after :func:`seed_all`; behind it the CPU's generators go on where they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_all(seed, *key)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
