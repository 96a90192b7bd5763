"""Activations in the heads (MODEL.ACTIVATION.HEADS)."""

import io
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from detectors import STOCK, batch, build, losses_and_gradients, set_detector
from detectron2.layers import Conv2d
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from detectron2.utils.events import EventStorage
from torch import nn

import pwlu_det
from pwlu_det import PWLU, ConfigError, PwluDetError, convert_heads
from pwlu_det.activations.registry import get_activation
from pwlu_det.engine.phases import TwoPhaseHook


def set_heads(cfg, kind, *heads, name="pwlu", realign=False):
    """A small detector with activations in its heads only."""
    if kind in ("retinanet", "C4"):
        set_detector(cfg, "retinanet", 18 if kind == "retinanet" else 50)
        cfg.MODEL.RETINANET.NUM_CONVS = 2
        cfg.MODEL.BACKBONE.NAME = STOCK["retinanet"]
    else:
        set_detector(cfg, "mask_rcnn", 18)
        cfg.MODEL.BACKBONE.NAME = STOCK["fpn"]
        cfg.MODEL.ROI_BOX_HEAD.NUM_CONV, cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = 1, 12
        cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS = [8, 10]
        cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    if kind == "C4":
        cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.MASK_ON = "GeneralizedRCNN", True
        cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.BACKBONE.NAME = "Res5ROIHeads", STOCK["resnet"]
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res4"]
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16, 32]]
        cfg.MODEL.ROI_MASK_HEAD.NAME, cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = "MaskRCNNConvUpsampleHead", 16
        cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
        cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 30
    if kind == "keypoint":
        cfg.MODEL.KEYPOINT_ON, cfg.MODEL.MASK_ON = True, False
    if kind in ("PanopticFPN", "SemanticSegmentor"):
        cfg.MODEL.META_ARCHITECTURE = kind
    if heads:
        cfg.MODEL.META_ARCHITECTURE = "Act" + cfg.MODEL.META_ARCHITECTURE
    node = cfg.MODEL.ACTIVATION
    node.NAME, node.HEADS, node.PWLU.REALIGN = name, list(heads), realign
    return cfg


def sites(model, kind=PWLU):
    """The channels of each site, by name."""
    return {n: m.points.shape[0] for n, m in model.named_modules() if isinstance(m, kind)}


SITES = {
    "retinanet": {f"head.{tower}_subnet.{i}": 16 for tower in ("cls", "bbox") for i in (1, 3)},
    "rpn": {"proposal_generator.rpn_head.conv.activation": 16},
    "box_head": {
        "roi_heads.box_head.conv1.activation": 12,
        "roi_heads.box_head.fc_relu1.activation": 16,
    },
    "mask_head": {
        "roi_heads.mask_head.mask_fcn1.activation": 16,
        "roi_heads.mask_head.deconv_relu": 16,
    },
    "keypoint_head": {
        "roi_heads.keypoint_head.conv_fcn_relu1": 8,
        "roi_heads.keypoint_head.conv_fcn_relu2": 10,
    },
    "sem_seg_head": {
        **{f"sem_seg_head.{p}.0.activation": 32 for p in ("p2", "p3", "p4", "p5")},
        **{f"sem_seg_head.{p}.{i}.activation": 32 for p, i in (("p4", 2), ("p5", 2), ("p5", 4))},
    },
    "res5": {
        f"roi_heads.res5.{block}.act{i}": 2048 if i == 3 else 512 for block in range(3) for i in (1, 2, 3)
    },
}
DETECTORS = {
    "retinanet": ["retinanet"],
    "mask_rcnn": ["rpn", "box_head", "mask_head"],
    "keypoint": ["keypoint_head"],
    "PanopticFPN": ["sem_seg_head", "mask_head"],
    "SemanticSegmentor": ["sem_seg_head"],
    "C4": ["res5"],
}


def inputs(kind):
    images = batch()
    for image in images:
        image["sem_seg"] = torch.randint(0, 50, (64, 64), generator=torch.Generator().manual_seed(3))
    if kind == "keypoint":
        from detectron2.structures import Keypoints

        for image in images:
            points = torch.rand(2, 17, 3, generator=torch.Generator().manual_seed(4)) * 60
            points[:, :, 2] = 2
            image["instances"].gt_keypoints = Keypoints(points)
    return images


def losses_of(model, kind):
    torch.manual_seed(2)  # R-CNN samples proposals
    with EventStorage():
        losses = model(inputs(kind))
    return losses


@pytest.mark.parametrize("kind", DETECTORS)
def test_heads_are_converted_and_start_as_relu(cfg, kind):
    stock = build(set_heads(cfg.clone(), kind))
    model = build(set_heads(cfg, kind, *DETECTORS[kind]))
    expected = {name: size for head in DETECTORS[kind] for name, size in SITES[head].items()}
    assert sites(model) == expected
    added = set(model.state_dict()) - set(stock.state_dict())
    assert {key.rsplit(".", 1)[0] for key in added} == set(expected)
    assert not model.load_state_dict(stock.state_dict(), strict=False).unexpected_keys

    ours, theirs = losses_of(model.train(), kind), losses_of(stock.train(), kind)
    assert ours.keys() == theirs.keys()
    for name, loss in theirs.items():
        torch.testing.assert_close(ours[name], loss, rtol=1e-5, atol=1e-6)
    sum(ours.values()).backward()
    for name, module in model.named_modules():
        if isinstance(module, PWLU):
            assert module.points.grad.any(), f"{name} is not used"


