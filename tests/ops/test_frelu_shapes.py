"""Funnel ReLU's ops compared with the oracle for many shapes, layouts, strides and numbers of threads."""

import numpy as np
import oracle_activations as oracle
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pwlu_det.ops import frelu, frelu_inference, kernels_in_use

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
EPS = 1e-5
ALL = (True, True)  # gradients


def make_case(shape, dtype, channels_last=False, seed=0):
    """x, the gradient of y, and the four parameters in float32 (float64 if x is float64)."""
    generator = torch.Generator().manual_seed(seed)
    channels = shape[1]
    tensors = [
        torch.randn(size, generator=generator, dtype=torch.float64)
        for size in (shape, shape, (channels, 1, 3, 3), *[(channels,)] * 3)
    ]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, grad = (t.to(dtype).to(memory_format=layout) for t in tensors[:2])
    return x, grad, [t.to(torch.promote_types(dtype, torch.float32)) for t in tensors[2:]]


def close(actual, expected, dtype, scale):
    """Equal up to rounding of the result and of terms of size ``scale`` in the compute dtype of ``dtype``."""
    assert actual.shape == expected.shape
    unit = 64 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    difference = np.abs(actual.double().numpy() - expected)
    return (difference <= unit * scale + torch.finfo(actual.dtype).eps * (np.abs(expected) + 1e-4)).all()


def by_channel(values):
    return values.reshape(-1, 1, 1)


def check_inference(x, grad, weight, bias):
    ops = torch.ops.pwlu_det
    y = ops.frelu_inference(x, weight, bias)
    assert (y.dtype, y.stride()) == (x.dtype, torch.empty_like(x).stride())
    x_, g, w, b = (t.double().numpy() for t in (x, grad, weight, bias))
    conv = oracle.depthwise(x_, w, b)
    assert close(y, np.maximum(x_, conv), x.dtype, 100)
    lost = (y > x).numpy()
    grads = ops.frelu_inference_backward(grad, x, y, weight, bias, ALL)
    assert grads[0].stride() == y.stride()
    expected = oracle.depthwise_gradients(np.where(lost, 0, g), np.where(lost, g, 0), x_, w)
    for actual, wanted in zip(grads, expected):
        assert close(actual, wanted, x.dtype, 100 + np.abs(g).sum((0, 2, 3)).max())
    return y, *grads


def check_training(x, grad, weight, bias, gamma, beta):
    ops = torch.ops.pwlu_det
    y, conv, mean, var = ops.frelu(x, weight, bias, gamma, beta, EPS)
    for t in (y, conv):
        assert (t.dtype, t.stride()) == (x.dtype, torch.empty_like(x).stride())
    x_, g, w, b, scale, shift = (t.double().numpy() for t in (x, grad, weight, bias, gamma, beta))
    assert close(conv, oracle.depthwise(x_, w, b), x.dtype, 100)
    kept = conv.double().numpy()
    assert mean.dtype == var.dtype == gamma.dtype
    assert close(mean, kept.mean((0, 2, 3)), x.dtype, np.abs(kept).max())
    # Sums are in double, relative to a value near the mean; for float64, this is no wider than the result.
    spread = kept.var((0, 2, 3)) * (1000 if x.dtype == torch.float64 else 1)
    assert close(var, kept.var((0, 2, 3)), x.dtype, spread + 1e-6)
    mean_, rstd = by_channel(mean.double().numpy()), by_channel((var.double().numpy() + EPS) ** -0.5)
    scale = by_channel(scale)
    normal = (kept - mean_) * rstd
    normed = normal * scale + by_channel(shift)
    steepest = (np.abs(scale) * rstd).max()
    assert close(y, np.maximum(x_, normed), x.dtype, 1 + np.abs(kept).max() * steepest)

    grads = ops.frelu_backward(grad, x, conv, mean, var, weight, bias, gamma, beta, EPS, ALL)
    assert grads[0].stride() == y.stride()
    lost = normed > x_
    to_norm, count = np.where(lost, g, 0), x.numel() // x.shape[1]
    by_beta, by_gamma = to_norm.sum((0, 2, 3)), (to_norm * normal).sum((0, 2, 3))
    centered = to_norm - by_channel(by_beta) / count - normal * by_channel(by_gamma) / count
    expected = (
        *oracle.depthwise_gradients(np.where(lost, 0, g), centered * scale * rstd, x_, w),
        by_gamma,
        by_beta,
    )
    size = (1 + np.abs(normal).max()) * np.abs(g).sum((0, 2, 3)).max()
    for actual, wanted in zip(grads, expected):
        assert close(actual, wanted, x.dtype, 100 + size * (1 + steepest))
    return y, conv, mean, var, *grads


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 6), st.integers(1, 35)),
    dtype=st.sampled_from(DTYPES),
    channels_last=st.booleans(),
    seed=st.integers(0, 99),
)
@example((1, 1, 1, 1), torch.float32, False, 0)
@example((2, 3, 1, 1), torch.bfloat16, True, 0)
@example((1, 5, 1, 17), torch.float16, False, 0)
@example((1, 16, 19, 1), torch.float32, True, 0)
@example((2, 130, 4, 9), torch.float32, True, 0)
def test_any_shape_dtype_and_layout(shape, dtype, channels_last, seed):
    x, grad, parameters = make_case(shape, dtype, channels_last, seed)
    check_inference(x, grad, *parameters[:2])
    if x.numel() > 8 * shape[1]:  # with few values, the variance may be near 0, and quotients large
        check_training(x, grad, *parameters)


