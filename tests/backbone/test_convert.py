import pytest
import torch
from detectors import CONVERTED, STOCK, batch, build, losses_and_gradients, set_detector
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.backbone import resnet
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import nn

import pwlu_det
from pwlu_det import PWLU, PwluDetError, build_activation, convert_activations

SITES_OF_R50 = {
    f"{stage}.{block}.act{i}"
    for stage, blocks in (("res2", 3), ("res3", 4), ("res4", 6), ("res5", 3))
    for block in range(blocks)
    for i in (1, 2, 3)
}


def pwlu_sites(model):
    return {name for name, module in model.named_modules() if isinstance(module, PWLU)}


def resnet_of(cfg, depth=50, kind="resnet", **activation):
    set_detector(cfg, "retinanet", depth)
    cfg.MODEL.BACKBONE.NAME = CONVERTED[kind]
    for key, value in activation.items():
        cfg.MODEL.ACTIVATION[key] = value
    return build_backbone(cfg, ShapeSpec(channels=3))


@pytest.fixture
def warm_up_scripted_losses(cfg):
    """fvcore scripts the focal loss, and the first run in TorchScript rounds differently from later ones."""
    cfg = cfg.clone()
    set_detector(cfg, "retinanet")
    losses_and_gradients(build(cfg))


@pytest.mark.usefixtures("warm_up_scripted_losses")
@pytest.mark.parametrize("norm", ["BN", "GN", "FrozenBN"])
@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("kind", ["retinanet", "mask_rcnn"])
def test_relu_equals_the_stock_detector_bit_for_bit(cfg, kind, depth, norm):
    set_detector(cfg, kind, depth, norm)
    converted = build(cfg)
    cfg.MODEL.BACKBONE.NAME = STOCK["fpn" if kind == "mask_rcnn" else "retinanet"]
    stock = build(cfg, seed=5)
    stock.load_state_dict(converted.state_dict())  # strict: relu adds no key

    for ours, theirs in zip(losses_and_gradients(converted), losses_and_gradients(stock)):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            same = ours[name] is value is None or torch.equal(ours[name], value)
            assert same, f"{name} differs"

    converted.eval(), stock.eval()
    with torch.no_grad():
        images = torch.randn(1, 3, 64, 64)
        ours, theirs = converted.backbone(images), stock.backbone(images)
        for name in theirs:
            assert torch.equal(ours[name], theirs[name])
        detections = [model(batch()) for model in (converted, stock)]
    for a, b in zip(*detections):
        assert torch.equal(a["instances"].scores, b["instances"].scores)
        assert torch.equal(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)


@pytest.mark.parametrize("depth", [34, 101])
def test_relu_equals_the_stock_backbone_at_other_depths(cfg, depth):
    converted = resnet_of(cfg, depth)
    cfg.MODEL.BACKBONE.NAME = STOCK["resnet"]
    stock = build_backbone(cfg, ShapeSpec(channels=3))
    stock.load_state_dict(converted.state_dict())
    x = torch.randn(1, 3, 64, 64)
    for a, b in zip(converted(x).values(), stock(x).values()):
        assert torch.equal(a, b)


def test_pwlu_is_at_every_site_and_only_adds_keys(cfg):
    set_detector(cfg, "retinanet", 50)
    relu_keys = set(build(cfg).state_dict())
    cfg.MODEL.ACTIVATION.NAME = "pwlu"
    model = build(cfg)
    sites = {f"backbone.bottom_up.{site}" for site in SITES_OF_R50 | {"stem.act1"}}
    sites.add("backbone.top_block.act")
    assert pwlu_sites(model) == sites
    added = set(model.state_dict()) - relu_keys
    assert relu_keys <= set(model.state_dict())
    assert {key.rsplit(".", 1)[0] for key in added} == sites
    assert "backbone.bottom_up.res2.0.act1.points" in added


def test_pwlu_has_the_channels_of_its_input(cfg):
    model = resnet_of(cfg, NAME="pwlu")
    sizes = {
        name: module.points.shape[0] for name, module in model.named_modules() if isinstance(module, PWLU)
    }
    assert sizes["stem.act1"] == 64
    assert [sizes[f"res2.0.act{i}"] for i in (1, 2, 3)] == [64, 64, 256]
    assert [sizes[f"res5.2.act{i}"] for i in (1, 2, 3)] == [512, 512, 2048]


def test_stages_and_positions_select_the_sites(cfg):
    model = resnet_of(cfg, NAME="pwlu", STAGES=["stem", "res3"], POSITIONS=["act1", "act3"])
    assert pwlu_sites(model) == {"stem.act1"} | {f"res3.{b}.act{i}" for b in range(4) for i in (1, 3)}
    assert isinstance(model.res3[0].act2, nn.ReLU)
    model = resnet_of(cfg, depth=18, NAME="pwlu", STAGES=["stem", "res3"], POSITIONS=["act2"])
    assert pwlu_sites(model) == {"res3.0.act2", "res3.1.act2"}
    model = resnet_of(cfg, depth=18, kind="retinanet", NAME="pwlu", STAGES=["top"], POSITIONS=[])
    assert pwlu_sites(model) == {"top_block.act"}