@pytest.mark.parametrize("kind", DETECTORS)
def test_every_relu_of_a_head_is_replaced(cfg, kind):
    """Each by a module with the channels of its input, which is [B, C, H, W] everywhere."""

    class Checked(nn.Module):
        def __init__(self, num_channels):
            super().__init__()
            self.num_channels = num_channels

        def forward(self, x):
            assert x.dim() == 4 and x.shape[1] == self.num_channels
            return x.relu()

    model = build(set_heads(cfg, kind))
    convert_heads(model, Checked, DETECTORS[kind])
    for name in DETECTORS[kind]:
        for module in pwlu_det.backbone.heads.find_head(model, name).modules():
            assert not isinstance(module, nn.ReLU)
            if isinstance(module, Conv2d):
                assert module.activation is None or isinstance(module.activation, Checked)
    losses_of(model.train(), kind)


def test_values_of_a_mask_head(cfg):
    cfg = set_heads(cfg, "mask_rcnn", "mask_head", "box_head", name="prelu")
    model = build(cfg)
    head = model.roi_heads.mask_head
    x = torch.randn(3, 16, 14, 14)
    with torch.no_grad():
        for activation in (head.mask_fcn1.activation, head.deconv_relu):
            next(activation.parameters()).copy_(torch.rand(16))
        first, second = (next(a.parameters()) for a in (head.mask_fcn1.activation, head.deconv_relu))
        expected = F.conv2d(x, head.mask_fcn1.weight, head.mask_fcn1.bias, padding=1)
        expected = expected.clamp(min=0) + first[:, None, None] * expected.clamp(max=0)
        expected = F.conv_transpose2d(expected, head.deconv.weight, head.deconv.bias, stride=2)
        expected = expected.clamp(min=0) + second[:, None, None] * expected.clamp(max=0)
        expected = F.conv2d(expected, head.predictor.weight, head.predictor.bias)
        torch.testing.assert_close(head.layers(x), expected)

        head = model.roi_heads.box_head
        slopes = next(head.fc_relu1.parameters())
        slopes.copy_(torch.rand(16))
        x = torch.randn(5, 16, 7, 7)
        expected = head.fc1(head.conv1(x).flatten(1))
        expected = expected.clamp(min=0) + slopes * expected.clamp(max=0)
        torch.testing.assert_close(head(x), expected)
        assert head(x[:0]).shape == (0, 16)


def test_statistics_of_a_tower_are_those_of_all_levels(cfg):
    model = build(set_heads(cfg, "retinanet", "retinanet", realign=True)).train()
    seen = []
    model.head.cls_subnet[0].register_forward_hook(lambda m, x, y: seen.append(y.detach().transpose(0, 1)))
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    hook = TwoPhaseHook(1)
    hook.trainer = trainer = SimpleNamespace(model=model, optimizer=optimizer, iter=0)
    hook.before_train()
    hook.before_step()
    sum(losses_of(model, "retinanet").values()).backward()
    optimizer.step()
    hook.after_step()
    assert len(seen) == 5
    values = torch.cat([y.flatten(1) for y in seen], dim=1)
    site = model.head.cls_subnet[1]
    torch.testing.assert_close(site.running_mean, values.mean(1))
    torch.testing.assert_close(site.running_std, values.std(1, unbiased=False))
    trainer.iter = 1
    hook.before_step()
    bound = values.mean(1) + 3 * values.std(1, unbiased=False)
    torch.testing.assert_close(site.right_bound.detach(), bound)


def test_parameters_of_heads_are_in_the_group_of_activations(cfg):
    cfg = set_heads(cfg, "mask_rcnn", "rpn", "box_head")
    cfg.MODEL.ACTIVATION.LR_FACTOR, cfg.MODEL.ACTIVATION.WEIGHT_DECAY = 3.0, 0.5
    model = build(cfg)
    optimizer = pwlu_det.build_optimizer(cfg, model)
    own = {p for m in model.modules() if isinstance(m, PWLU) for p in m.parameters()}
    groups = [g for g in optimizer.param_groups if own & set(g["params"])]
    assert [set(g["params"]) for g in groups] == [own]
    assert (groups[0]["lr"], groups[0]["weight_decay"]) == (3 * cfg.SOLVER.BASE_LR, 0.5)


def test_cascade_and_channels_of_each_stage(cfg):
    cfg = set_heads(cfg, "mask_rcnn", "box_head")
    cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    prefix = "roi_heads.box_head."
    expected = {
        name.replace(prefix, f"{prefix}{stage}."): size
        for name, size in SITES["box_head"].items()
        for stage in range(3)
    }
    assert sites(build(cfg)) == expected


