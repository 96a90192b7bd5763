"""The activations in NumPy, as in the equations of their papers, and gradients by numerical differentiation.

``x`` is ``[B, C, *]``, and parameters have the same shapes as in the package. Everything is in extended
precision, so that differences of nearby values keep more digits than in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

STEP = 1e-6
"""Step of the central differences, whose error is about 1e-12 times the third derivative."""


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def relu6(x):
    return np.minimum(np.maximum(x, 0), 6)


def leaky_relu(x):
    return np.where(x < 0, 0.01 * x, x)


def rrelu(x):
    """In evaluation mode: the slope is the mean of U(1/8, 1/3)."""
    return np.where(x < 0, (1 / 8 + 1 / 3) / 2 * x, x)


def elu(x):
    return np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)


def mish(x):
    return x * np.tanh(softplus(x))


def softplus(x):
    return np.log(1 + np.exp(x))


def swish(x, beta=None):
    return x * sigmoid(x if beta is None else column(beta, x) * x)


def prelu(x, slope):
    return np.maximum(x, 0) + column(slope, x) * np.minimum(x, 0)


def acon_b(x, p, beta):
    """Ma et al. 2021, equation 2 with eta_a = x and eta_b = px, before simplification."""
    return smooth_maximum(x, column(p, x) * x, column(beta, x))


def acon_c(x, p1, p2, beta):
    return smooth_maximum(column(p1, x) * x, column(p2, x) * x, column(beta, x))


def meta_acon_layer(x, p1, p2):
    total = x.reshape(*x.shape[:2], -1).mean(2).sum(1)
    return smooth_maximum(column(p1, x) * x, column(p2, x) * x, sample(sigmoid(total), x))


def meta_acon_pixel(x, p1, p2):
    return smooth_maximum(column(p1, x) * x, column(p2, x) * x, sigmoid(x))


def smooth_maximum(a, b, beta):
    """Equation 1 for two values; exponents are shifted by the larger one, so that nothing overflows."""
    top = np.maximum(beta * a, beta * b)
    weight_a, weight_b = np.exp(beta * a - top), np.exp(beta * b - top)
    return (a * weight_a + b * weight_b) / (weight_a + weight_b)


def apl(x, slopes, offsets):
    y = np.maximum(0, x)
    for s in range(len(slopes)):
        y = y + column(slopes[s], x) * np.maximum(0, -x + column(offsets[s], x))
    return y


def pau(x, numerator, denominator):
    """Molina et al. 2020, equation 2, with one row of coefficients per channel, or one for all channels."""
    p = sum(column(numerator[:, j], x) * x**j for j in range(6))
    q = 1 + sum(np.abs(column(denominator[:, k - 1], x) * x**k) for k in range(1, 5))
    return p / q


def srelu(x, left, left_slope, right, right_slope):
    left, left_slope, right, right_slope = (column(p, x) for p in (left, left_slope, right, right_slope))
    y = np.where(x <= left, left + left_slope * (x - left), x)
    return np.where(x >= right, right + right_slope * (x - right), y)


def mixture(x, identity_share, relu_share):
    return column(identity_share, x) * x + column(relu_share, x) * np.maximum(0, x)


def slaf(x, coefficients):
    return sum(column(coefficients[:, j], x) * x**j for j in range(coefficients.shape[1]))


def frelu(x, weight, bias, norm_weight, norm_bias, mean=None, var=None, eps=1e-5):
    """Ma et al. 2020: max(x, BN(DWConv(x))); by default with ``mean`` and ``var`` of the batch."""
    conv = depthwise(x, weight, bias)
    if mean is None:
        mean, var = conv.mean((0, 2, 3)), conv.var((0, 2, 3))
    normed = (conv - column(mean, x)) / np.sqrt(column(var, x) + eps)
    return np.maximum(x, normed * column(norm_weight, x) + column(norm_bias, x))


def depthwise(x, weight, bias):
    """Depthwise 3x3 convolution with padding 1: ``[B, C, H, W]`` and ``[C, 1, 3, 3]``."""
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    y = np.zeros_like(x) + column(bias, x)
    for i in range(3):
        for j in range(3):
            y = y + column(weight[:, 0, i, j], x) * padded[:, :, i : i + height, j : j + width]
    return y


def depthwise_gradients(grad_x, grad_conv, x, weight):
    """Gradients of x, weight and bias, given the direct gradient of x and that of the convolution output."""
    by_x = grad_x + depthwise(grad_conv, weight[:, :, ::-1, ::-1], np.zeros(len(weight)))
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    by_weight = [
        (padded[:, :, i : i + height, j : j + width] * grad_conv).sum((0, 2, 3))
        for i in range(3)
        for j in range(3)
    ]
    return by_x, np.stack(by_weight, 1).reshape(weight.shape), grad_conv.sum((0, 2, 3))


def gradients(function: Callable, arrays: list[np.ndarray], grad: np.ndarray) -> list[np.ndarray]:
    """Gradients of ``sum(grad * function(*arrays))`` with respect to each array, by central differences."""
    arrays = [wide(array).copy() for array in arrays]
    results = [np.zeros(array.shape) for array in arrays]
    for array, result in zip(arrays, results):
        for index in np.ndindex(array.shape):
            value = array[index]
            sides = []
            for step in (STEP, -STEP):
                array[index] = value + step
                sides.append((function(*arrays) * grad).sum())
            array[index] = value
            result[index] = (sides[0] - sides[1]) / (2 * STEP)
    return results


def wide(array) -> np.ndarray:
    return np.asarray(array, np.longdouble)


def column(values, x):
    """Reshape ``[C]`` or ``[1]`` to broadcast against ``[B, C, *]``."""
    return np.reshape(values, (-1, *[1] * (x.ndim - 2)))


def sample(values, x):
    """Reshape ``[B]`` to broadcast against ``[B, C, *]``."""
    return np.reshape(values, (-1, *[1] * (x.ndim - 1)))
