"""Second and forward-mode derivatives of the modules, with their norms in each mode."""

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from pwlu_det.activations import ACTIVATIONS, PWLU, FReLU, MetaAcon, build_activation


def collecting_pwlu():
    site = PWLU(3)
    site.begin_collecting()
    return site


BUILDERS = {name: lambda name=name: build_activation(name, 3) for name in ACTIVATIONS} | {
    "pwlu, layer-wise": lambda: PWLU(3, channel_wise=False),
    "frelu, GN": lambda: FReLU(3, norm=lambda channels: nn.GroupNorm(1, channels)),
    "frelu, FrozenBN": lambda: FReLU(3, norm=FrozenBatchNorm2d),
    "frelu, SyncBN": lambda: FReLU(3, norm=nn.SyncBatchNorm),
    "meta_acon, layer": lambda: MetaAcon(3, mode="layer"),
    "meta_acon, pixel": lambda: MetaAcon(3, mode="pixel"),
    "meta_acon, FrozenBN": lambda: MetaAcon(3, norm=FrozenBatchNorm2d),
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", BUILDERS)
def test_derivatives_are_those_of_differences(name, training):
    torch.manual_seed(0)
    module = BUILDERS[name]().double().train(training)
    if name == "rpau" and training:
        module.alpha = 0.0  # as its gradients are those of PAU at the drawn coefficients
    x = torch.randn(2, 6 if name == "maxout" else 3, 2, 2, dtype=torch.float64) * 2
    names, parameters = [*zip(*module.named_parameters())] or ((), ())

    def function(x, *values):
        torch.manual_seed(0)
        return torch.func.functional_call(module, dict(zip(names, values)), (x,))

    arguments = (x.requires_grad_(), *parameters)
    options = {"check_backward_ad": False, "check_undefined_grad": False}
    assert gradcheck(function, arguments, check_forward_ad=True, **options)
    assert gradgradcheck(function, arguments, check_undefined_grad=False)
    with forward_ad.dual_level():
        function(forward_ad.make_dual(x, torch.ones_like(x)), *parameters)
        assert all(forward_ad.unpack_dual(buffer).tangent is None for buffer in module.buffers())


def test_pwlu_in_phase_1_is_relu():
    site, x = collecting_pwlu(), torch.tensor([[-2.0, 0.5, 3.0]], requires_grad=True)
    (first,) = torch.autograd.grad(site(x).pow(3).sum(), x, create_graph=True)
    assert torch.autograd.grad(first.sum(), x)[0].tolist() == [[0.0, 3.0, 18.0]]
    with forward_ad.dual_level():
        y = site(forward_ad.make_dual(x.detach(), torch.full((1, 3), 5.0)))
        assert forward_ad.unpack_dual(y).tangent.tolist() == [[0.0, 5.0, 5.0]]
    assert site.num_batches == 2 and site.running_mean.tolist() == [-2.0, 0.5, 3.0]
