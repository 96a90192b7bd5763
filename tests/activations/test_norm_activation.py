"""norm_activation() agrees with its modules in everything that they leave behind."""

import copy

import pytest
import torch
import torchvision
from detectron2.layers import FrozenBatchNorm2d
from norm_modules import CONTENTS, FUSED, arguments_of, assert_equal_traces, build, record_calls
from torch import nn

from pwlu_det import ops
from pwlu_det.activations import deferred_norm as module
from pwlu_det.activations.norm_activation import norm_activation
from pwlu_det.ops.pwlu import PARAMETERS

pytestmark = pytest.mark.skipif("cpu" not in module.DEVICES, reason="there are no kernels")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def calls(monkeypatch):
    """The activations that the op is called with."""
    return record_calls(monkeypatch, lambda activation, added: activation)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("added", CONTENTS)
@pytest.mark.parametrize("name", FUSED)
def test_like_the_modules(name, added, training, calls):
    model, maps = build(name, added=added)
    assert_equal_traces(model.train(training), maps)
    assert len(calls) == 1


@pytest.mark.parametrize("added", CONTENTS)
@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, torchvision.ops.FrozenBatchNorm2d])
def test_frozen_batch_norm(norm, added, calls):
    model, maps = build(norm=norm, added=added)
    assert_equal_traces(model, maps)
    assert len(calls) == 1


@pytest.mark.parametrize("training", [True, False])
def test_sync_batch_norm_of_one_process(training, calls):
    model, maps = build(norm=nn.SyncBatchNorm)
    assert_equal_traces(model.train(training), maps)
    assert len(calls) == 1


def test_fused_calls_between_other_calls():
    """Autograd may have saved the running statistics that a fused call updates."""
    model, (x,) = build()
    first = model[0](x)
    second = norm_activation(*model[:2], x)
    (first.sum() + second.sum()).backward()


def test_an_eps_of_zero_is_left_to_the_norm(calls):
    model, maps = build()
    model[0].eps = 0.0
    with pytest.raises(ValueError, match="eps"):
        norm_activation(*model[:2], *maps)
    assert_equal_traces(model.eval(), maps)
    assert not calls


@pytest.mark.parametrize("momentum", [0.1, 0.7, 1.0, None])
@pytest.mark.parametrize("track", [True, False])
def test_running_statistics_of_several_batches(momentum, track, calls):
    model, maps = build(added="norm")
    for norm in (model[0], model[2]):
        norm.momentum = momentum
        if not track:
            norm.track_running_stats = False
            norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    for training in (True, False):
        assert_equal_traces(model.train(training), maps, iterations=3)
    assert len(calls) == 6


def test_the_unbiased_variance_is_tracked():
    model, (x,) = build()
    model[0].momentum = 1.0
    norm_activation(model[0], model[1], x)
    torch.testing.assert_close(model[0].running_var, x.var((0, 2, 3), correction=1))


@pytest.mark.parametrize("channel_wise", [True, False])
def test_phase_1_collects_the_statistics_of_the_norm_s_output(channel_wise, calls):
    model, maps = build(channel_wise=channel_wise)
    maps[0][:, 0] *= 1e-3  # a variance that is smaller than eps
    model[1].begin_collecting()
    assert_equal_traces(model, maps, iterations=3)
    assert calls == ["pwlu_phase1"] * 3
    with torch.no_grad():  # this does not collect
        norm_activation(*arguments_of(model, maps))
    assert calls[3:] == ["pwlu"]


def test_phase_1_ignores_a_batch_that_is_not_finite(calls):
    model, (x,) = build()
    model[1].begin_collecting()
    norm_activation(model[0], model[1], x)
    kept = model[1].running_std.clone()
    for value in (float("nan"), float("inf"), 1e30):
        norm_activation(model[0], model[1], torch.where(x == x[0, 1, 2, 3], value, x))
    assert torch.equal(model[1].running_std, kept) and model[1].num_batches == 1
    assert calls == ["pwlu_phase1"] * 4


def test_phase_1_looks_at_its_input_where_the_norm_does_not_tell(calls):
    for norm, added in (
        (nn.BatchNorm2d, "tensor"),
        (nn.BatchNorm2d, "norm"),
        (FrozenBatchNorm2d, "nothing"),
    ):
        model, maps = build(norm=norm, added=added)
        model[1].begin_collecting()
        assert_equal_traces(model, maps)
    model, maps = build()
    model[1].begin_collecting()
    model[0].eval()
    assert_equal_traces(model, maps)
    assert not calls


def test_changed_parameters_in_phase_1_are_warned_of(calls):
    model, maps = build()
    model[1].begin_collecting()
    with torch.no_grad():
        model[1].points += 1
    with pytest.warns(UserWarning, match="no longer those of ReLU"):
        y = norm_activation(*arguments_of(model, maps))
    assert calls == ["pwlu_phase1", "prelu"]  # the second is the norm alone
    assert model[0].num_batches_tracked == 1
    torch.testing.assert_close(
        y, ops.pwlu(model[0](*maps), *(getattr(model[1], name) for name in PARAMETERS))
    )


def test_relu_is_fused_only_on_request(calls):
    model, maps = build("relu")
    x = maps[0]
    norm = copy.deepcopy(model[0])
    assert torch.equal(norm_activation(model[0], model[1], x), norm(x).relu())
    assert not calls
    assert_equal_traces(model, maps, fuse_relu=True)
    assert calls == ["relu"]
