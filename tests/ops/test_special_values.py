"""Infinities, NaN and the largest numbers in x: results depend neither on the layout nor on neighbors."""

import pytest
import torch
from op_arguments import ALL_OPS, make_arguments, overload

OPS_OF_X = [op for op in ALL_OPS if "x" in make_arguments(op)]
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def results_of(op, arguments):
    results = overload(op)(*arguments.values())
    return [results] if torch.is_tensor(results) else list(results)


@pytest.mark.parametrize("op", OPS_OF_X)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, "max", "-max"], ids=str)
def test_every_layout_gives_the_same(op, dtype, value):
    largest = torch.finfo(dtype).max
    value = {"max": largest, "-max": -largest}.get(value, value)
    arguments = make_arguments(op, dtype)
    x = arguments["x"]
    x[0, 1, 2, 3] = x[1, 1, 0, 6] = x[1, 6, 4, 4] = value
    dense = results_of(op, arguments)
    last = {
        name: argument.contiguous(memory_format=torch.channels_last)
        if torch.is_tensor(argument) and argument.shape == x.shape
        else argument
        for name, argument in arguments.items()
    }
    unit = 64 * torch.finfo(dtype).eps
    torch.testing.assert_close(results_of(op, last), dense, rtol=unit, atol=unit, equal_nan=True)
    one_by_one = {**arguments, "x": torch.stack([x, x], dim=-1)[..., 0]}
    torch.testing.assert_close(results_of(op, one_by_one), dense, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("op", ["pwlu", "pwlu_phase1"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_minus_infinity_where_the_function_is_flat(dtype, memory_format, op):
    """With a slope of 0, y is the value at the bound and not 0 * inf. Both functions are ReLU here."""
    arguments = make_arguments(op, dtype, memory_format=memory_format)
    for name, argument in arguments.items():
        if name != "x" and torch.is_tensor(argument):
            argument.zero_()
    if op == "pwlu":
        arguments["left_bound"] -= 1
        arguments["right_slope"] += 1
    x = arguments["x"].clamp_(-3, 3)
    x[0, 1, 2, 3] = x[1, 6, 4, 4] = -torch.inf
    y = results_of(op, arguments)[0]
    assert torch.equal(y, x.clamp(min=0))
