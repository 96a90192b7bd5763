import os
import subprocess
import sys

import numpy as np
import oracle_activations as oracle
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pwlu_det.ops import frelu, frelu_inference, kernels_in_use

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
EPS = 1e-5
ALL = (True, True)  # gradients


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make_input(shape=(2, 3, 5, 4), dtype=torch.float32):
    return torch.randn(shape).to(dtype).requires_grad_()


def make_parameters(dtype=torch.float32):
    """weight, bias, norm_weight and norm_bias for three channels."""
    sizes = (3, 1, 3, 3), (3,), (3,), (3,)
    return [(torch.randn(size) * 0.5).to(dtype).requires_grad_() for size in sizes]


def train(x, *parameters):
    return frelu(x, *parameters, EPS)[0]


def infer(x, weight, bias, *_norm):
    return frelu_inference(x, weight, bias)


def oracle_of_inference(x, weight, bias):
    return np.maximum(x, oracle.depthwise(x, weight, bias))


CASES = {"training": (train, oracle.frelu, 4), "inference": (infer, oracle_of_inference, 2)}
both = pytest.mark.parametrize("function, wanted, num_parameters", CASES.values(), ids=CASES)


def as_numpy(tensor):
    return oracle.wide(tensor.detach().double().numpy())


@pytest.mark.parametrize("channels_last", [False, True], ids=["", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@both
def test_output_and_gradients_are_those_of_the_paper(function, wanted, num_parameters, dtype, channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = make_input(dtype=dtype).detach().to(memory_format=layout).requires_grad_()
    parameters = make_parameters(torch.promote_types(dtype, torch.float32))[:num_parameters]
    y = function(x, *parameters)
    assert (y.shape, y.dtype, y.stride()) == (x.shape, x.dtype, x.stride())
    arrays = [as_numpy(t) for t in (x, *parameters)]
    # The convolution's output is kept in the dtype of x: its rounding decides, and the norm scales it.
    tolerance = 2e-5 if dtype == torch.float32 else 16 * torch.finfo(dtype).eps
    np.testing.assert_allclose(as_numpy(y), wanted(*arrays), rtol=0, atol=tolerance)
    if dtype in (torch.float16, torch.bfloat16):
        return  # which of two near values is the larger may depend on their rounding, and so gradients
    grad = torch.randn_like(y)
    grads = torch.autograd.grad(y, (x, *parameters), grad)
    assert grads[0].stride() == x.stride()
    for actual, expected, source in zip(
        grads, oracle.gradients(wanted, arrays, as_numpy(grad)), (x, *parameters)
    ):
        assert (actual.shape, actual.dtype) == (source.shape, source.dtype)
        np.testing.assert_allclose(as_numpy(actual), expected, rtol=1e-6, atol=10 * tolerance + 1e-8)


@both
def test_gradcheck(function, wanted, num_parameters):
    x = make_input(dtype=torch.float64)
    assert torch.autograd.gradcheck(function, (x, *make_parameters(torch.float64)[:num_parameters]))


def plain(x, weight, bias, norm_weight, norm_bias, statistics, training):
    conv = F.conv2d(x, weight, bias, padding=1, groups=3)
    return torch.maximum(x, F.batch_norm(conv, *statistics, norm_weight, norm_bias, training, 0.1, EPS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parity_with_the_three_plain_operations(dtype):
    x, parameters = make_input((4, 3, 17, 19), dtype), make_parameters()
    y = train(x, *parameters)
    expected = plain(x, *(p.to(dtype) for p in parameters[:2]), *parameters[2:], (None, None), True)
    tolerance = {"rtol": 0, "atol": 32 * torch.finfo(dtype).eps}
    torch.testing.assert_close(y, expected, **tolerance)
    grad = torch.randn_like(y)
    grads = [torch.autograd.grad(out, (x, *parameters), grad) for out in (y, expected)]
    # In bfloat16 a few elements go the other way, so each difference is taken as a whole.
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-5
    for name, a, b in zip(("x", "weight", "bias", "norm_weight", "norm_bias"), *grads):
        if name != "bias":  # which has no effect through the norm: its gradient is rounding alone
            assert torch.linalg.norm((a - b).double()) <= tolerance * torch.linalg.norm(b.double()), name


def test_statistics_are_those_of_the_convolution():
    x, parameters = make_input((4, 3, 6, 7)), make_parameters()
    y, mean, var = frelu(x, *parameters, EPS)
    assert y.requires_grad and not mean.requires_grad and not var.requires_grad
    conv = oracle.depthwise(*(as_numpy(t) for t in (x, *parameters[:2])))
    np.testing.assert_allclose(as_numpy(mean), conv.mean((0, 2, 3)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(as_numpy(var), conv.var((0, 2, 3)), rtol=1e-5)


def sizes_kept_for_backward(function, x):
    """Storages of the size of ``x`` that the graph of ``function()`` holds."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.update({t.data_ptr(): t.numel()}) or t, lambda t: t
    ):
        y = function()
    assert y.requires_grad
    return sum(size >= x.numel() for size in kept.values())


def test_two_tensors_of_the_size_of_x_are_kept_where_plain_operations_keep_three():
    x, parameters = make_input((4, 3, 16, 16)), make_parameters()
    statistics = torch.zeros(3), torch.ones(3)
    assert sizes_kept_for_backward(lambda: train(x, *parameters), x) == 2
    assert sizes_kept_for_backward(lambda: infer(x, *parameters), x) == 2
    assert sizes_kept_for_backward(lambda: plain(x, *parameters, statistics, True), x) == 3


def test_of_equals_x_gets_the_gradient():
    x = torch.ones(1, 3, 2, 2, requires_grad=True)
    weight = torch.zeros(3, 1, 3, 3)
    weight[:, :, 1, 1] = 1
    frelu_inference(x, weight, torch.zeros(3)).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(dtype):
    x, parameters = make_input(dtype=dtype), make_parameters()
    for function in (train, infer):
        with torch.autocast("cpu", torch.bfloat16):
            y = function(x, *parameters)
        assert torch.equal(y, function(x, *parameters))


def test_ops_obey_the_rules_of_torch_library():
    x = make_input().detach().to(memory_format=torch.channels_last)
    parameters = make_parameters()
    ops, detached = torch.ops.pwlu_det, [p.detach() for p in parameters]
    torch.library.opcheck(ops.frelu, (x.clone().requires_grad_(), *parameters, EPS))
    torch.library.opcheck(ops.frelu_inference, (x.clone().requires_grad_(), *parameters[:2]))
    y, conv, mean, var = ops.frelu(x, *detached, EPS)
    grad = torch.ones_like(y)
    for output_mask in ALL, (True, False), (False, True):
        torch.library.opcheck(ops.frelu_backward, (grad, x, conv, mean, var, *detached, EPS, output_mask))
        torch.library.opcheck(ops.frelu_inference_backward, (grad, x, y, *detached[:2], output_mask))


def test_infinite_and_large_values_in_float16():
    x = torch.full((1, 3, 4, 4), 6e4, dtype=torch.float16)
    weight, bias, *_ = make_parameters()
    y = frelu_inference(x, weight.detach() * 0 + 1, bias)
    assert torch.equal(y, torch.full_like(x, torch.inf))  # 9 * 60,000 is not a float16
    assert torch.equal(frelu_inference(x, weight.detach() * 0 - 1, bias), x)


def test_empty_input():
    x = torch.empty(0, 3, 4, 4, requires_grad=True)
    weight, bias, *_ = parameters = make_parameters()
    y = frelu_inference(x, weight, bias)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape and not weight.grad.any()
    with pytest.raises(ValueError, match="statistics need two values for each channel"):
        train(x, *parameters)


@pytest.mark.parametrize("position", range(4))
def test_wrong_arguments_are_named(position):
    parameters = make_parameters()
    name = ("weight", "bias", "norm_weight", "norm_bias")[position]
    parameters[position] = torch.zeros(2)
    with pytest.raises(ValueError, match=rf"frelu: {name} has shape \[2\].*must be \[C.*C = 3"):
        train(make_input(), *parameters)
    with pytest.raises(
        ValueError, match=r"frelu_inference: x has shape \[2, 3, 4\]; \[B, C, H, W\] is needed"
    ):
        infer(torch.zeros(2, 3, 4), *make_parameters())
    with pytest.raises(ValueError, match=r"frelu_inference: x has dtype (int64|Long)"):
        infer(torch.zeros(2, 3, 4, 4, dtype=torch.int64), *make_parameters())


# --- the compiled kernels -----------------------------------------------------------------------
# They are what the tests above and below run on, where they are built.


@pytest.mark.parametrize("lesser", ["avx2", "none"])
def test_all_holds_with_lesser_kernels_and_without(lesser):
    in_use = kernels_in_use()
    if in_use in (lesser, "baseline", "plain torch"):
        pytest.skip(f"this run was on {in_use}")
    command = [sys.executable, "-m", "pytest", __file__, "-k", "not lesser"]
    environment = {**os.environ, "PWLU_DET_CPU_KERNELS": lesser}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


@pytest.mark.parametrize("op", ["frelu", "frelu_backward", "frelu_inference", "frelu_inference_backward"])
def test_kernels_are_registered_where_there_are_vectors(op):
    registered = torch._C._dispatch_has_kernel_for_dispatch_key(f"pwlu_det::{op}", "CPU")
    assert registered == (kernels_in_use() in ("avx2", "avx512"))


def make_case(shape, dtype, channels_last=False, seed=0):
    """x, its gradient and the four parameters: these in float32, or float64 for float64."""
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
    """Up to rounding of the result, and of terms of size ``scale`` in what ``dtype`` is computed in."""
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
    # Sums are in double, of what is some deviations from the mean: float64 has no digits to spare for that.
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
    centred = to_norm - by_channel(by_beta) / count - normal * by_channel(by_gamma) / count
    expected = (
        *oracle.depthwise_gradients(np.where(lost, 0, g), centred * scale * rstd, x_, w),
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
    if x.numel() > 8 * shape[1]:  # of few values the variance may be near 0, and what it divides large
        check_training(x, grad, *parameters)


@pytest.mark.skipif(
    kernels_in_use() not in ("avx2", "avx512"), reason="torch's own sums depend on the number of threads"
)
@pytest.mark.parametrize(
    "shape, channels_last", [((1, 3, 19, 18000), False), ((2, 70, 40, 100), True)], ids=str
)
def test_results_do_not_depend_on_the_number_of_threads(shape, channels_last):
    """These are cut into blocks of rows."""
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


def test_statistics_survive_a_large_mean():
    """Squares of values near a thousand lose a variance of 1e-2 where floats add them up."""
    x = torch.randn(2, 3, 50, 60, generator=torch.Generator().manual_seed(0)) * 0.1 + 1000
    weight, ones = torch.zeros(3, 1, 3, 3), torch.ones(3)
    weight[:, :, 1, 1] = 1  # the border's zeros stay out of it
    for layout in (torch.contiguous_format, torch.channels_last):
        _, conv, mean, var = torch.ops.pwlu_det.frelu(
            x.to(memory_format=layout), weight, ones, ones, ones, EPS
        )
        kept = conv.double()
        torch.testing.assert_close(mean.double(), kept.mean((0, 2, 3)), rtol=1e-7, atol=0)
        torch.testing.assert_close(var.double(), kept.var((0, 2, 3), correction=0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("channels_last", [False, True])
def test_nan_reaches_its_neighbours_and_in_training_its_channel(channels_last):
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
        y = train(x, *own)
        assert torch.equal(y, train(x, *(p.float() for p in own)))
        assert {g.dtype for g in torch.autograd.grad(y, own, grad)} == {dtype}
