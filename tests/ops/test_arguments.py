"""``torch.ops.pwlu_det.*`` called directly: wrong arguments raise, with every implementation of the ops."""

import pytest
import torch
from devices import on_gpu
from op_arguments import ALL_OPS, BACKWARD_OPS, SHAPES, make_arguments, overload

every_op = pytest.mark.parametrize("op", ALL_OPS)
on_each_device = pytest.mark.parametrize("device", ["cpu", "meta", on_gpu])  # "meta": the fake kernels

FREE_AXIS = {"points": 1, "coefficients": 1}
"""Dimensions that may have almost any size."""


def wrong_shapes(name, shape):
    """Wrong shapes that are similar to the right one."""
    if name == "x":  # other shapes may be allowed, too
        return [(), shape[:1], (shape[0], shape[1] + 1, *shape[2:]), (shape[0], 0, *shape[2:])]
    near = [(), shape[:-1], (*shape, 1), (1, *shape), tuple(2 * size for size in shape)]
    for axis, size in enumerate(shape):
        for other in (0, 1, size - 1, size + 1):
            if axis != FREE_AXIS.get(name) or other < 2:
                near.append((*shape[:axis], other, *shape[axis + 1 :]))
    if len(shape) > 1:
        near += [shape[::-1], (torch.Size(shape).numel(),)]
    return [s for s in near if s != shape and not (name == "coefficients" and s == (shape[0], 1))]


def wrong_tensors(name, tensor, device):
    """Tensors that are not allowed for an argument, with the part of the error message that says why."""
    for shape in wrong_shapes(name, tuple(tensor.shape)):
        yield "shape", tensor.new_ones(shape)
    for dtype in (torch.int64, torch.bool, torch.complex64):
        yield "dtype", tensor.new_ones(tensor.shape, dtype=dtype)
    if name != "x" and tensor.shape == SHAPES["x"]:
        yield "dtype", tensor.double()
    if name != "x":
        yield "is on", torch.ones_like(tensor, device="cpu" if device != "cpu" else "meta")
    if device != "meta":
        yield "layout", tensor.to_sparse()
    if device == "cpu":
        yield "layout", tensor.to_mkldnn()


@every_op
@on_each_device
def test_wrong_tensor_raises_an_error_that_names_it(op, device):
    right = make_arguments(op, device=device)
    overload(op)(*right.values())
    for name, value in right.items():
        if not torch.is_tensor(value) or name == "seed":
            continue
        for what, wrong in wrong_tensors(name, value, device):
            if len(right) == 1 and what == "shape" and wrong.dim() > 1:
                continue  # it is only wrong beside other arguments
            case = f"{name}: {what} {list(wrong.shape)} {wrong.dtype} {wrong.device} {wrong.layout}"
            with pytest.raises(ValueError, match=f"^{op}: .*{what}") as error:
                overload(op)(*{**right, name: wrong}.values())
                pytest.fail(case)
            # A shape may be allowed by itself, so that the next argument is the one that does not fit.
            assert what == "shape" or f"{op}: {name} " in str(error.value), case


@pytest.mark.parametrize("eps", [float("nan"), float("inf"), -1e-5])
@pytest.mark.parametrize("op", [op for op in ALL_OPS if {"eps", "alpha"} & set(make_arguments(op))])
@on_each_device
def test_negative_or_infinite_number_raises(op, device, eps):
    arguments = make_arguments(op, device=device)
    (name,) = {"eps", "alpha"} & set(arguments)
    with pytest.raises(ValueError, match=rf"{op}: {name} is .*must be finite and not negative"):
        overload(op)(*{**arguments, name: eps}.values())


SEEDS = {"float": torch.tensor(1.0), "1-D": torch.tensor([1]), "meta": torch.tensor(1, device="meta")}


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
@pytest.mark.parametrize("op", ["rpau", "rpau_backward"])
def test_wrong_seed_raises(op, seed):
    with pytest.raises(ValueError, match=f"{op}: seed must be an int64 scalar on the CPU"):
        overload(op)(*{**make_arguments(op), "seed": seed}.values())


def odd_layouts(tensor):
    """The same values with other strides."""
    yield tensor.transpose(0, -1).contiguous().transpose(0, -1)
    yield torch.stack([tensor, tensor], dim=-1)[..., 1]
    if tensor.dim() == 4:
        yield tensor.contiguous(memory_format=torch.channels_last)
        yield tensor.to(torch.complex64).real


@every_op
@pytest.mark.parametrize("device", ["cpu", on_gpu])
def test_results_do_not_depend_on_strides(op, device):
    arguments = make_arguments(op, device=device)
    expected = as_list(overload(op)(*arguments.values()))
    for name, value in arguments.items():
        if torch.is_tensor(value) and value.dim() > 0:
            for view in odd_layouts(value):
                actual = as_list(overload(op)(*{**arguments, name: view}.values()))
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", BACKWARD_OPS)
@pytest.mark.parametrize("device", ["cpu", on_gpu])
def test_expanded_gradient(op, device):
    arguments = make_arguments(op, device=device)
    one = torch.full((1, 1, 1, 1), 0.75, device=device)
    expanded = {**arguments, "grad": one.expand(SHAPES["grad"])}
    dense = {**arguments, "grad": expanded["grad"].contiguous()}
    assert expanded["grad"].stride() == (0, 0, 0, 0)
    torch.testing.assert_close(
        as_list(overload(op)(*expanded.values())), as_list(overload(op)(*dense.values())), rtol=0, atol=0
    )


def as_list(results):
    return [results] if torch.is_tensor(results) else list(results)
