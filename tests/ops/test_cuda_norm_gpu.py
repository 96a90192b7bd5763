"""A norm followed by an activation on a GPU, compared with the op on the CPU in float64."""

import pytest
import torch
from norm_cases import CONTENTS, make_case

from pwlu_det.ops import kernels
from pwlu_det.ops.norm_activation import ACTIVATIONS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.skipif(bool(kernels.CUDA_FALLBACK_REASON), reason=kernels.CUDA_FALLBACK_REASON),
]
TOLERANCES = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def run(case, grad):
    y, statistics = case.fused()
    return [y, statistics, *torch.autograd.grad(y, case.learned, grad.to(y.device, y.dtype))]


def on_gpu(case):
    return case.with_tensors([t.detach().to("cuda").requires_grad_(t.requires_grad) for t in case.tensors])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("added", CONTENTS)
@pytest.mark.parametrize("given", [False, True], ids=["batch", "given"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_kernels_agree_with_the_cpu(activation, given, added, memory_format, dtype):
    if dtype.itemsize == 2 and activation not in ("swish", "acon_c", "pau", "slaf"):
        pytest.skip("a rounded input changes the slope at a kink")
    for shape in ((2, 37, 9, 7), (3, 2, 90, 101)):
        case = make_case(activation, added, given, shape, memory_format=memory_format)
        case = case.leaves(dtype, torch.promote_types(dtype, torch.float32))
        grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        results, wanted = run(on_gpu(case), grad), run(case.leaves(torch.float64), grad)
        assert results[0].stride() == results[2].stride() == case.x.stride()
        for actual, exact in zip(results, wanted):
            error = (actual.detach().cpu().double() - exact.detach()).abs().max() if exact.numel() else 0
            assert error <= TOLERANCES[dtype] * exact.detach().abs().amax() if exact.numel() else True


@pytest.mark.parametrize("layer_wise", [False, True])
@pytest.mark.parametrize("activation", ["relu", "pwlu", "pau"])
def test_results_are_bit_identical_from_run_to_run(activation, layer_wise):
    case = on_gpu(make_case(activation, "norm", False, (4, 64, 50, 50), layer_wise).leaves(torch.float32))
    grad = torch.randn(case.x.shape)
    first, *others = (run(case, grad) for _ in range(3))
    for other in others:
        assert all(map(torch.equal, first, other))


def test_cuda_graph():
    """Capturing fails if an op synchronizes with the GPU."""
    case = on_gpu(make_case("pwlu", "norm", False, (2, 3, 31, 33)))
    expected = case.fused()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = case.fused()
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, results, expected))
