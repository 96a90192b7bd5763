"""Backward ops compute only the gradients that are requested, with the same bits as all together."""

import pytest
import torch
from devices import on_gpu
from op_arguments import ALL_OPS, BACKWARD_OPS, make_arguments, overload
from torch.utils._python_dispatch import TorchDispatchMode

from pwlu_det import ops

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
WITH_GRADIENTS = [op for op in ALL_OPS if f"{op}_backward" in BACKWARD_OPS and op != "frelu_convolve"]
on_each_device = pytest.mark.parametrize("device", ["cpu", on_gpu])


def bits(tensor):
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def assert_masked(op, arguments):
    """Requested gradients are bit-identical to those of the full backward; the others are empty."""
    full = overload(op)(*arguments.values())
    assert all(torch.is_tensor(g) and g.numel() > 0 for g in full)
    for mask in (True, False), (False, True), (False, False):
        masked = overload(op)(*{**arguments, "output_mask": mask}.values())
        for i, (gradient, expected) in enumerate(zip(masked, full)):
            if mask[i > 0]:
                assert torch.equal(bits(gradient), bits(expected)), (mask, i)
                assert gradient.stride() == expected.stride()
            else:
                assert (gradient.shape, gradient.dtype) == ((0,), expected.dtype), (mask, i)


LAYOUTS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", BACKWARD_OPS)
@on_each_device
def test_requested_gradients_equal_the_full_backward(device, op, dtype, memory_format):
    assert_masked(op, make_arguments(op, dtype, device, memory_format))


@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize("op", BACKWARD_OPS)
@on_each_device
def test_requested_gradients_if_float32_overflows(device, op, memory_format):
    """If the gradient of x, the sums for the parameters, or both overflow, they are recomputed in double."""
    arguments = make_arguments(op, device=device, memory_format=memory_format)
    x, grad = arguments["x"], arguments["grad"]
    for value, gradient in (1e30, 1.0), (1.0, 3e38), (1e18, 1e25), (float("nan"), 1.0), (1.0, float("inf")):
        changed = {**arguments, "x": x.clone(), "grad": grad.clone()}
        changed["x"][0, 1, 2], changed["x"][1, 5] = value, -value
        changed["grad"][0, 1], changed["grad"][1, 5] = gradient, gradient
        assert_masked(op, changed)


@pytest.mark.parametrize("memory_format", LAYOUTS, ids=str)
@pytest.mark.parametrize("num_intervals", [1, 5, 14, 22, 40, 300])
@pytest.mark.parametrize("layer_wise", [False, True])
@on_each_device
def test_pwlu_with_any_number_of_intervals(device, layer_wise, num_intervals, memory_format):
    arguments = make_arguments("pwlu_backward", device=device, memory_format=memory_format)
    arguments["points"] = torch.randn(8, num_intervals + 1, device=device)
    if layer_wise:
        names = ("points", "left_bound", "right_bound", "left_slope", "right_slope")
        arguments |= {name: arguments[name][:1] for name in names}
    assert_masked("pwlu_backward", arguments)
    arguments["points"][:, 0] = 3e38  # the slopes overflow float32
    arguments["points"][:, 1] = -3e38
    assert_masked("pwlu_backward", arguments)


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("op", ["apl_backward", "slaf_backward"])
@on_each_device
def test_any_number_of_coefficients(device, op, size):
    arguments = make_arguments(op, device=device)
    for name in {"slopes", "offsets"} & set(arguments):
        arguments[name] = torch.randn(size, 8, device=device)
    if "coefficients" in arguments:
        arguments["coefficients"] = torch.randn(8, size, device=device)
    assert_masked(op, arguments)


class Masks(TorchDispatchMode):
    """Records the output_mask of each backward op that is called."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "pwlu_det" and "_backward" in str(function):
            self.seen.append(tuple(args[-1]))
        return function(*args, **(kwargs or {}))


def results_of(op, arguments):
    results = overload(op)(*arguments.values())
    return results if torch.is_tensor(results) else results[0]


@pytest.mark.parametrize("op", WITH_GRADIENTS)
def test_autograd_requests_only_needed_gradients(op):
    arguments = {n: v for n, v in make_arguments(op).items() if n != "output_mask"}
    learned = [name for name, v in arguments.items() if torch.is_tensor(v) and v.is_floating_point()]
    for needed, mask in (
        (learned, (True, True)),
        (["x"], (True, False)),
        (learned[1:], (False, True)),
        (["x", learned[-1]], (True, True)),
    ):
        inputs = dict(arguments)
        for name in learned:
            inputs[name] = arguments[name].clone().requires_grad_(name in needed)
        y = results_of(op, inputs)
        with Masks() as masks:
            y.sum().backward()
        assert masks.seen == [mask]
        for name in learned:
            gradient = inputs[name].grad
            assert (gradient is not None) == (name in needed), name
            assert gradient is None or gradient.shape == inputs[name].shape


class Zeros(TorchDispatchMode):
    """Counts the calls of ``zeros_like``."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "zeros_like" in str(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("needed", [(0, 2), (1, 4), (0,)], ids=str)
def test_phase1_creates_zeros_only_for_needed_gradients(needed):
    inputs = [t.requires_grad_(i in needed) for i, t in enumerate(make_arguments("pwlu_phase1").values())]
    y, *_ = ops.pwlu_phase1(*inputs)
    with Zeros() as zeros:
        y.sum().backward()
    assert zeros.count == len([i for i in needed if i > 0])
    for i, tensor in enumerate(inputs):
        assert (tensor.grad is not None) == (i in needed)
        assert i == 0 or tensor.grad is None or torch.equal(tensor.grad, torch.zeros_like(tensor))
