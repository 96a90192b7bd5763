"""Backbones whose norms and activations are fused behave like those whose modules are called."""

import pytest
import torch
from detectors import build, losses_and_gradients, set_detector
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from fvcore.nn.precise_bn import update_bn_stats
from norm_modules import record_calls

from pwlu_det import PWLU
from pwlu_det.activations import deferred_norm as module

pytestmark = pytest.mark.skipif("cpu" not in module.DEVICES, reason="there are no kernels")


@pytest.fixture
def calls(monkeypatch):
    """The activations that the op is called with, and whether a tensor is added."""
    return record_calls(monkeypatch, lambda activation, added: (activation, len(added)))


def pair(cfg, make, **activation):
    """A fused model and one that is not, with the same weights."""
    models = []
    for fuse in (True, False):
        cfg = cfg.clone()
        cfg.MODEL.ACTIVATION.FUSE_NORM = fuse
        for key, value in activation.items():
            cfg.MODEL.ACTIVATION[key] = value
        models.append(make(cfg))
    models[1].load_state_dict(models[0].state_dict())
    return models


def make_backbone(cfg):
    return build_backbone(cfg, ShapeSpec(channels=3))


def phase_2(model):
    for site in model.modules():
        if isinstance(site, PWLU):
            site.realign()


@pytest.mark.filterwarnings("ignore:PWLU")
@pytest.mark.parametrize("name", ["pwlu", "prelu", "swish"])
@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
@pytest.mark.parametrize("depth, sites", [(18, 2), (50, 3)])
def test_training_and_inference(cfg, calls, depth, sites, norm, name):
    set_detector(cfg, "retinanet", depth, norm)
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    fused, called = pair(
        cfg, make_backbone, NAME=name, STAGES=["res2", "res3"], POSITIONS=["act1", "act2", "act3"][:sites]
    )
    for model in (fused, called):
        phase_2(model.double())
    images = torch.randn(2, 3, 96, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    outputs = [model(images) for model in (fused, called)]
    assert {added for _, added in calls} == {0, 1, 3 if norm == "BN" else 5}
    for output in outputs:
        sum(y.sin().sum() for y in output.values()).backward()
    for key, value in outputs[1].items():
        torch.testing.assert_close(
            outputs[0][key], value, rtol=1e-8, atol=1e-8 * float(value.detach().abs().max())
        )
    theirs = dict(called.named_parameters())
    for key, parameter in fused.named_parameters():
        wanted = theirs[key].grad
        assert (wanted is None) == (parameter.grad is None), key
        if wanted is not None:
            error = (parameter.grad - wanted).norm() / (wanted.norm() + 1e-6)
            assert error < 1e-7, (key, error)
    theirs = dict(called.named_buffers())
    for key, buffer in fused.named_buffers():
        torch.testing.assert_close(buffer, theirs[key], rtol=1e-8, atol=1e-8, msg=key)
    with torch.no_grad():
        ours, theirs = fused.eval()(images), called.eval()(images)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-8, atol=1e-8 * float(value.abs().max()))


def test_float64_agrees_closely(cfg):
    set_detector(cfg, "retinanet", 50, "BN")
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    fused, called = (model.double() for model in pair(cfg, make_backbone, NAME="pwlu"))
    images = torch.linspace(-2, 2, 2 * 3 * 64 * 64, dtype=torch.float64).view(2, 3, 64, 64)
    for model in (fused, called):
        for _ in range(2):  # phase I, whose statistics decide the bounds
            model(images.sin())
    theirs = called.state_dict()
    for key, value in fused.state_dict().items():  # PWLU's statistics are float32
        torch.testing.assert_close(value, theirs[key], rtol=1e-5, atol=1e-5, msg=key)
    called.load_state_dict(fused.state_dict())
    results = []
    for model in (fused, called):
        phase_2(model)
        model.zero_grad()
        y = model(images.cos())
        sum(v.sum() for v in y.values()).backward()
        results.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None} | y)
    assert results[0].keys() == results[1].keys()
    for key, value in results[1].items():
        scale = float(value.detach().abs().max()) + 1e-12
        torch.testing.assert_close(results[0][key], value, rtol=1e-7, atol=1e-7 * scale, msg=key)


def test_relu_is_fused_only_on_request(cfg, calls):
    set_detector(cfg, "retinanet", 18, "BN")
    cfg.MODEL.ACTIVATION.NAME = "relu"
    images = torch.randn(1, 3, 64, 64)
    make_backbone(cfg)(images)
    assert not calls
    cfg.MODEL.ACTIVATION.FUSE_RELU = True
    model = make_backbone(cfg)
    model(images)
    assert {activation for activation, _ in calls} == {"relu"}


def test_the_key_turns_it_off(cfg, calls):
    set_detector(cfg, "retinanet", 18, "BN")
    _, called = pair(cfg, make_backbone, NAME="prelu", FUSE_RELU=True)
    called(torch.randn(1, 3, 64, 64))
    assert not calls


def test_precise_bn_computes_equal_statistics(cfg, calls):
    set_detector(cfg, "retinanet", 18, "BN")
    models = pair(cfg, make_backbone, NAME="prelu")
    batches = [torch.randn(2, 3, 64, 64) for _ in range(3)]
    for model in models:
        update_bn_stats(model, batches, 3)
    theirs = dict(models[1].named_buffers())
    for key, buffer in models[0].named_buffers():
        torch.testing.assert_close(buffer, theirs[key], rtol=1e-3, atol=1e-4, msg=key)


def test_losses_of_a_detector(cfg):
    set_detector(cfg, "retinanet", 50, "BN")
    fused, called = pair(cfg, build, NAME="prelu")
    (ours, _), (theirs, _) = losses_and_gradients(fused), losses_and_gradients(called)
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-3, atol=1e-4)


def test_one_tensor_less_is_saved_for_each_site(cfg):
    set_detector(cfg, "retinanet", 50, "BN")
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    sizes = []
    for model in pair(cfg, make_backbone, NAME="prelu"):
        saved, weights = {}, {p.data_ptr() for p in model.parameters()}

        def note(tensor, saved=saved, weights=weights):
            if tensor.data_ptr() in weights:
                return tensor
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            y = model(torch.randn(1, 3, 128, 128))
        sizes.append(sum(saved.values()))
        del y
    assert sizes[0] < 0.8 * sizes[1]
