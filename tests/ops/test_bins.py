"""Every kernel has one rule for the outer bins: x < B_L and x >= B_R."""

import pytest
import torch

from pwlu_det.ops import pwlu

# B_L, B_R, and x just outside or inside of one of them. A rounded quotient (x - B_L) / d cannot decide these.
SINGLE = [(-2e7, 1.0, 0.0), (-3.0, 3.0, 2.9999998), (-1e9, 5.0, -25.0), (-2e7, 1.0, 1.0), (-3.0, 3.0, 3.0)]
DOUBLE = [(-1e17, 1.0, 0.0), (-3.0, 3.0, 2.9999999999999996), (-1e17, 1.0, 1.0)]
CASES = [
    *((torch.float32, *case) for case in SINGLE),
    *((torch.bfloat16, *case) for case in SINGLE if case[2] != 2.9999998),
    *((torch.float64, *case) for case in SINGLE + DOUBLE),
]


@pytest.mark.parametrize("dtype, left, right, x", CASES, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("n", [1, 2, 16, 23, 100])
def test_x_is_compared_with_the_right_bound(n, memory_format, dtype, left, right, x):
    """A function of slope 0 between the bounds, 1 left of B_L and 2 right of B_R."""
    own = torch.promote_types(dtype, torch.float32)
    parameters = [torch.zeros(8, n + 1), *(torch.full((8,), value) for value in (left, right, 1.0, 2.0))]
    inputs = torch.full((2, 8, 3, 3), x, dtype=dtype).contiguous(memory_format=memory_format)
    leaves = [inputs.requires_grad_(), *(p.to(own).requires_grad_() for p in parameters)]
    y = pwlu(*leaves)
    beyond = inputs >= right
    torch.testing.assert_close(y, torch.where(beyond, 2 * (inputs - right), 0.0), rtol=0, atol=0)
    grad_x, grad_points, _, grad_right, *_ = torch.autograd.grad(y.sum(), leaves)
    torch.testing.assert_close(grad_x, torch.where(beyond, 2.0, 0.0).to(dtype), rtol=0, atol=0)
    torch.testing.assert_close(grad_right, torch.full_like(grad_right, -36.0 * bool(beyond.any())))
    assert (grad_points[:, -1] > 0).all()