@pytest.mark.skipif(
    kernels_in_use() not in ("avx2", "avx512"), reason="torch's own sums depend on the number of threads"
)
@pytest.mark.parametrize(
    "shape, channels_last", [((1, 3, 19, 18001), False), ((2, 70, 40, 101), True)], ids=str
)
def test_results_do_not_depend_on_the_number_of_threads(shape, channels_last):
    """These shapes are divided into blocks of rows, and their rows do not end with a whole vector."""
    x, grad, parameters = make_case(shape, torch.float32, channels_last)
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(check_inference(x, grad, *parameters[:2]) + check_training(x, grad, *parameters))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_other_strides():
    x, grad, parameters = make_case((2, 3, 10, 24), torch.float32)
    for view in (
        lambda t: t[:, :, ::2, 1::3],
        lambda t: t.transpose(2, 3),
        lambda t: t[:1].expand(2, -1, -1, -1),
    ):
        assert not view(x).is_contiguous()
        check_inference(view(x), view(grad), *parameters[:2])
        check_training(view(x), view(grad), *parameters)
    check_training(x, grad.to(memory_format=torch.channels_last), *parameters)


def test_statistics_are_accurate_despite_a_large_mean():
    """The squares of values near a thousand lose a variance of 1e-2 if they are summed in float."""
    x = torch.randn(2, 3, 50, 60, generator=torch.Generator().manual_seed(0)) * 0.1 + 1000
    weight, ones = torch.zeros(3, 1, 3, 3), torch.ones(3)
    weight[:, :, 1, 1] = 1  # so that the zero padding has no effect
    for layout in (torch.contiguous_format, torch.channels_last):
        _, conv, mean, var = torch.ops.pwlu_det.frelu(
            x.to(memory_format=layout), weight, ones, ones, ones, EPS
        )
        kept = conv.double()
        torch.testing.assert_close(mean.double(), kept.mean((0, 2, 3)), rtol=1e-7, atol=0)
        torch.testing.assert_close(var.double(), kept.var((0, 2, 3), correction=0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("channels_last", [False, True])
def test_nan_spreads_to_its_neighbors_and_in_training_to_its_channel(channels_last):
    x, grad, parameters = make_case((2, 3, 6, 20), torch.float32, channels_last)
    x[1, 1, 2, 7] = torch.nan
    y = frelu_inference(x, *parameters[:2])
    expected = torch.zeros_like(x, dtype=torch.bool)
    expected[1, 1, 1:4, 6:9] = True
    assert torch.equal(y.isnan(), expected)
    y, _, mean, var = torch.ops.pwlu_det.frelu(x, *parameters, EPS)
    expected[:, 1] = True
    assert torch.equal(y.isnan(), expected)
    assert torch.equal(mean.isnan(), expected[0, :, 0, 0]) and torch.equal(var.isnan(), mean.isnan())
    grads = torch.ops.pwlu_det.frelu_inference_backward(
        grad, x, frelu_inference(x, *parameters[:2]), *parameters[:2], ALL
    )
    assert grads[0].isfinite().all() and torch.equal(grads[1].isnan().any((1, 2, 3)), mean.isnan())


def test_parameters_of_another_dtype():
    x, grad, parameters = make_case((2, 3, 5, 9), torch.float32)
    for dtype in (torch.bfloat16, torch.float64):
        own = [p.to(dtype).requires_grad_() for p in parameters]
        y = frelu(x, *own, EPS)[0]
        assert torch.equal(y, frelu(x, *(p.float() for p in own), EPS)[0])
        assert {g.dtype for g in torch.autograd.grad(y, own, grad)} == {dtype}
