"""PWLU in NumPy float64, as written in Zhou et al. 2021: equations 1-4, Table 1, equations 5 and 6.

It follows the paper and not the package: the derivatives of each element, then the chain rule. The paper
describes one function; here there are P functions, and ``x`` is ``[P, n]``, with the inputs of one function
per row (see :func:`per_function`). ``Y_P`` is ``[P, N+1]``, the other parameters are ``[P]``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MIN_WIDTH = 1e-4
"""Not in the paper: bounds that are closer than this, or have crossed, are treated as this far apart."""


class Derivatives(NamedTuple):
    """The columns of Table 1: ``[P, n]``, except that ``Y_P`` is ``[P, N+1, n]``."""

    x: np.ndarray
    Y_P: np.ndarray
    B_L: np.ndarray
    B_R: np.ndarray
    K_L: np.ndarray
    K_R: np.ndarray


def per_function(x: np.ndarray, num_functions: int) -> np.ndarray:
    """``[B, C, *]`` to ``[P, n]``: P is C (channel-wise), or 1 (layer-wise)."""
    x = np.moveaxis(np.asarray(x, np.float64), 1, 0)
    return x.reshape(num_functions, x.size // num_functions)


def from_function(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of :func:`per_function`."""
    return np.moveaxis(values.reshape(shape[1], shape[0], *shape[2:]), 0, 1)


def forward(x, Y_P, B_L, B_R, K_L, K_R) -> np.ndarray:
    """Equation 1."""
    B_L, B_R, K_L, K_R = _columns(B_L, B_R, K_L, K_R)
    idx, _, B_idx, K_idx, x_inside = _interval(x, Y_P, B_L, B_R)
    return np.select(
        [x < B_L, x >= B_R],
        [_line(x, B_L, K_L, Y_P[:, :1]), _line(x, B_R, K_R, Y_P[:, -1:])],
        (x_inside - B_idx) * K_idx + np.take_along_axis(Y_P, idx, 1),
    )


def table_1(x, Y_P, B_L, B_R, K_L, K_R) -> Derivatives:
    """Table 1, row by row: the derivatives of each output with respect to its input and the parameters."""
    B_L, B_R, K_L, K_R = _columns(B_L, B_R, K_L, K_R)
    idx, d, B_idx, K_idx, x_inside = _interval(x, Y_P, B_L, B_R)
    left, right = x < B_L, x >= B_R

    def row(at_left, inside, at_right):
        return np.select([left, right], [at_left, at_right], inside)

    by_points = np.zeros((*Y_P.shape, x.shape[1]))
    by_idx = row(0, (B_idx + d - x_inside) / d, 0)
    by_next = row(0, (x_inside - B_idx) / d, 0)
    for function in range(x.shape[0]):
        element = np.arange(x.shape[1])
        by_points[function, idx[function], element] += by_idx[function]
        by_points[function, idx[function] + 1, element] += by_next[function]
    by_points[:, 0] += row(1, 0, 0)
    by_points[:, -1] += row(0, 0, 1)
    return Derivatives(
        x=row(K_L, K_idx, K_R),
        Y_P=by_points,
        B_L=row(-K_L, K_idx * (x_inside - B_R) / (B_R - B_L), 0),
        B_R=row(0, K_idx * (B_L - x_inside) / (B_R - B_L), -K_R),
        K_L=row(x - B_L, 0, 0),
        K_R=row(0, 0, x - B_R),
    )


def running(batches: list[np.ndarray], num_functions: int, momentum: float = 0.9) -> tuple:
    """Equation 5 over ``[B, C, *]`` batches; the first one gives the initial values."""
    mu = sigma = None
    for batch in batches:
        x = per_function(batch, num_functions)
        mean = x.sum(1) / x.shape[1]
        std = np.sqrt(((x - mean[:, None]) ** 2).sum(1) / x.shape[1])
        if mu is None:
            mu, sigma = mean, std
        mu = mu * momentum + mean * (1 - momentum)
        sigma = sigma * momentum + std * (1 - momentum)
    return mu, sigma


def realigned(mu: np.ndarray, sigma: np.ndarray, N: int, num_sigma: float = 3) -> dict[str, np.ndarray]:
    """Equation 6."""
    B_L, B_R = mu - num_sigma * sigma, mu + num_sigma * sigma
    B_idx = np.stack([B_L + idx * (B_R - B_L) / N for idx in range(N + 1)], axis=1)
    return {
        "points": np.maximum(B_idx, 0),
        "left_bound": B_L,
        "right_bound": B_R,
        "left_slope": np.zeros_like(mu),
        "right_slope": np.ones_like(mu),
    }


