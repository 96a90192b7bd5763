"""Converted sites in two phases: the original activation, then a new fit to it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pwlu_det import PWLU, TwoPhase, convert_model


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 5, 1), nn.LeakyReLU(0.2))
    return model, torch.randn(4, 3, 9, 9)


def test_phase_1_is_the_original():
    original, x = make()
    model, _ = convert_model(copy.deepcopy(original), "pwlu", x)
    sites = [m for m in model if isinstance(m, PWLU)]
    for site in sites:
        site.begin_collecting()
    phases = TwoPhase(model, torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.1), 2)
    for _ in range(2):
        phases.before_step()
        assert torch.equal(model(x), original(x)) and torch.equal(model.eval()(x), original(x))
        model.train()
        loss, expected = model(x).square().mean(), original(x).square().mean()
        assert torch.equal(loss, expected)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        wanted = dict(zip(original.parameters(), torch.autograd.grad(expected, list(original.parameters()))))
        for (name, p), gradient in zip(model.named_parameters(), gradients):
            if name.startswith(("0.", "2.")):
                assert torch.equal(gradient, wanted[original.get_parameter(name)])
            else:
                assert not gradient.any(), p
        phases.after_step()
    phases.before_step()
    assert not any(site.collecting for site in sites)
    for site, function, size in zip(sites, (F.silu, lambda x: F.leaky_relu(x, 0.2)), (4, 5)):
        mean, std = site.running_mean[:, None], site.running_std[:, None]
        assert torch.allclose(site.left_bound, (mean - 3 * std)[:, 0], atol=1e-6)
        assert torch.allclose(site.right_bound, (mean + 3 * std)[:, 0], atol=1e-6)
        z = mean + std * torch.randn(size, 5000)
        difference = site(z[None]) - function(z)
        assert difference.std() < 0.02 * function(z).std()  # ReLU would differ by more
    phases.close()


@pytest.mark.parametrize("phase", [1, 2])
def test_state_dict(phase):
    original, x = make()
    model, _ = convert_model(copy.deepcopy(original), "pwlu", x)
    if phase == 1:
        model[1].begin_collecting()
        model(x)
    other, _ = convert_model(copy.deepcopy(original), "pwlu", x)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x)) and other[1].collecting == (phase == 1)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
