import pytest
import torch
from detectors import build, set_detector
from torch import nn

from pwlu_det import PWLU, ConfigError, build_optimizer, build_phase_hook


def groups_by_parameter(model, optimizer):
    names = {p: name for name, p in model.named_parameters()}
    return {names[p]: group for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("name", ["prelu", "pwlu", "relu"])
def test_learned_activations_have_an_optimiser_group_of_their_own(cfg, name):
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


def test_frozen_activations_are_not_optimised(cfg):
    set_detector(cfg, "retinanet")
    cfg.MODEL.ACTIVATION.NAME = "pwlu"
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    cfg.MODEL.ACTIVATION.CONVERT_FROZEN = True
    model = build(cfg)
    assert isinstance(model.backbone.bottom_up.stem.act1, PWLU)
    optimised = groups_by_parameter(model, build_optimizer(cfg, model))
    assert not any("stem" in key or "res2" in key for key in optimised)
    assert any("res3.0.act1" in key for key in optimised)


class Loader:
    """Nested as detectron2 nests its loaders."""

    def __init__(self, num_images):
        self.dataset = nn.Module()
        self.dataset.dataset = list(range(num_images))


def test_phase_1_in_epochs_is_rounded_down_to_iterations(cfg):
    cfg.MODEL.ACTIVATION.NAME = "pwlu"
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER = 16, 270000
    assert build_phase_hook(cfg, Loader(117266)).phase1_iters == 36645  # COCO train2017
    cfg.MODEL.ACTIVATION.PWLU.PHASE1_ITERS = 7
    assert build_phase_hook(cfg, Loader(117266)).phase1_iters == 7
    cfg.MODEL.ACTIVATION.PWLU.REALIGN = False
    assert build_phase_hook(cfg, Loader(117266)).phase1_iters == 0
    cfg.MODEL.ACTIVATION.NAME = "relu"
    assert build_phase_hook(cfg, Loader(117266)) is None


def test_phase_1_must_end_before_the_training(cfg):
    cfg.MODEL.ACTIVATION.NAME = "pwlu"
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER = 10, 50
    with pytest.raises(ConfigError, match=r"PHASE1_EPOCHS: .* 50 iterations.*less than SOLVER.MAX_ITER = 50"):
        build_phase_hook(cfg, Loader(100))
    assert build_phase_hook(cfg, Loader(99)).phase1_iters == 49


def test_gradient_clipping_is_kept(cfg):
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
