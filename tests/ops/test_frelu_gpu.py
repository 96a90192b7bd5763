"""Funnel ReLU's CUDA kernels on a GPU; ``test_frelu_split.py`` compares each of them with its equation."""

import pytest
import torch

from pwlu_det.ops import frelu, frelu_inference, kernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.skipif(bool(kernels.CUDA_FALLBACK_REASON), reason=kernels.CUDA_FALLBACK_REASON),
]
EPS = 1e-5


def make_case(shape, dtype=torch.float32, channels_last=False):
    """x, its gradient and the four parameters."""
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, grad = (torch.randn(shape, device="cuda").to(dtype).to(memory_format=layout) for _ in range(2))
    sizes = (shape[1], 1, 3, 3), *[(shape[1],)] * 3
    wide = torch.promote_types(dtype, torch.float32)
    parameters = [torch.randn(size, device="cuda", dtype=wide).requires_grad_() for size in sizes]
    return x.requires_grad_(), grad, parameters


def run(x, grad, parameters, training):
    """The output and all gradients."""
    y = frelu(x, *parameters, EPS)[0] if training else frelu_inference(x, *parameters[:2])
    return [y, *torch.autograd.grad(y, (x, *parameters[: 4 if training else 2]), grad)]


both = pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])


@both
@pytest.mark.parametrize("channels_last", [False, True], ids=["", "channels_last"])
@pytest.mark.parametrize(
    "shape", [(1, 3, 1, 2), (2, 64, 56, 56), (1, 5, 201, 333), (1, 70000, 2, 3), (300, 257, 3, 1)], ids=str
)
def test_kernels_agree_with_plain_torch_on_a_cpu(shape, channels_last, training):
    case = make_case(shape, torch.float64, channels_last)
    results = run(*case, training)
    assert results[0].stride() == results[1].stride() == torch.empty_like(case[0]).stride()
    x, grad, parameters = (
        [t.detach().cpu().requires_grad_() for t in part] if isinstance(part, list) else part.detach().cpu()
        for part in case
    )
    for actual, wanted in zip(results, run(x.requires_grad_(), grad, parameters, training)):
        torch.testing.assert_close(actual.cpu(), wanted, rtol=1e-8, atol=1e-8)


@both
def test_results_are_bit_identical_from_run_to_run(training):
    case = make_case((4, 64, 100, 100))
    first, *others = (run(*case, training) for _ in range(5))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other))


@both
def test_misaligned_and_transposed_views(training):
    x, grad, parameters = make_case((2, 3, 20, 24))
    expected = run(x, grad, parameters, training)
    shifted = torch.empty(x.numel() + 1, device="cuda")[1:].view_as(x).copy_(x.detach()).requires_grad_()
    transposed = x.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    for view in shifted, transposed:
        torch.testing.assert_close(run(view, grad, parameters, training), expected)


def test_cuda_graph():
    """Capturing fails if an op synchronizes with the GPU."""
    x, grad, parameters = make_case((2, 3, 31, 33))
    x, parameters = x.detach(), [p.detach() for p in parameters]

    def step():
        y, *saved = torch.ops.pwlu_det.frelu(x, *parameters, EPS)
        return y, *torch.ops.pwlu_det.frelu_backward(grad, x, *saved, *parameters, EPS, (True, True))

    expected = step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(results, expected))


def test_empty_input():
    x, _, (weight, bias, *_) = make_case((0, 3, 4, 5))
    y = frelu_inference(x, weight, bias)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape and not weight.grad.any()
    _, mean, var = torch.ops.pwlu_det.frelu_convolve(x.detach(), weight.detach(), bias.detach())
    assert not mean.any() and not var.any()


def test_autocast_and_compile():
    x, grad, parameters = make_case((2, 3, 31, 33), torch.bfloat16)
    expected = run(x, grad, parameters, True)
    with torch.autocast("cuda", torch.float16):
        assert all(torch.equal(a, b) for a, b in zip(run(x, grad, parameters, True), expected))
    compiled = torch.compile(lambda *arguments: frelu(*arguments, EPS)[0], fullgraph=True)
    assert torch.equal(compiled(x, *parameters), expected[0])
