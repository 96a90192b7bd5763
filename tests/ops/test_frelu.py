import os
import subprocess
import sys

import numpy as np
import oracle_activations as oracle
import pytest
import torch
import torch.nn.functional as F

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


def inference_oracle(x, weight, bias):
    return np.maximum(x, oracle.depthwise(x, weight, bias))


CASES = {"training": (train, oracle.frelu, 4), "inference": (infer, inference_oracle, 2)}
both = pytest.mark.parametrize("function, wanted, num_parameters", CASES.values(), ids=CASES)


def as_numpy(tensor):
    return oracle.wide(tensor.detach().double().numpy())


@pytest.mark.parametrize("channels_last", [False, True], ids=["", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@both
def test_output_and_gradients_match_the_paper(function, wanted, num_parameters, dtype, channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = make_input(dtype=dtype).detach().to(memory_format=layout).requires_grad_()
    parameters = make_parameters(torch.promote_types(dtype, torch.float32))[:num_parameters]
    y = function(x, *parameters)
    assert (y.shape, y.dtype, y.stride()) == (x.shape, x.dtype, x.stride())
    arrays = [as_numpy(t) for t in (x, *parameters)]
    # The convolution's output is saved in the dtype of x: that rounding dominates, and the norm scales it.
    tolerance = 2e-5 if dtype == torch.float32 else 16 * torch.finfo(dtype).eps
    np.testing.assert_allclose(as_numpy(y), wanted(*arrays), rtol=0, atol=tolerance)
    if dtype in (torch.float16, torch.bfloat16):
        return  # rounding may decide which of two close values is larger, which changes gradients
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
def test_parity_with_three_plain_operations(dtype):
    x, parameters = make_input((4, 3, 17, 19), dtype), make_parameters()
    y = train(x, *parameters)
    expected = plain(x, *(p.to(dtype) for p in parameters[:2]), *parameters[2:], (None, None), True)
    tolerance = {"rtol": 0, "atol": 32 * torch.finfo(dtype).eps}
    torch.testing.assert_close(y, expected, **tolerance)
    grad = torch.randn_like(y)
    grads = [torch.autograd.grad(out, (x, *parameters), grad) for out in (y, expected)]
    # In bfloat16, rounding decides some of the maxima differently, so the comparison uses norms.
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-5
    for name, a, b in zip(("x", "weight", "bias", "norm_weight", "norm_bias"), *grads):
        if name != "bias":  # it has no effect on the norm's output: its gradient is only rounding error
            assert torch.linalg.norm((a - b).double()) <= tolerance * torch.linalg.norm(b.double()), name


def test_statistics_match_the_convolution():
    x, parameters = make_input((4, 3, 6, 7)), make_parameters()
    y, mean, var = frelu(x, *parameters, EPS)
    assert y.requires_grad and not mean.requires_grad and not var.requires_grad
    conv = oracle.depthwise(*(as_numpy(t) for t in (x, *parameters[:2])))
    np.testing.assert_allclose(as_numpy(mean), conv.mean((0, 2, 3)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(as_numpy(var), conv.var((0, 2, 3)), rtol=1e-5)


def count_saved_tensors(function, x):
    """The number of tensors of at least the size of ``x`` that ``function()`` saves for backward."""
    saved = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.update({t.data_ptr(): t.numel()}) or t, lambda t: t
    ):
        y = function()
    assert y.requires_grad
    return sum(size >= x.numel() for size in saved.values())


def test_two_tensors_are_saved_for_backward_instead_of_three():
    x, parameters = make_input((4, 3, 16, 16)), make_parameters()
    statistics = torch.zeros(3), torch.ones(3)
    assert count_saved_tensors(lambda: train(x, *parameters), x) == 2
    assert count_saved_tensors(lambda: infer(x, *parameters), x) == 2
    assert count_saved_tensors(lambda: plain(x, *parameters, statistics, True), x) == 3


def test_x_gets_the_gradient_on_ties():
    x = torch.ones(1, 3, 2, 2, requires_grad=True)
    weight = torch.zeros(3, 1, 3, 3)
    weight[:, :, 1, 1] = 1
    frelu_inference(x, weight, torch.zeros(3)).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_has_no_effect(dtype):
    x, parameters = make_input(dtype=dtype), make_parameters()
    for function in (train, infer):
        with torch.autocast("cpu", torch.bfloat16):
            y = function(x, *parameters)
        assert torch.equal(y, function(x, *parameters))


def test_opcheck():
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
    assert torch.equal(y, torch.full_like(x, torch.inf))  # 9 * 60,000 overflows float16
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
    with pytest.raises(ValueError, match=r"frelu_inference: x has shape \[2, 3, 4\]; .*\[B, C, H, W\]"):
        infer(torch.zeros(2, 3, 4), *make_parameters())
    with pytest.raises(ValueError, match=r"frelu_inference: x has dtype (int64|Long)"):
        infer(torch.zeros(2, 3, 4, 4, dtype=torch.int64), *make_parameters())


# --- the compiled kernels -----------------------------------------------------------------------
# If they are built, all tests in this file use them.


@pytest.mark.parametrize("other", ["avx2", "none"])
def test_these_tests_pass_with_other_kernels(other):
    in_use = kernels_in_use()
    if in_use in (other, "baseline", "plain torch"):
        pytest.skip(f"these tests have already run with {in_use}")
    files = [__file__, __file__.replace("test_frelu", "test_frelu_shapes")]
    command = [sys.executable, "-m", "pytest", *files, "-k", "not other_kernels"]
    environment = {**os.environ, "PWLU_DET_CPU_KERNELS": other}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


@pytest.mark.parametrize("op", ["frelu", "frelu_backward", "frelu_inference", "frelu_inference_backward"])
def test_kernels_are_registered_for_avx2_and_avx512(op):
    registered = torch._C._dispatch_has_kernel_for_dispatch_key(f"pwlu_det::{op}", "CPU")
    assert registered == (kernels_in_use() in ("avx2", "avx512"))
