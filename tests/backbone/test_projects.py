"""Backbones of detectron2's projects: DeepLab, which its wheel has, and TridentNet, with a stand-in."""

import copy
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet
from detectron2.projects.deeplab import add_deeplab_config
from torch import nn

from pwlu_det import PWLU, ConfigError, check_config


class DilatedConv(nn.Conv2d):
    """One convolution, applied to each branch at its own dilation."""

    def __init__(self, channels, dilations, test_branch_idx):
        super().__init__(channels, channels, 3, bias=False)
        self.dilations, self.test_branch_idx = dilations, test_branch_idx
        self.norm = get_norm("BN", channels)

    def forward(self, branches):
        fast = not self.training and self.test_branch_idx >= 0
        dilations = [self.dilations[self.test_branch_idx]] if fast else self.dilations
        assert len(branches) == len(dilations)
        pairs = zip(branches, dilations)
        return [self.norm(F.conv2d(x, self.weight, padding=d, dilation=d)) for x, d in pairs]


class TridentBottleneckBlock(CNNBlockBase):
    """A stand-in with the attributes and the result of TridentNet's block."""

    def __init__(
        self,
        in_channels,
        out_channels,
        *,
        bottleneck_channels,
        stride=1,
        concat_output=False,
        test_branch_idx=1,
        dilations=(1, 2, 3),
    ):
        super().__init__(in_channels, out_channels, stride)
        self.num_branch, self.test_branch_idx = len(dilations), test_branch_idx
        self.concat_output = concat_output
        norm, narrow = "BN", bottleneck_channels

        def pointwise(a, b, stride=1):
            return Conv2d(a, b, kernel_size=1, stride=stride, bias=False, norm=get_norm(norm, b))

        self.shortcut = None if in_channels == out_channels else pointwise(in_channels, out_channels, stride)
        self.conv1 = pointwise(in_channels, narrow, stride)
        self.conv2 = DilatedConv(narrow, dilations, test_branch_idx)
        self.conv3 = pointwise(narrow, out_channels)

    def forward(self, x):
        fast = not self.training and self.test_branch_idx >= 0
        branches = x if isinstance(x, list) else [x for _ in range(1 if fast else self.num_branch)]
        inner = self.conv2([self.conv1(b).relu() for b in branches])
        outputs = []
        for branch, y in zip(branches, inner):
            skipped = branch if self.shortcut is None else self.shortcut(branch)
            outputs.append((self.conv3(y.relu()) + skipped).relu())
        return torch.cat(outputs) if self.concat_output else outputs


def build_trident_resnet_backbone(cfg, input_shape):
    res2 = ResNet.make_stage(
        BottleneckBlock,
        1,
        stride_per_block=[1],
        in_channels=8,
        out_channels=16,
        bottleneck_channels=8,
        norm="BN",
    )
    res3 = ResNet.make_stage(
        TridentBottleneckBlock,
        3,
        stride_per_block=[2, 1, 1],
        in_channels=16,
        out_channels=24,
        bottleneck_channels=12,
        concat_output_per_block=[False, False, True],
        test_branch_idx=cfg.TEST_BRANCH,
    )
    return ResNet(BasicStem(3, 8, "BN"), [res2, res3], out_features=["res3"])


@pytest.fixture
def tridentnet(monkeypatch):
    package, module = ModuleType("tridentnet"), ModuleType("tridentnet.trident_backbone")
    package.build_trident_resnet_backbone = build_trident_resnet_backbone
    module.TridentBottleneckBlock = TridentBottleneckBlock
    monkeypatch.setattr(TridentBottleneckBlock, "__module__", module.__name__)
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield
    sys.modules.pop("pwlu_det.backbone.trident", None)


def assert_equal(ours, theirs, x):
    """Outputs and gradients of two models with the same weights are equal bit for bit."""
    theirs.load_state_dict(ours.state_dict())
    for training in (True, False):
        outputs = [model.train(training)(x) for model in (ours, theirs)]
        for name in outputs[1]:
            assert torch.equal(outputs[0][name], outputs[1][name])
        gradients = [
            torch.autograd.grad(sum(y.square().mean() for y in output.values()), list(model.parameters()))
            for output, model in zip(outputs, (ours, theirs))
        ]
        assert all(map(torch.equal, *gradients))