@pytest.mark.parametrize("name", ["frelu", "meta_acon", "pau", "swish"])
def test_other_activations_train_in_heads(cfg, name):
    cfg = set_heads(cfg, "mask_rcnn", *DETECTORS["mask_rcnn"], name=name)
    model = build(cfg)
    assert sum(isinstance(m, get_activation(name)) for m in model.modules()) == 5
    _, gradients = losses_and_gradients(model)
    assert all(g is None or g.isfinite().all() for g in gradients.values())


def test_model_can_be_saved(cfg):
    model = build(set_heads(cfg, "mask_rcnn", "mask_head"))
    assert isinstance(model, GeneralizedRCNN)  # as detectron2's test-time augmentation requires
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert sites(torch.load(file, weights_only=False)) == SITES["mask_head"]


# --- configs and models that do not match ---------------------------------------------------------


def test_missing_heads_are_an_error(cfg):
    with pytest.raises(PwluDetError, match=r"HEADS: the model has no rpn, box_head; it has retinanet"):
        build(set_heads(cfg, "retinanet", "retinanet", "rpn", "box_head"))
    with pytest.raises(PwluDetError, match=r"HEADS: the model has no tower; it has retinanet"):
        build(set_heads(cfg, "retinanet", "tower"))


def test_unknown_head_is_an_error_and_changes_nothing(cfg):
    class OwnHead(FastRCNNConvFCHead):
        pass

    model = build(set_heads(cfg, "mask_rcnn"))
    model.roi_heads.box_head.__class__ = OwnHead
    before = [(name, type(m)) for name, m in model.named_modules()]
    with pytest.raises(PwluDetError, match="box_head is a OwnHead, and only RetinaNetHead, StandardRPNHead"):
        convert_heads(model, PWLU, ["mask_head", "box_head"])
    assert [(name, type(m)) for name, m in model.named_modules()] == before


def test_head_without_relu_is_an_error(cfg):
    model = build(set_heads(cfg, "mask_rcnn"))
    convert_heads(model, PWLU, ["mask_head"])
    with pytest.raises(PwluDetError, match="mask_head has no ReLU to convert"):
        convert_heads(model, PWLU, ["mask_head"])


def test_heads_need_an_architecture_that_converts_them(cfg):
    cfg = set_heads(cfg, "retinanet", "retinanet")
    pwlu_det.check_config(cfg)  # a stock backbone is allowed
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    error = r"META_ARCHITECTURE is 'RetinaNet'; it must be 'ActRetinaNet' for MODEL\.ACTIVATION\.HEADS"
    with pytest.raises(ConfigError, match=error):
        pwlu_det.check_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_act_retinanet_resnet_fpn_backbone"
    with pytest.raises(ConfigError, match=error):
        build_model(cfg)  # by whatever tool
    cfg.MODEL.ACTIVATION.HEADS = ["retina"]
    with pytest.raises(ConfigError, match=r"HEADS is \['retina'\]; it must be a subset of retinanet, rpn"):
        pwlu_det.check_config(cfg)


def test_own_architecture_that_ignores_heads_is_an_error(cfg):
    class OwnRCNN(GeneralizedRCNN):
        pass

    cfg = set_heads(cfg, "mask_rcnn", "rpn", "mask_head")
    cfg.MODEL.BACKBONE.NAME = "build_act_resnet_fpn_backbone"
    cfg.MODEL.META_ARCHITECTURE = "OwnRCNN"
    META_ARCH_REGISTRY._do_register("OwnRCNN", OwnRCNN)
    try:
        with pytest.raises(ConfigError, match=r"but rpn, mask_head of the model has no 'pwlu'"):
            pwlu_det.Trainer.build_model(cfg)
    finally:
        del META_ARCH_REGISTRY._obj_map["OwnRCNN"]


# --- the res5 of a C4 model -----------------------------------------------------------------------


def c4(cfg, *heads, stages=()):
    cfg = set_heads(cfg, "C4", *heads)
    cfg.MODEL.BACKBONE.NAME = "build_act_resnet_backbone"
    cfg.MODEL.ACTIVATION.STAGES = list(stages)
    return build(cfg)


def test_res5_of_c4_is_converted_with_the_backbone(cfg, caplog):
    names = set(sites(c4(cfg, "res5")))
    assert {n for n in names if n.startswith("roi_heads")} == set(SITES["res5"])
    assert len(names) == 49 and "res5" not in caplog.text  # as in ResNet-50 with an FPN
    cfg.MODEL.ACTIVATION.POSITIONS = ["act2"]
    assert len(sites(c4(cfg, "res5", stages=["res5"]))) == 3


def test_res5_of_c4_that_keeps_relu_is_named(cfg, caplog):
    c4(cfg)
    assert "add 'res5' to MODEL.ACTIVATION.HEADS" in caplog.text
    with pytest.raises(PwluDetError, match=r"add 'res5' to MODEL\.ACTIVATION\.HEADS"):
        c4(cfg, stages=["res5"])
