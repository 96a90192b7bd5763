"""Where each activation is placed in a detector, and how its parameters are optimized."""

import pytest
import torch
from detectors import CONVERTED, batch, build, set_detector
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.utils.events import EventStorage
from torch import nn

from pwlu_det import ConfigError, build_optimizer, check_config
from pwlu_det.activations import FReLU, MetaAcon
from pwlu_det.activations.registry import ACTIVATIONS, get_activation

BLOCKS = {"res2": 3, "res3": 4, "res4": 6, "res5": 3}  # of R-50


def sites(stages, positions, blocks=BLOCKS):
    return {f"bottom_up.{s}.{b}.{p}" for s in stages for b in range(blocks[s]) for p in positions}


EVERYWHERE = sites(BLOCKS, ("act1", "act2", "act3")) | {"bottom_up.stem.act1", "top_block.act"}
PLACEMENT = {
    **{name: EVERYWHERE for name in ACTIVATIONS if name not in ("relu", "maxout")},
    "frelu": sites(("res2", "res3", "res4"), ("act1", "act2", "act3")),
    "meta_acon": sites(BLOCKS, ("act2",)),
    "slaf": EVERYWHERE - sites(BLOCKS, ("act3",)),
}


def backbone(cfg, name, depth=50, **activation):
    set_detector(cfg, "retinanet", depth)
    cfg.MODEL.ACTIVATION.NAME = name
    cfg.MODEL.ACTIVATION.PWLU.REALIGN = False
    for key, value in activation.items():
        cfg.MODEL.ACTIVATION[key] = value
    with torch.device("meta"):  # only the placement is checked
        return build_backbone(cfg, ShapeSpec(channels=3))


def found(model, name):
    module = get_activation(name)
    return {path for path, m in model.named_modules() if isinstance(m, module)}


@pytest.mark.parametrize("name", PLACEMENT)
def test_each_activation_is_placed_as_in_its_paper(cfg, name):
    model = backbone(cfg, name)
    assert found(model, name) == PLACEMENT[name]
    # Converted blocks have an nn.ReLU at their other positions; the remaining blocks call F.relu.
    converted = {site.rpartition(".")[0] for site in PLACEMENT[name]}
    relus = {path for path, m in model.named_modules() if type(m) is nn.ReLU}
    assert relus == {s for s in EVERYWHERE - PLACEMENT[name] if s.rpartition(".")[0] in converted}


def test_basic_blocks(cfg):
    blocks = dict.fromkeys(BLOCKS, 2)
    assert found(backbone(cfg, "meta_acon", 18), "meta_acon") == sites(BLOCKS, ("act1",), blocks)
    assert not any(path.endswith("act2") for path in found(backbone(cfg, "slaf", 18), "slaf"))
    places = sites(("res2", "res3", "res4"), ("act1", "act2"), blocks)
    assert found(backbone(cfg, "frelu", 18), "frelu") == places


def test_configured_stages_and_positions_override_the_defaults(cfg):
    model = backbone(cfg, "meta_acon", STAGES=["res5"], POSITIONS=["act3"])
    assert found(model, "meta_acon") == sites(["res5"], ["act3"])


def test_maxout_cannot_be_placed(cfg):
    with pytest.raises(ValueError, match="'maxout' cannot replace ReLU: its output has fewer channels"):
        backbone(cfg, "maxout")
    cfg.MODEL.BACKBONE.NAME = CONVERTED["fpn"]
    with pytest.raises(ConfigError, match="'maxout' cannot replace"):
        check_config(cfg)


def test_norms_of_frozen_activations_are_frozen(cfg):
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    cfg.MODEL.RESNETS.NORM = "BN"
    for name, module, norm in (("frelu", FReLU, "norm"), ("meta_acon", MetaAcon, "bn1")):
        model = backbone(cfg, name, CONVERT_FROZEN=True)
        for path, m in model.named_modules():
            if isinstance(m, module):
                frozen = "res2" in path
                assert isinstance(getattr(m, norm), FrozenBatchNorm2d) == frozen
                assert all(p.requires_grad != frozen for p in m.parameters())