def test_frozen_stages_keep_relu_or_get_frozen_activations(cfg):
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    kept = resnet_of(cfg, NAME="pwlu")
    assert pwlu_sites(kept) == {site for site in SITES_OF_R50 if not site.startswith("res2")}
    converted = resnet_of(cfg, NAME="pwlu", CONVERT_FROZEN=True)
    frozen = {
        name for name, m in converted.named_modules() if isinstance(m, PWLU) and not m.points.requires_grad
    }
    assert frozen == {"stem.act1"} | {site for site in SITES_OF_R50 if site.startswith("res2")}
    assert all(not p.requires_grad for p in converted.stem.parameters())


def test_p6_is_returned_without_activation(cfg):
    for name in ("relu", "pwlu"):
        model = resnet_of(cfg, depth=18, kind="retinanet", NAME=name)
        features = model(torch.randn(1, 3, 64, 64))
        assert (features["p6"] < 0).any()


@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_blocks_are_converted(cfg, monkeypatch, modulated):
    """Uses a stand-in, since deformable convolution needs detectron2's compiled extension."""

    class StandIn(nn.Conv2d):
        def __init__(self, *args, deformable_groups, norm, **kwargs):
            super().__init__(*args, **kwargs)
            self.norm = norm

        def forward(self, x, offset, mask=None):
            out = super().forward(x) + offset.mean(1, keepdim=True)
            return self.norm(out if mask is None else out * mask.mean(1, keepdim=True))

    monkeypatch.setattr(resnet, "ModulatedDeformConv" if modulated else "DeformConv", StandIn)
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, False, True, True]
    cfg.MODEL.RESNETS.DEFORM_MODULATED = modulated
    relu = resnet_of(cfg)
    cfg.MODEL.BACKBONE.NAME = STOCK["resnet"]
    stock = build_backbone(cfg, ShapeSpec(channels=3))
    for block in (*stock.res4, *stock.res5):
        nn.init.normal_(block.conv2_offset.weight, std=0.01)  # 0 by default, which would hide an error
    relu.load_state_dict(stock.state_dict())
    x = torch.randn(2, 3, 64, 64)
    for a, b in zip(relu(x).values(), stock(x).values()):
        assert torch.equal(a, b)
    assert pwlu_sites(resnet_of(cfg, NAME="pwlu")) == SITES_OF_R50 | {"stem.act1"}


def test_unknown_block_type_is_an_error(cfg):
    class OwnBlock(BottleneckBlock):
        pass

    set_detector(cfg, "retinanet", 50)
    cfg.MODEL.BACKBONE.NAME = STOCK["resnet"]
    model = build_backbone(cfg, ShapeSpec(channels=3))
    model.res2[1] = OwnBlock(256, 256, bottleneck_channels=64)
    with pytest.raises(ValueError, match=r"res2: it has a OwnBlock.*BottleneckBlock.*STAGES"):
        convert_activations(model, lambda _: nn.ReLU(), ["res2"], ["act1"])
    with pytest.raises(ValueError, match="must be detectron2's ResNet"):
        convert_activations(nn.Sequential(), lambda _: nn.ReLU(), ["res2"], ["act1"])


# --- configs and models that do not match ---------------------------------------------------------

NO_SITES = {
    "no such stage": ({"STAGES": ["top"]}, "fpn", 50),
    "no such position": ({"POSITIONS": ["act3"]}, "resnet", 18),
    "only frozen stages": ({"STAGES": ["stem", "res2"]}, "resnet", 50),
    "C4, which has res5 in its head": ({"STAGES": ["res5"]}, "C4", 50),
}


@pytest.mark.parametrize("activation, kind, depth", NO_SITES.values(), ids=NO_SITES)
def test_activation_without_a_site_is_an_error(cfg, activation, kind, depth):
    cfg.MODEL.BACKBONE.FREEZE_AT = 2 if activation.get("STAGES", [""])[0] == "stem" else 0
    if kind == "C4":
        cfg.MODEL.RESNETS.OUT_FEATURES, kind = ["res4"], None
    for name in ("pwlu", "prelu"):
        with pytest.raises(PwluDetError, match=r"no activation is converted: stages .* have no site"):
            if kind is None:
                cfg.MODEL.BACKBONE.NAME = "build_act_resnet_backbone"
                cfg.MODEL.ACTIVATION.NAME = name
                cfg.MODEL.ACTIVATION.STAGES = activation["STAGES"]
                build_backbone(cfg, ShapeSpec(channels=3))
            else:
                resnet_of(cfg, depth=depth, kind=kind, NAME=name, **activation)


