"""Arguments of norm_activation: wrong ones raise, and any strides will do."""

import pytest
import torch
from norm_cases import ADDED_EPS, EPS, make_case

from pwlu_det import ops
from pwlu_det.ops.norm_activation import ACTIVATIONS

OP = torch.ops.pwlu_det.norm_activation


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_arguments_raise(device):
    case = make_case("pwlu", "norm", given=True)
    right = case.with_tensors([t.to(device, torch.float32) for t in case.tensors])
    right.fused()
    names = ["x", "weight", "bias", "mean", "var", "added", "added_weight", "added_bias", "added_mean"]
    names += ["added_var", *ACTIVATIONS["pwlu"]]
    for i, name in enumerate(names):
        tensor = right.tensors[i]
        wrong = {
            "shape": [
                tensor[:1],
                tensor.flatten()[:0],
                torch.cat([tensor, tensor], -1),
                tensor[..., None, None],
            ],
            "dtype": [tensor.int(), tensor.bool(), tensor.to(torch.complex64)],
            "is on": [torch.ones_like(tensor, device="meta" if device == "cpu" else "cpu")],
        }
        if name == "x":
            wrong = {"shape": [tensor[0, 0, 0], tensor[:, :2], tensor[:1]], "dtype": wrong["dtype"]}
        for what, tensors in wrong.items():
            for value in tensors:
                if what == "shape" and (
                    value.shape == tensor.shape or (name == "points" and value.shape[1:] == (18,))
                ):
                    continue
                values = list(right.tensors)
                values[i] = value
                with pytest.raises(ValueError, match=f"^norm_activation: .*{what}"):
                    right.with_tensors(values).fused()
                    pytest.fail(f"{name} {what} {list(value.shape)}")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_lists_numbers_and_names_raise(device):
    x, one = torch.ones(2, 3, 4, device=device), torch.ones(3, device=device)
    right = {
        "x": x,
        "norm": [one, one],
        "eps": EPS,
        "added": [],
        "added_eps": 0.0,
        "activation": "prelu",
        "parameters": [one],
    }
    for change, message in (
        (
            {"norm": [one] * 3},
            "norm has 3 tensors; weight and bias, or weight, bias, mean and var are needed",
        ),
        ({"added": [x, one]}, "added has 2 tensors; it may have a tensor, and then the same tensors"),
        ({"added": [x] + [one] * 4}, "added has 5 tensors"),
        ({"activation": "gelu"}, "there is no activation 'gelu'"),
        ({"activation": "swish_backward"}, "there is no activation"),
        ({"parameters": []}, "prelu has 1 parameters, not 0"),
        ({"eps": -1.0}, "eps is -1; it must be finite and not negative"),
        ({"added_eps": float("nan")}, "added_eps is nan"),
    ):
        with pytest.raises(
            ValueError, match="^norm_activation: .*" + message.replace("is -1;", r"is -1(\.0)?;")
        ):
            OP(*{**right, **change}.values())
    backward = torch.ops.pwlu_det.norm_activation_backward
    with pytest.raises(ValueError, match="norm has 2 tensors; weight, bias, mean and var are needed"):
        backward(x, *right.values(), True, (True, True))
    with pytest.raises(ValueError, match="grad has shape"):
        backward(x[:1], *{**right, "norm": [one] * 4}.values(), True, (True, True))


def test_any_strides():
    case = make_case("pwlu", "norm", shape=(2, 3, 6, 5))
    expected = case.fused()[0]
    for i in (0, 3):
        values = list(case.tensors)
        values[i] = torch.stack([values[i]] * 2, -1)[..., 1]
        torch.testing.assert_close(case.with_tensors(values).fused()[0], expected)
        values[i] = case.tensors[i].transpose(0, 3).contiguous().transpose(0, 3)
        torch.testing.assert_close(case.with_tensors(values).fused()[0], expected)


def test_the_public_function():
    case = make_case("prelu", "tensor")
    y, statistics = ops.norm_activation(
        case.x, case.norm, EPS, "prelu", case.parameters, case.added, ADDED_EPS
    )
    assert torch.equal(y, case.fused()[0]) and statistics.shape == (2, 3)