@pytest.mark.parametrize("name", ["frelu", "meta_acon", "acon_c", "pau"])
def test_optimizer_groups(cfg, name):
    set_detector(cfg, "retinanet")
    cfg.MODEL.ACTIVATION.NAME = name
    cfg.MODEL.ACTIVATION.LR_FACTOR, cfg.MODEL.ACTIVATION.WEIGHT_DECAY = 0.5, 0.003
    cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_NORM = 0.01, 0.002
    model = build(cfg)
    optimizer = build_optimizer(cfg, model)
    names = {p: key for key, p in model.named_parameters()}
    groups = {names[p]: group for group in optimizer.param_groups for p in group["params"]}
    assert groups.keys() == set(names.values())
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(groups)
    lr = cfg.SOLVER.BASE_LR
    expected = {
        **dict.fromkeys(("conv.weight", "fc1.weight", "fc2.weight"), (lr, 0.01)),
        **dict.fromkeys(("conv.bias", "fc1.bias", "fc2.bias"), (lr, 0.0)),
        **{f"{norm}.{leaf}": (lr, 0.002) for norm in ("norm", "bn1", "bn2") for leaf in ("weight", "bias")},
    }
    seen = set()
    for key, group in groups.items():
        if ".act" in key:
            leaf = key.partition(".act")[2].partition(".")[2]
            seen.add(leaf)
            assert (group["lr"], group["weight_decay"]) == expected.get(leaf, (lr / 2, 0.003)), key
        elif "norm" not in key:
            assert (group["lr"], group["weight_decay"]) == (lr, 0.01), key
    assert seen == set(dict(get_activation(name)(8).named_parameters()))


def test_meta_acon_rejects_a_batch_of_one(cfg):
    set_detector(cfg, "retinanet")
    cfg.MODEL.ACTIVATION.NAME = "meta_acon"
    model = build(cfg).train()
    with EventStorage(), pytest.raises(ValueError, match="Meta-ACON: the batch has one sample"):
        model(batch(images=1))


WRONG = {
    "APL.NUM_HINGES": ("apl", 0, "APL.NUM_HINGES is 0; it must be at least 1"),
    "PAU.START": ("pau", "tanh", "PAU.START is 'tanh'; it must be one of leaky_relu, relu"),
    "RPAU.START": ("rpau", "tanh", "RPAU.START is 'tanh'"),
    "RPAU.ALPHA": ("rpau", 2.0, r"RPAU.ALPHA is 2.0; it must be in \[0, 1\]"),
    "META_ACON.MODE": ("meta_acon", "image", "MODE is 'image'; it must be one of channel, layer, pixel"),
    "META_ACON.REDUCTION": ("meta_acon", 0, "REDUCTION is 0; it must be at least 1"),
}


@pytest.mark.parametrize("key", WRONG)
def test_invalid_option_is_reported_before_anything_is_built(cfg, key):
    set_detector(cfg, "retinanet")
    cfg.MODEL.ACTIVATION.NAME, value, message = WRONG[key]
    check_config(cfg)
    cfg.merge_from_list([f"MODEL.ACTIVATION.{key}", value])
    with pytest.raises(ConfigError, match=message):
        check_config(cfg)


def test_meta_acon_has_too_few_channels_for_group_norm(cfg):
    set_detector(cfg, "retinanet", norm="GN")
    cfg.MODEL.ACTIVATION.NAME = "meta_acon"
    with pytest.raises(ConfigError, match="NORM is 'GN'; it must be BN, SyncBN or FrozenBN if"):
        check_config(cfg)
    cfg.MODEL.ACTIVATION.META_ACON.MODE = "pixel"
    check_config(cfg)
