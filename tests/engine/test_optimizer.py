"""Parameter groups of the optimizer, and parameters that are hidden from a step."""

import pytest
import torch
from detectors import build, set_detector
from torch import nn

from pwlu_det import PWLU, build_activation, build_optimizer
from pwlu_det.activations.parameters import hide_while_stepping
from pwlu_det.engine.optimizer import activation_parameters, convolution_biases


def groups_by_parameter(model, optimizer):
    names = {p: name for name, p in model.named_parameters()}
    return {names[p]: group for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("name", ["prelu", "pwlu", "relu"])
def test_learned_activations_have_their_own_optimizer_group(cfg, name):
    set_detector(cfg, "retinanet")
    cfg.MODEL.ACTIVATION.NAME = name
    cfg.MODEL.ACTIVATION.LR_FACTOR = 0.5
    cfg.MODEL.ACTIVATION.WEIGHT_DECAY = 0.003
    model = build(cfg)
    optimizer = build_optimizer(cfg, model)
    groups = groups_by_parameter(model, optimizer)
    assert set(groups) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(groups)
    for key, group in groups.items():
        if ".act" in key:
            assert (group["lr"], group["weight_decay"]) == (0.5 * cfg.SOLVER.BASE_LR, 0.003)
        elif "norm" in key:
            assert (group["lr"], group["weight_decay"]) == (cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY_NORM)
        else:
            assert (group["lr"], group["weight_decay"]) == (cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY)
    assert any(".act" in key for key in groups) == (name != "relu")


def test_frozen_activations_are_not_optimized(cfg):
    set_detector(cfg, "retinanet")
    cfg.MODEL.ACTIVATION.NAME = "pwlu"
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    cfg.MODEL.ACTIVATION.CONVERT_FROZEN = True
    model = build(cfg)
    assert isinstance(model.backbone.bottom_up.stem.act1, PWLU)
    optimized = groups_by_parameter(model, build_optimizer(cfg, model))
    assert not any("stem" in key or "res2" in key for key in optimized)
    assert any("res3.0.act1" in key for key in optimized)


def test_gradient_clipping_applies_to_activations(cfg):
    set_detector(cfg, "retinanet")
    cfg.MODEL.ACTIVATION.NAME = "prelu"
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "value"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.1
    model = build(cfg)
    optimizer = build_optimizer(cfg, model)
    slope = model.backbone.bottom_up.stem.act1.slope
    before = slope.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 5.0)
    optimizer.step()
    torch.testing.assert_close(slope.detach(), before - cfg.SOLVER.BASE_LR * 0.1)


def test_activation_parameters_come_only_from_activations(cfg):
    activations = [build_activation("pwlu", 3), build_activation("prelu", 3), build_activation("relu", 3)]
    activations[1].requires_grad_(False)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), *activations, nn.BatchNorm2d(3))
    expected = [p for activation in activations for p in activation.parameters()]
    found = activation_parameters(model)
    assert len(expected) == 6
    assert [id(p) for p in found] == [id(p) for p in expected]
    assert convolution_biases(model) == []


def test_convolutions_inside_activations_are_not_activation_parameters():
    meta_acon, frelu = build_activation("meta_acon", 3), build_activation("frelu", 3)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), meta_acon, frelu)
    assert {id(p) for p in activation_parameters(model)} == {id(meta_acon.p1), id(meta_acon.p2)}
    biases = [meta_acon.fc1.bias, meta_acon.fc2.bias, frelu.conv.bias]
    assert [id(p) for p in convolution_biases(model)] == [id(p) for p in biases]


def test_hidden_parameters_are_restored_in_order_even_if_a_step_raises():
    """Hide parameters twice, as with a phase hook on an optimizer that clips gradients by value."""
    a, b, c = (nn.Parameter(torch.ones(1)) for _ in range(3))
    optimizer = torch.optim.SGD([a, b, c], lr=1.0, weight_decay=1.0)
    undo = [hide_while_stepping(optimizer, lambda: [b]), hide_while_stepping(optimizer, lambda: [c])]
    for parameter in (a, b, c):
        parameter.grad = torch.ones(1)
    optimizer.step()
    assert [float(p) for p in (a, b, c)] == [-1, 1, 1]
    undo[0]()
    optimizer.step()
    assert (float(b), float(c)) == (-1, 1)

    def fail():
        raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        optimizer.step(fail)
    assert optimizer.param_groups[0]["params"] == [a, b]
    undo[1]()
    assert optimizer.param_groups[0]["params"] == [a, b, c]
    assert set(optimizer.state) <= {a, b}
