"""Exported models give the maps of the original, and are refused where they do not fit."""

import json

import onnx
import pytest
import torch
from detectors import build, set_detector
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone

from pwlu_det import PWLU, CheckpointError
from pwlu_det.activations import build_activation
from pwlu_det.conversion.inference import PiecewiseLinear, for_inference
from pwlu_det.export import SUFFIXES, export, export_model, formats, load_export
from pwlu_det.export.models import NamedOutputs

SLOW = [("onnx", False), ("torch_export", False), ("torch_export", True), ("aoti", False)]
# One of each kind; tests/conversion/test_inference.py exports all activations to ONNX.
NAMES = ["acon_c", "meta_acon", "apl", "frelu", "rpau"]


def randomize(model):
    """Learned PWLUs, and norms with statistics."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, PWLU):
            module.realign()
            with torch.no_grad():
                module.points += 0.2 * torch.randn(module.points.shape, generator=generator)
        elif isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)


@pytest.fixture
def small(cfg, tmp_path):
    """The config and the weights of a small RetinaNet."""

    def make(activation):
        set_detector(cfg, "retinanet")
        cfg.MODEL.ACTIVATION.NAME = activation
        model = build(cfg)
        randomize(model)
        torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
        return cfg, str(tmp_path / "weights.pth"), model.eval()

    return make


def assert_same_maps(cfg, model, path, heads, sizes=((1, 160, 192), (3, 192, 160))):
    exported = load_export(path, cfg)
    for size in sizes:
        images = torch.randn(size[0], 3, *size[1:])
        with torch.no_grad():
            maps = model.backbone(images)
            if heads:
                logits, deltas = model.head([maps[f] for f in model.head_in_features])
                names = model.head_in_features
                maps = {
                    **{f"logits_{n}": v for n, v in zip(names, logits)},
                    **{f"deltas_{n}": v for n, v in zip(names, deltas)},
                }
        actual = exported(images)
        assert list(actual) == list(maps)
        for name, value in maps.items():
            assert (actual[name] - value).abs().max() <= 1e-4 * value.abs().max()


@pytest.mark.parametrize(
    "format, heads",
    [("onnx", True), *(pytest.param(f, h, marks=pytest.mark.slow) for f, h in SLOW)],
)
def test_pwlu(small, tmp_path, format, heads):
    cfg, weights, model = small("pwlu")
    path = str(tmp_path / f"model{SUFFIXES[format]}")
    assert export_model(cfg, weights, path, format, heads) < 1e-4
    assert_same_maps(cfg, model, path, heads)
    manifest = json.loads((tmp_path / f"{path}.json").read_text())
    assert manifest["activation"] == "pwlu" and manifest["config"]["INPUT.FORMAT"] == "BGR"
    if format == "onnx":
        proto = onnx.load(path)
        onnx.checker.check_model(proto)
        assert {n.domain for n in proto.graph.node} == {""} and proto.opset_import[0].version >= 18
        names = [output.name for output in proto.graph.output]
        assert names == list(manifest["outputs"]) and proto.graph.input[0].name == "images"
        assert not any(n.op_type == "BatchNormalization" for n in proto.graph.node)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_activations_in_onnx(small, tmp_path, name):
    cfg, weights, model = small(name)
    path = str(tmp_path / "model.onnx")
    export_model(cfg, weights, path, "onnx")
    assert_same_maps(cfg, model, path, False)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_activations_by_aoti(tmp_path, name):
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(3, 8, 3, padding=1), build_activation(name, 8), torch.nn.Conv2d(8, 4, 1)
    model = torch.nn.Sequential(*layers).eval()
    path = str(tmp_path / "model.pt2")
    program = formats.trace(for_inference(model), torch.randn(2, 3, 40, 56), 8, 16)
    formats.write(program, "aoti", path, ["y"])
    images = torch.randn(1, 3, 24, 16)
    with torch.no_grad():
        expected, actual = model(images), formats.load("aoti", path)(images)
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("bottom_up", [False, True])
def test_d2_is_bit_equal(small, tmp_path, bottom_up):
    cfg, weights, _ = small("pwlu")
    assert export_model(cfg, weights, str(tmp_path / "backbone.pth"), "d2", bottom_up=bottom_up) == 0
    manifest = json.loads((tmp_path / "backbone.pth.json").read_text())
    assert len(manifest["sha256"]) == 64 and manifest["versions"]["torch"] == torch.__version__
    assert manifest["format"] == "d2" and manifest["largest_difference"] == 0


def test_what_does_not_fit_is_refused(small, tmp_path):
    cfg, weights, _ = small("relu")
    path = tmp_path / "model.onnx"
    export_model(cfg, weights, str(path), "onnx")
    exported = load_export(str(path))
    for images in (torch.randn(1, 3, 160, 161), torch.randn(1, 3, 128, 160), torch.randn(3, 160, 160)):
        with pytest.raises(CheckpointError, match=r"multiples of 32, at least 160"):
            exported(images)
    with pytest.raises(CheckpointError, match="float64"):
        exported(torch.randn(1, 3, 160, 160).double())
    cfg.INPUT.FORMAT = "RGB"
    with pytest.raises(CheckpointError, match=r"INPUT.FORMAT is 'BGR' there and 'RGB' here"):
        load_export(str(path), cfg)
    cfg.INPUT.FORMAT, cfg.MODEL.ACTIVATION.NAME = "BGR", "swish"
    with pytest.raises(CheckpointError, match=r"another config: MODEL.ACTIVATION.NAME is 'relu' there"):
        load_export(str(path), cfg)
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match="is it truncated"):
        load_export(str(path))
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_export(str(path))
    (tmp_path / "model.onnx.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not the manifest"):
        load_export(str(path))


def test_what_cannot_be_expressed_is_refused(small, tmp_path, monkeypatch):
    cfg, weights, _ = small("pwlu")
    with pytest.raises(CheckpointError, match=r"must end in .onnx"):
        export_model(cfg, weights, str(tmp_path / "model.pth"), "onnx")
    with pytest.raises(CheckpointError, match="backbones only"):
        export_model(cfg, weights, str(tmp_path / "model.pth"), "d2", heads=True)
    images = torch.randn(2, 4, 40, 56)
    with pytest.raises(CheckpointError, match=r"rpau.* has no definition in torch's own ops"):
        formats.trace(build_activation("rpau", 4).train(), images, 8, 16)
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="missing: onnx, onnxscript, onnxruntime"):
        export_model(cfg, weights, str(tmp_path / "model.onnx"), "onnx")


class Tiny(Backbone):
    def __init__(self):
        super().__init__()
        self.conv, self.act = torch.nn.Conv2d(3, 4, 8, stride=8), PWLU(4)

    def output_shape(self):
        return {"y": ShapeSpec(4, stride=8)}

    def forward(self, x):
        return {"y": self.act(self.conv(x))}


def test_a_wrong_export_is_not_written(tmp_path, monkeypatch):
    part, path = NamedOutputs(Tiny().eval()), str(tmp_path / "model.onnx")
    assert export._write_and_run(part, path, "onnx") < 1e-6
    (tmp_path / "model.onnx").unlink()
    forward = PiecewiseLinear.forward
    monkeypatch.setattr(PiecewiseLinear, "forward", lambda self, x: forward(self, x) * 1.01)
    with pytest.raises(CheckpointError, match="differs from the original"):
        export._write_and_run(part, path, "onnx")
    assert not list(tmp_path.iterdir())