def test_relu_needs_no_site(cfg):
    resnet_of(cfg, kind="fpn", NAME="relu", STAGES=["top"])


def test_missing_stages_are_a_warning_if_others_exist(cfg, caplog):
    with caplog.at_level("WARNING"):
        model = resnet_of(cfg, depth=18, kind="fpn", NAME="pwlu", STAGES=["res3", "top"])
    assert pwlu_sites(model) == {f"bottom_up.res3.{b}.act{i}" for b in range(2) for i in (1, 2)}
    assert "STAGES: the backbone has no top; it has stem, res2, res3, res4, res5" in caplog.text


@pytest.mark.parametrize("depth", [18, 50])
def test_missing_positions_are_a_warning_if_others_exist(cfg, caplog, depth):
    model = resnet_of(cfg, depth=depth, NAME="pwlu", STAGES=["stem", "res3"], POSITIONS=["act1", "act3"])
    assert "res3.0.act1" in pwlu_sites(model)
    expected = "POSITIONS: the blocks of stem, res3 have no act3; they have act1, act2"
    assert (expected in caplog.text) == (depth == 18)


def test_frozen_stages_that_were_asked_for_are_a_warning(cfg, caplog):
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    resnet_of(cfg, depth=18, NAME="pwlu")
    assert not caplog.records
    resnet_of(cfg, depth=18, NAME="pwlu", STAGES=["res2", "res3"], CONVERT_FROZEN=True)
    assert not caplog.records
    resnet_of(cfg, depth=18, NAME="pwlu", STAGES=["res2", "res3"], CONVERT_FROZEN=False)
    assert "STAGES: ReLU is kept in res2, frozen by MODEL.BACKBONE.FREEZE_AT" in caplog.text


def test_failed_conversion_changes_nothing(cfg):
    set_detector(cfg, "retinanet", 50)
    cfg.MODEL.BACKBONE.NAME = STOCK["resnet"]
    model = build_backbone(cfg, ShapeSpec(channels=3))
    before = [(name, type(m)) for name, m in model.named_modules()]
    calls = []

    def build(num_channels):
        calls.append(num_channels)
        if len(calls) == 5:
            raise RuntimeError("no more")
        return PWLU(num_channels)

    with pytest.raises(RuntimeError, match="no more"):
        convert_activations(model, build, ["stem", "res2"], ["act1", "act2"])
    with pytest.raises(PwluDetError, match="build has returned None; it must return a module"):
        convert_activations(model, lambda c: PWLU(c) if c < 256 else None, ["stem", "res2"], ["act1", "act3"])

    class OwnBlock(BottleneckBlock):
        pass

    with pytest.raises(ValueError, match="it has a OwnBlock"):
        block, model.res3[3].__class__ = model.res3[3], OwnBlock
        convert_activations(model, PWLU, ["stem", "res2", "res3"], ["act1"])
    block.__class__ = BottleneckBlock
    assert [(name, type(m)) for name, m in model.named_modules()] == before


def test_second_call_of_add_pwlu_config_keeps_the_values(cfg):
    cfg.MODEL.ACTIVATION.NAME, cfg.SOLVER.AMP.DTYPE = "pwlu", "bfloat16"
    pwlu_det.add_pwlu_config(cfg)
    assert (cfg.MODEL.ACTIVATION.NAME, cfg.SOLVER.AMP.DTYPE) == ("pwlu", "bfloat16")


def test_backbone_without_the_configured_activation_is_an_error(cfg):
    set_detector(cfg, "retinanet", 18)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.ACTIVATION.NAME = STOCK["retinanet"], "pwlu"
    model = build_model(cfg)
    for check in (lambda: pwlu_det.build_optimizer(cfg, model), lambda: pwlu_det.Trainer.build_model(cfg)):
        with pytest.raises(pwlu_det.ConfigError, match="but the model has no such activation"):
            check()


@pytest.mark.parametrize("training", [True, False])
def test_activations_are_in_the_mode_of_their_blocks(cfg, training):
    """RReLU and PWLU compute differently in training."""
    cfg.MODEL.BACKBONE.NAME = STOCK["retinanet"]
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    backbone = build_backbone(cfg, ShapeSpec(channels=3)).train(training)
    backbone.bottom_up.res3.train(not training)
    convert_activations(
        backbone, lambda c: build_activation("rrelu", c), ("stem", "res3", "top"), ("act1", "act2")
    )
    sites = {name: m for name, m in backbone.named_modules() if ".act" in name}
    assert len(sites) == 1 + 3 * 4 + 1  # act3 too: it stays ReLU
    for name, site in sites.items():
        assert site.training == (training != ("res3" in name)), name
