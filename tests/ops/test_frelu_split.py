"""The four ops that ``frelu_sync`` is made of, alone and in sequence."""

import pytest
import torch
from cuda_frelu import BACKWARD, DTYPES, EPS, OPS, check, make_case, run_op
from devices import on_gpu

from pwlu_det.ops import kernels_in_use

SPLIT = ("frelu_convolve", "frelu_normalise", "frelu_norm_sums", "frelu_convolve_backward")
on_each_device = pytest.mark.parametrize("device", ["cpu", on_gpu])


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("channels_last", [False, True], ids=["", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 7, 5), (1, 34, 40, 19), (3, 2, 1, 301)], ids=str)
@on_each_device
def test_each_op_matches_its_equation(device, shape, dtype, channels_last, op):
    case = make_case(shape, dtype, channels_last)
    check(case, op, run_op(case, op, device))


@pytest.mark.parametrize("channels_last", [False, True], ids=["", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@on_each_device
def test_ops_in_sequence_match_frelu(device, dtype, channels_last):
    case = make_case((2, 34, 9, 12), dtype, channels_last)
    weight, bias, _, _, gamma, beta, _ = (p.to(device) for p in case.parameters)
    convolution, norm, ops = (weight.view(-1, 1, 3, 3), bias), (gamma, beta, EPS), torch.ops.pwlu_det
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, grad = (t.to(device, memory_format=layout) for t in (case.x, case.grad))
    y, *saved = ops.frelu(x, *convolution, *norm)
    split = ops.frelu_convolve(x, *convolution)
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    torch.testing.assert_close(split, tuple(saved), **tolerance)
    torch.testing.assert_close(ops.frelu_normalise(x, *saved, *norm), y, **tolerance)
    whole = ops.frelu_backward(grad, x, *saved, *convolution, *norm, (True, True))
    sums = ops.frelu_norm_sums(grad, x, *saved, *norm)
    means = sums / (x.numel() // x.shape[1])
    others = ops.frelu_convolve_backward(grad, x, *saved, *convolution, *norm, means, (True, True))
    torch.testing.assert_close(
        (*others, *sums), whole, rtol=1e-2 if x.element_size() == 2 else 1e-4, atol=1e-3
    )


def split_arguments(shape=(2, 3, 5, 4)):
    case = make_case(shape, channels_last=True)
    weight, bias, mean, var, gamma, beta, means = case.parameters
    convolution, norm = (weight.view(-1, 1, 3, 3), bias), (gamma, beta, EPS)
    x, grad, conv = (t.to(memory_format=torch.channels_last) for t in (case.x, case.grad, case.saved))
    saved = (x, conv, mean, var)
    arguments = (x, *convolution), (*saved, *norm), (grad, *saved, *norm)
    return dict(zip(SPLIT, (*arguments, (grad, *saved, *convolution, *norm, means, (True, True)))))


@pytest.mark.parametrize("op", SPLIT)
def test_opcheck(op):
    torch.library.opcheck(getattr(torch.ops.pwlu_det, op), split_arguments()[op])


@pytest.mark.parametrize("op", SPLIT)
def test_kernels_are_registered_for_avx2_and_avx512(op):
    registered = torch._C._dispatch_has_kernel_for_dispatch_key(f"pwlu_det::{op}", "CPU")
    assert registered == (kernels_in_use() in ("avx2", "avx512"))


@pytest.mark.parametrize("op", SPLIT)
def test_statistics_and_sums_of_empty_input_are_zeros(op):
    arguments = [a[:0] if torch.is_tensor(a) and a.dim() == 4 and a.shape[1] == 3 else a
                 for a in split_arguments()[op]]  # fmt: skip
    results = getattr(torch.ops.pwlu_det, op)(*arguments)
    for result in [results] if torch.is_tensor(results) else results:
        assert result.shape[0] == 0 or not result.any()


def test_backward_uses_the_given_means():
    """It must not replace them by the means of this process's batch."""
    case = make_case((2, 3, 6, 5))
    before = run_op(case, BACKWARD, "cpu")[0]
    case.parameters[-1][1] += 1
    assert (run_op(case, BACKWARD, "cpu")[0] - before).abs().min() > 1e-4
