"""Custom activations: one decorated class, which is selected and configured in YAML."""

import pytest
import torch
from detectors import build, set_detector
from torch import nn

import pwlu_det
from pwlu_det.activations.registry import ACTIVATIONS, check_option, default_options
from pwlu_det.config import load_config


@pytest.fixture
def bounded_below():
    """max(x, b) with one learned b per channel."""

    @pwlu_det.register_activation("bounded_below")
    class BoundedBelow(nn.Module):
        def __init__(self, num_channels, start=-1.0, scale=1, norm=nn.BatchNorm2d):
            super().__init__()
            check_option("BoundedBelow", "start", start, start <= 0, "at most 0")
            if scale == 3:
                raise ValueError("three is too many")
            self.bound = nn.Parameter(torch.full((num_channels,), start * scale))
            self.norm = norm(num_channels)

        def forward(self, x):
            return torch.maximum(self.norm(x), self.bound[:, None, None])

    yield BoundedBelow
    del ACTIVATIONS["bounded_below"]


def configure(tmp_path, text):
    file = tmp_path / "custom.yaml"
    file.write_text(f"MODEL: {{ACTIVATION: {{NAME: bounded_below, {text}}}}}")
    cfg = load_config(str(file), [])
    set_detector(cfg, "retinanet")
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.BACKBONE.FREEZE_AT = "cpu", "", 0
    cfg.MODEL.RESNETS.NORM = "BN"
    return cfg


def test_decorated_class_is_selected_and_configured_in_yaml(bounded_below, tmp_path):
    cfg = configure(tmp_path, "LR_FACTOR: 2.0, BOUNDED_BELOW: {START: -0.5}")
    assert cfg.MODEL.ACTIVATION.BOUNDED_BELOW == {"START": -0.5, "SCALE": 1}
    pwlu_det.check_config(cfg)
    model = build(cfg)
    site = model.backbone.bottom_up.res2[0].act1
    assert type(site) is bounded_below and type(site.norm) is nn.BatchNorm2d
    assert torch.equal(site.bound, torch.full_like(site.bound, -0.5))
    optimizer = pwlu_det.build_optimizer(cfg, model)
    (group,) = (g for g in optimizer.param_groups if any(p is site.bound for p in g["params"]))
    assert (group["lr"], group["weight_decay"]) == (2 * cfg.SOLVER.BASE_LR, 0)
    (group,) = (g for g in optimizer.param_groups if any(p is site.norm.weight for p in g["params"]))
    assert group["lr"] == cfg.SOLVER.BASE_LR
    assert not any(p is site.bound for p in group["params"])


@pytest.mark.parametrize(
    "text, message",
    [
        ("BOUNDED_BELOW: {START: 2.0}", r"MODEL.ACTIVATION.BOUNDED_BELOW.START is 2.0; it must be at most 0"),
        ("BOUNDED_BELOW: {SCALE: 3}", r"MODEL.ACTIVATION.BOUNDED_BELOW: three is too many"),
    ],
)
def test_error_names_the_config_key_of_a_rejected_option(bounded_below, tmp_path, text, message):
    cfg = configure(tmp_path, text)
    state = torch.get_rng_state()
    with pytest.raises(pwlu_det.ConfigError, match=f"^{message}$"):
        pwlu_det.check_config(cfg)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("text", ["BOUNDED_BELOW: {STOP: 2.0}", "BOUNDED_BELOW: {NORM: GN}"])
def test_unknown_option_is_an_unknown_config_key(bounded_below, tmp_path, text):
    with pytest.raises(pwlu_det.ConfigError, match=r"Non-existent config key: .*BOUNDED_BELOW"):
        configure(tmp_path, text)


def test_registered_activation_can_be_built_without_a_config(bounded_below):
    assert torch.equal(pwlu_det.build_activation("bounded_below", 3).bound, torch.full((3,), -1.0))
    assert pwlu_det.activations.build_activation("bounded_below", 3, start=-2.0).bound[0] == -2


def test_invalid_registrations_are_rejected(bounded_below):
    with pytest.raises(ValueError, match=r"the name 'pwlu' is already used by .*PWLU"):
        pwlu_det.register_activation("pwlu")(bounded_below)
    with pytest.raises(ValueError, match=r"register_activation\('mine'\): the constructor of GELU must"):
        pwlu_det.register_activation("mine")(nn.GELU)
    with pytest.raises(
        ValueError, match="the constructor of Needy must take num_channels, followed by options"
    ):

        @pwlu_det.register_activation("needy")
        class Needy(nn.Module):
            def __init__(self, num_channels, start):
                super().__init__()

    assert "mine" not in ACTIVATIONS and "needy" not in ACTIVATIONS


def test_option_node_that_would_hide_a_config_key_is_rejected(cfg):
    @pwlu_det.register_activation("stages")
    class Stages(nn.Module):
        def __init__(self, num_channels, start=0.0):
            super().__init__()

    try:
        with pytest.raises(pwlu_det.ConfigError, match=r"MODEL.ACTIVATION.STAGES is already another key"):
            pwlu_det.add_pwlu_config(cfg)
    finally:
        del ACTIVATIONS["stages"]


def create_act_layer(act_layer, inplace=None):
    """How most of timm's models call their ``act_layer``; its ResNet calls ``act_layer(inplace=True)``."""
    if inplace is None:
        return act_layer()
    try:
        return act_layer(inplace=inplace)
    except TypeError:
        return act_layer()


SIMPLE = ("relu", "relu6", "leaky_relu", "rrelu", "elu", "celu", "mish", "softplus")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_as_the_act_layer_of_timm(name):
    cls, x = ACTIVATIONS[name], torch.randn(2, 3, 4, 4)
    calls = [lambda: create_act_layer(cls), lambda: create_act_layer(cls, True), lambda: cls(inplace=True)]
    for call in calls:
        if name in SIMPLE:
            before = x.clone()
            assert torch.equal(call().eval()(x), cls(3).eval()(x)) and torch.equal(x, before)
        else:
            with pytest.raises(
                TypeError, match=f"{cls.__name__} needs num_channels.*timm.*convert_activations"
            ):
                call()
    assert "inplace" not in default_options(name)