def assert_each_layer_has_its_activation(block, x, num_calls=1):
    """act1 and act2 get the outputs of conv1 and conv2, and all three are called once per branch."""
    given = {f"act{i}": [] for i in (1, 2, 3)}
    made = {f"act{i}": [] for i in (1, 2, 3)}
    for i in (1, 2, 3):
        act, conv = getattr(block, f"act{i}"), getattr(block, f"conv{i}")
        act.register_forward_pre_hook(lambda m, x, i=i: given[f"act{i}"].append(x[0].detach().clone()))

        def keep(m, x, y, i=i):
            made[f"act{i}"] += [z.detach().clone() for z in (y if isinstance(y, list) else [y])]

        conv.register_forward_hook(keep)
    block(x)
    for i in (1, 2, 3):
        assert len(given[f"act{i}"]) == num_calls
        if i < 3 or num_calls == 1:  # in a Trident block, act3 follows the addition
            assert all(map(torch.equal, given[f"act{i}"], made[f"act{i}"]))


def sites(model):
    return [name for name, module in model.named_modules() if isinstance(module, PWLU)]


@pytest.mark.parametrize("test_branch", [-1, 1])
@pytest.mark.usefixtures("tridentnet")
def test_trident_blocks(cfg, test_branch):
    cfg.TEST_BRANCH = test_branch
    cfg.MODEL.BACKBONE.NAME = "build_act_trident_resnet_backbone"
    model = build_backbone(cfg, ShapeSpec(channels=3))
    stock = build_trident_resnet_backbone(cfg, None)
    x = torch.randn(2, 3, 48, 48)
    assert_equal(model, stock, x)

    cfg.MODEL.ACTIVATION.NAME = "pwlu"
    model = build_backbone(cfg, ShapeSpec(channels=3))
    blocks = ["res2.0", "res3.0", "res3.1", "res3.2"]
    assert sites(model) == ["stem.act1", *(f"{block}.act{i}" for block in blocks for i in (1, 2, 3))]
    stock.load_state_dict(model.state_dict(), strict=False)
    seen = []
    block = model.res3[1]
    block.conv1.register_forward_hook(lambda m, x, y: seen.append(y.detach().transpose(0, 1).flatten(1)))
    block.act1.defers_update = True
    torch.testing.assert_close(model(x)["res3"], stock.train()(x)["res3"])  # phase I is ReLU
    assert [m.count for m in block.act1.batch_moments] == [y[0].numel() for y in seen]  # of each branch
    torch.testing.assert_close([m.mean for m in block.act1.batch_moments], [y.mean(1) for y in seen])
    assert_each_layer_has_its_activation(block, [torch.randn(2, 24, 6, 6)] * 3, num_calls=3)
    assert len(seen) == 6 and sites(copy.deepcopy(model)) == sites(model)


def deeplab(cfg, name="relu", builder="build_act_resnet_deeplab_backbone"):
    if "RES4_DILATION" not in cfg.MODEL.RESNETS:
        add_deeplab_config(cfg)
    cfg.MODEL.RESNETS.STEM_TYPE, cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = "deeplab", 128
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res5"]
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.ACTIVATION.NAME = builder, name
    return build_backbone(cfg, ShapeSpec(channels=3))


def test_deeplab(cfg):
    assert_equal(
        deeplab(cfg), deeplab(cfg, builder="build_resnet_deeplab_backbone"), torch.randn(2, 3, 64, 64)
    )
    model = deeplab(cfg, "pwlu")
    assert len(sites(model)) == 48 + 3
    assert_each_layer_has_its_activation(model.stem, torch.randn(2, 3, 64, 64))
    stem = {name: m.num_channels for name, m in model.stem.named_modules() if isinstance(m, PWLU)}
    assert stem == {"act1": 64, "act2": 64, "act3": 128}
    cfg.MODEL.ACTIVATION.POSITIONS = ["act2"]
    assert sites(deeplab(cfg, "pwlu"))[0] == "stem.act2"


@pytest.mark.parametrize("project", ["resnet_deeplab", "trident_resnet"])
def test_stock_builders_of_projects_are_an_error(cfg, project):
    cfg.MODEL.ACTIVATION.NAME, cfg.MODEL.BACKBONE.NAME = "pwlu", f"build_{project}_backbone"
    with pytest.raises(ConfigError, match=f"it must be build_act_{project}_backbone for"):
        check_config(cfg)


def test_missing_project_is_named(cfg):
    cfg.MODEL.BACKBONE.NAME = "build_act_trident_resnet_backbone"
    with pytest.raises(ConfigError, match="needs detectron2's project tridentnet, which cannot be imported"):
        build_backbone(cfg, ShapeSpec(channels=3))