def _columns(B_L, B_R, K_L, K_R):
    """Each parameter as ``[P, 1]``, with the bounds at least ``MIN_WIDTH`` apart."""
    B_R = np.maximum(B_R, B_L + MIN_WIDTH)
    return B_L[:, None], B_R[:, None], K_L[:, None], K_R[:, None]


def _interval(x, Y_P, B_L, B_R):
    """Equations 2-4 and ``x``; outside the bounds, the values are those at ``B_L`` and are not used."""
    N = Y_P.shape[1] - 1
    x = np.where((x >= B_L) & (x < B_R), x, B_L)
    d = (B_R - B_L) / N
    # The quotient may round up to N, but x < B_R is in the last interval.
    idx = np.minimum(np.floor((x - B_L) / d).astype(int), N - 1)
    B_idx = B_L + idx * d
    K_idx = (np.take_along_axis(Y_P, idx + 1, 1) - np.take_along_axis(Y_P, idx, 1)) / d
    return idx, d, B_idx, K_idx, x


def _line(x, B, K, Y):
    """The line outside the bounds; constant if the slope is 0, however large ``x`` is."""
    return np.where(K == 0, Y, (np.where(K == 0, B, x) - B) * K + Y)


class WideFunction:
    """Equation 1 and Table 1 for one function and numbers of any magnitude, in extended precision.

    ``np.longdouble`` has enough range and precision for all results of float64 parameters. Bins are numbered
    from -1 to N (section 4.3). Methods take the bin of each element, so that they can also be evaluated in
    neighboring bins. ``Y_P`` is ``[N+1]``; ``x``, ``g`` and ``k`` are ``[n]``.
    """

    def __init__(self, Y_P, B_L, B_R, K_L, K_R):
        Y_P, B_L, B_R, K_L, K_R = (np.asarray(p, np.longdouble) for p in (Y_P, B_L, B_R, K_L, K_R))
        self.N = len(Y_P) - 1
        self.B_L, self.B_R = B_L, B_R
        self.width = np.maximum(B_R - B_L, MIN_WIDTH)
        self.K = np.concatenate([[K_L], np.diff(Y_P) * self.N / self.width, [K_R]])
        self.Y_start = np.concatenate([Y_P[:1], Y_P])
        self.Y_end = np.concatenate([Y_P[:1], Y_P[1:], Y_P[-1:]])

    def bins(self, x):
        k = np.floor((x - self.B_L) * self.N / self.width).clip(0, self.N - 1)
        return np.select([x < self.B_L, self._from_right(x) >= 0], [-1, self.N], k).astype(int)

    def outputs(self, x, k):
        """The output of each element; constant in bins of slope 0, however large ``x`` is."""
        length = np.where(self._inside(k), self.width / self.N, 1)
        K = self.K[k + 1]
        return self.Y_start[k + 1] + np.where(K == 0, 0, K * length * np.where(K == 0, 0, self.along(x, k)))

    def along(self, x, k):
        """Relative position t within the interval; outside the bounds, the distance from the bound."""
        t = (x - self.B_L) * self.N / self.width - k
        return np.select([k < 0, k == self.N], [x - self.B_L, self._from_right(x)], t)

    def gradients(self, g, x, k):
        """Contribution of each element to the gradients of Y_P, B_L, B_R, K_L and K_R: ``[n, N+5]``."""
        t, N = self.along(x, k), self.N
        return self._rows(g, k, 1 - t, t, (k + t - N) / N, -(k + t) / N, t)

    def scales(self, g, x, k):
        """Magnitude of the terms of each element's gradients: the same expressions, with t set to 1."""
        N = self.N
        return np.abs(self._rows(g, k, 1, 1, (k - N) / N, (k + 1) / N, self.along(x, k)))

    def _rows(self, g, k, to_start, to_end, to_left, to_right, outside):
        N, K, element, inside = self.N, self.K[k + 1], np.arange(len(k)), self._inside(k)
        rows = np.zeros((len(k), N + 5), np.longdouble)
        rows[element, k.clip(0, N)] = g * np.where(inside, to_start, 1)
        rows[element[inside], k[inside] + 1] = (g * to_end)[inside]
        rows[:, N + 1] = g * K * np.select([k < 0, inside], [-1, to_left])
        rows[:, N + 2] = g * K * np.select([k == N, inside], [-1, to_right])
        rows[:, N + 3] = np.where(k < 0, g * outside, 0)
        rows[:, N + 4] = np.where(k == N, g * outside, 0)
        return rows

    def _from_right(self, x):
        """Distance from max(B_R, B_L + ``MIN_WIDTH``), without that sum, which could round to B_L."""
        return np.minimum(x - self.B_R, (x - self.B_L) - MIN_WIDTH)

    def _inside(self, k):
        return (k >= 0) & (k < self.N)
