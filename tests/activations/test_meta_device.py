"""Modules that are created on the meta device and get their values from a state dict."""

import pytest
import torch

from pwlu_det.activations import ACTIVATIONS, PWLU, build_activation


def collecting_pwlu(num_channels):
    site = PWLU(num_channels)
    site.begin_collecting()
    return site


BUILDERS = {name: lambda c, name=name: build_activation(name, c) for name in ACTIVATIONS}
BUILDERS |= {
    "swish, trainable": lambda c: build_activation("swish", c, trainable_beta=True),
    "pwlu, collecting": collecting_pwlu,
}


def evaluate(module, x):
    torch.manual_seed(0)
    return module.eval()(x)


@pytest.mark.parametrize("name", BUILDERS)
def test_values_come_from_the_state_dict(name):
    source = BUILDERS[name](3)
    with torch.no_grad():
        for parameter in source.parameters() if "collecting" not in name else ():
            parameter.add_(torch.rand_like(parameter) * 0.5)
    x = torch.randn(2, 6 if name == "maxout" else 3, 4, 5)
    expected = evaluate(source, x)
    with torch.device("meta"):
        empty, assigned = (BUILDERS[name](3) for _ in range(2))
    on_meta = empty(x.to("meta"))
    assert on_meta.is_meta and on_meta.shape == expected.shape

    empty.to_empty(device="cpu")
    for tensor in (*empty.parameters(), *empty.buffers()):  # what memory may hold
        tensor.detach().fill_(float("nan") if tensor.is_floating_point() else 12345)
    empty.load_state_dict(source.state_dict())
    assigned.load_state_dict(source.state_dict(), assign=True)
    for module in empty, assigned:
        assert torch.equal(evaluate(module, x), expected)
        if "pwlu" in name:
            assert module.collecting == source.collecting
