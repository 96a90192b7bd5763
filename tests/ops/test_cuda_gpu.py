"""PWLU's CUDA kernels on a GPU, compared with plain torch in float64 on the CPU."""

import pytest
import torch

from pwlu_det.ops import kernels, pwlu, pwlu_phase1, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.skipif(bool(kernels.CUDA_FALLBACK_REASON), reason=kernels.CUDA_FALLBACK_REASON),
]
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def make_site(shape, n, functions, dtype=torch.float32, device="cuda"):
    """Knots that float32 represents exactly, and x on a fine grid, so that the bins are unambiguous."""
    torch.manual_seed(0)
    interval = 4 / 2 ** (n.bit_length() - 1)
    left = torch.randint(-8, 5, (functions,)) / 2.0
    parameters = [torch.randn(functions, n + 1), left, left + n * interval, *torch.randn(2, functions)]
    start = left.view(-1, *[1] * (len(shape) - 2))
    x = start + ((torch.rand(shape) * 1.5 - 0.25) * n * interval * 256).round() / 256
    wide = torch.promote_types(dtype, torch.float32)
    parameters = [p.to(device, wide).requires_grad_() for p in parameters]
    return x.to(device, dtype).requires_grad_(), parameters


def check(x, parameters):
    y = pwlu(x, *parameters)
    assert (y.shape, y.dtype, y.stride()) == (x.shape, x.dtype, torch.empty_like(x).stride())
    grad = torch.randn(x.shape, device=x.device).to(x.dtype)
    gradients = torch.autograd.grad(y, (x, *parameters), grad)
    wide_x, wide_grad, *wide_parameters = (t.detach().cpu().double() for t in (x, grad, *parameters))
    expected = reference.pwlu(wide_x, *wide_parameters)
    unit = torch.finfo(x.dtype).eps + 4 * torch.finfo(parameters[0].dtype).eps
    scale = float(wide_parameters[0].abs().max())
    torch.testing.assert_close(y.cpu().double(), expected, rtol=unit, atol=unit * scale)
    expected = reference.pwlu_backward(wide_grad, wide_x, *wide_parameters)
    torch.testing.assert_close(gradients[0].cpu().double(), expected[0], rtol=unit, atol=1e-7)
    steepest = float(expected[0].abs().max() / wide_grad.abs().max())
    bound = 1e-6 * float(wide_grad.abs().sum()) * (1 + steepest) * float(1 + wide_x.abs().max())
    for actual, wanted in zip(gradients[1:], expected[1:]):
        torch.testing.assert_close(actual.cpu().double(), wanted, rtol=0, atol=bound)
    relu, *moments = pwlu_phase1(x, *parameters)
    assert torch.equal(relu, x.relu())
    for actual, wanted in zip(moments, reference.relu_moments(wide_x, len(parameters[0]))[1:]):
        torch.testing.assert_close(actual.cpu().double(), wanted, rtol=1e-5, atol=1e-5)
    return [y, *gradients, relu, *moments]


@pytest.mark.parametrize("layer_wise", [False, True], ids=["channel-wise", "layer-wise"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 2, 16, 64, 1024])
@pytest.mark.parametrize(
    "shape", [(8, 5), (4, 40, 9), (2, 3, 31, 33), (2, 64, 56, 56), (1, 3, 200, 201), (2, 3, 4, 5, 6)], ids=str
)
def test_kernels_agree_with_plain_torch(shape, n, dtype, layer_wise):
    x, parameters = make_site(shape, n, 1 if layer_wise else shape[1], dtype)
    check(x, parameters)
    if len(shape) > 3:
        last = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        check(x.detach().to(memory_format=last).requires_grad_(), parameters)


def test_misaligned_view():
    x, parameters = make_site((1, 3, 20, 20), 16, 3)
    shifted = torch.empty(x.numel() + 1, device="cuda")[1:].view_as(x).copy_(x.detach()).requires_grad_()
    check(shifted, parameters)


def test_gradients_are_bit_identical_from_run_to_run():
    x, parameters = make_site((4, 64, 100, 100), 16, 64)
    grad = torch.randn_like(x)
    first, *others = (torch.autograd.grad(pwlu(x, *parameters), (x, *parameters), grad) for _ in range(5))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other))


def test_current_stream_is_used():
    x, parameters = make_site((4, 64, 100, 100), 16, 64)
    stream = torch.cuda.Stream()
    expected = pwlu(x, *parameters)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(x)
        torch.cuda._sleep(50_000_000)
        late.copy_(x.detach())
        y = pwlu(late, *parameters)
    stream.synchronize()
    assert torch.equal(y, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second GPU")
def test_second_device():
    x, parameters = make_site((2, 3, 31, 33), 16, 3, device="cuda:1")
    assert all(result.device == x.device for result in check(x, parameters))


def test_cuda_graph():
    """Capturing fails if an op synchronizes with the GPU."""
    x, parameters = make_site((2, 3, 31, 33), 16, 3)
    arguments = [t.detach() for t in (x, *parameters)]
    expected = torch.ops.pwlu_det.pwlu_backward(arguments[0], *arguments, (True, True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = torch.ops.pwlu_det.pwlu_backward(arguments[0], *arguments, (True, True))
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(results, expected))


def test_autocast_and_compile():
    x, parameters = make_site((2, 3, 31, 33), 16, 3, torch.bfloat16)
    expected = pwlu(x, *parameters)
    with torch.autocast("cuda", torch.float16):
        assert torch.equal(pwlu(x, *parameters), expected)
    assert torch.equal(torch.compile(pwlu, fullgraph=True)(x, *parameters), expected)


def test_more_than_two_to_the_31_elements():
    free, _ = torch.cuda.mem_get_info()
    numel = 2**31 + 9
    if free < 5 * numel:
        pytest.skip(f"needs 10 GiB of GPU memory; only {free / 2**30:.0f} GiB are free")
    x = torch.zeros(1, 1, numel, dtype=torch.bfloat16, device="cuda")
    x[..., -9:] = torch.arange(9)
    _, parameters = make_site((1, 1, 1), 16, 1)
    y = pwlu(x, *parameters)
    assert torch.equal(y[..., -9:], pwlu(x[..., -9:].clone(), *parameters))
