"""A PWLU computes the function of its parameters in either phase: averaged models, missing hooks."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from toy import Batches, Toy, images, sgd, train

from pwlu_det import PWLU
from pwlu_det.activations.pwlu import COLLECTING, LEARNING

GRID = torch.linspace(-12, 12, 4001)[:, None]


def save(model):
    file = io.BytesIO()
    torch.save(model, file)
    return file


def load(file):
    file.seek(0)
    return torch.load(file, weights_only=False)


def collecting_site(channels=1, n=16, **options) -> PWLU:
    site = PWLU(channels, n, **options)
    site.begin_collecting()
    return site


# --- the start of phase I -------------------------------------------------------------------------


@pytest.mark.parametrize("b", [3.0, 0.1, 10.0])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 16, 63])
def test_phase_1_is_relu_exactly_in_training_and_closely_in_evaluation(n, b):
    site = collecting_site(n=n, init_bound=b)
    x = GRID * b / 4
    torch.testing.assert_close(site.eval()(x), x.relu(), rtol=1e-6, atol=1e-6 * b)
    site.train()
    x.requires_grad_()
    y = site(x)
    assert torch.equal(y, x.relu())
    y.sum().backward()
    assert torch.equal(x.grad, (x > 0).float())


@pytest.mark.parametrize("n, left, right", [(1, 0.0, 3.0), (3, -3.0, 6.0), (5, -3.0, 4.5), (16, -3.0, 3.0)])
def test_bounds_and_points_of_phase_1(n, left, right):
    """Computed by hand: for N = 3, the intervals have length 3, and one of them is left of 0."""
    site = collecting_site(n=n)
    assert (site.left_bound.item(), site.right_bound.item()) == (left, right)
    knots = np.linspace(left, right, n + 1)
    np.testing.assert_allclose(site.points[0].detach(), np.maximum(knots, 0), rtol=1e-7, atol=1e-7)


def test_begin_collecting_resets_a_trained_function():
    site = PWLU(2, 16)
    fresh = copy.deepcopy(site.state_dict())
    with torch.no_grad():
        for parameter in site.parameters():
            parameter.add_(0.3)
    site.begin_collecting()
    for name, _ in site.named_parameters():
        assert torch.equal(site.state_dict()[name], fresh[name]), name


@pytest.mark.parametrize("n", [5, 16])
def test_realign_without_statistics_restores_the_bounds_and_warns(n):
    site, bare = collecting_site(n=n), PWLU(1, n)
    with pytest.warns(UserWarning, match=r"realign\(\) was called on a site without statistics"):
        site.realign()
    for name, parameter in bare.named_parameters():
        assert torch.equal(site.state_dict()[name], parameter), name


WRITES = {
    "in place": lambda p: p.add_(0.25),
    "through .data": lambda p: p.data.add_(0.25),
    "one element": lambda p: p.data.view(-1)[-1:].add_(0.25),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("name", ["points", "left_bound", "right_bound", "left_slope", "right_slope"])
def test_collecting_forward_uses_changed_parameters(name, write):
    site = collecting_site()
    site(GRID)
    with torch.no_grad():
        write(getattr(site, name))
    with pytest.warns(UserWarning, match="are no longer those of ReLU"):
        y = site(GRID)
    assert not torch.equal(y, GRID.relu())
    assert torch.equal(y, site.eval()(GRID))
    assert site.num_batches == 2


# --- averaged models ------------------------------------------------------------------------------


def ema_by_hand(copied, model, decay=0.5):
    for old, new in zip(copied.parameters(), model.parameters()):
        old.data.lerp_(new.data, 1 - decay)


def ema_with_buffers(copied, model):
    ema_by_hand(copied, model)
    for old, new in zip(copied.buffers(), model.buffers()):
        old.copy_(new)


def ema_with_averaged_buffers(copied, model):
    for old, new in zip(copied.state_dict().values(), model.state_dict().values()):
        old.copy_(old * 0.5 + new * 0.5)  # integers are rounded down


AVERAGES = {
    "parameters": ema_by_hand,
    "buffers copied": ema_with_buffers,
    "all averaged": ema_with_averaged_buffers,
    "AveragedModel": None,
    "AveragedModel, use_buffers": None,
}


def start_average(name, model):
    if not name.startswith("AveragedModel"):
        copied = copy.deepcopy(model)
        return copied, lambda: AVERAGES[name](copied, model)
    averaged = AveragedModel(
        model, avg_fn=lambda old, new, _: old * 0.5 + new * 0.5, use_buffers="use" in name
    )
    return averaged.module, lambda: averaged.update_parameters(model)


@pytest.mark.parametrize("evaluation", [True, False], ids=["eval", "train"])
@pytest.mark.parametrize("name", AVERAGES)
def test_averaged_model_computes_the_function_of_its_parameters(name, evaluation):
    model = Toy()
    averaged, update = start_average(name, model)
    averaged.train(not evaluation)
    optimizer = sgd(model)
    for i in range(12):
        train(model, phase1_iters=3, max_iter=i + 1, start=i, optimizer=optimizer)
        update()
    assert not any(site.collecting for site in model.sites)
    x = torch.randn(4, 6, 5, 5) * 3
    plain = PWLU(6)
    plain.load_state_dict(dict(averaged.act1.named_parameters()), strict=False)
    with torch.no_grad():
        y = averaged.act1(x)
        assert torch.equal(y, plain(x))
        # Realigned at iteration 3, then averaged with weight 1/2 at each step: far from the initial bounds.
        assert (averaged.act1.left_bound - model.act1.left_bound).abs().max() < 0.1

    file = io.BytesIO()
    torch.save(averaged.state_dict(), file)
    file.seek(0)
    loaded = Toy()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(loaded.eval().act1(x), y)
    assert int(loaded.act1.phase) == LEARNING  # it counts as trained, so further training keeps it


# --- checkpoints of phase I -----------------------------------------------------------------------


def test_initial_bounds_of_older_versions_are_updated_on_loading():
    old = PWLU(2, 5)
    state = old.state_dict() | {"phase": torch.tensor(COLLECTING), "num_batches": torch.tensor(7)}
    site = collecting_site(2, 5)
    site.load_state_dict(state)
    assert site.collecting and site.num_batches == 7
    assert torch.equal(site.right_bound, torch.full((2,), 4.5))
    assert torch.equal(site(GRID.expand(-1, 2)), GRID.expand(-1, 2).relu())


def test_checkpoint_of_phase_1_with_changed_parameters_counts_as_trained():
    state = collecting_site(2).state_dict()
    state["points"] = state["points"] + 0.01
    site = PWLU(2)
    site.load_state_dict(state)
    assert not site.collecting and int(site.phase) == LEARNING
    assert torch.equal(site.points, state["points"])


@pytest.mark.parametrize("n", [1, 5, 16])
@pytest.mark.parametrize("channel_wise", [True, False])
def test_copy_of_the_parameters_right_after_the_switch_counts_as_trained(n, channel_wise):
    """Its phase is still I, and its function still ReLU, except in the interval that contains 0."""
    site = collecting_site(2, n, channel_wise=channel_wise)
    copied = copy.deepcopy(site)
    site(torch.tensor([[0.7, 1.0], [2.0, -4.0]]))
    site.realign()
    copied.load_state_dict(dict(site.named_parameters()) | dict(copied.named_buffers()))
    assert not copied.collecting and torch.equal(copied.left_bound, site.left_bound)


@pytest.mark.parametrize("n, bound", [(7, 0.1), (10, 3.0), (5, 0.7)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_checkpoint_of_phase_1_in_half_precision(n, bound, dtype):
    saved = {
        name: value.to(dtype) for name, value in collecting_site(2, n, init_bound=bound).state_dict().items()
    }
    site = collecting_site(2, n, init_bound=bound)
    site.load_state_dict(saved)
    assert site.collecting and torch.equal(site(GRID.expand(-1, 2)), GRID.expand(-1, 2).relu())


# --- which forwards count -------------------------------------------------------------------------


class Twice(nn.Module):
    """One site with several inputs, as in a head shared by several feature levels."""

    def __init__(self, inputs, wrap=lambda site, x: site(x)):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.act = collecting_site()
        self.values, self.wrap = inputs, wrap

    def forward(self, _):
        ys = [self.wrap(self.act, self.scale * torch.full((4, 1, 2), v)) for v in self.values]
        return {"loss": sum(y.mean() for y in ys) * 0 + self.scale.sum() * 0}


def test_statistics_cover_all_calls_in_an_iteration():
    model = Twice([10.0, -10.0])
    train(model, phase1_iters=1, max_iter=2)
    assert model.act.running_mean.item() == pytest.approx(0, abs=1e-6)
    assert model.act.running_std.item() == pytest.approx(10)
    assert (model.act.left_bound.item(), model.act.right_bound.item()) == pytest.approx((-30, 30), abs=0.2)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_counts_every_batch_once(reentrant):
    wrap = lambda site, x: checkpoint(site, x, use_reentrant=reentrant)  # noqa: E731
    plain, checkpointed = Twice([5.0, 3.0]), Twice([5.0, 3.0], wrap)
    for model in (plain, checkpointed):
        train(model, phase1_iters=1, max_iter=1)
        assert int(model.act.num_batches) == 1
    assert torch.equal(plain.act.running_mean, checkpointed.act.running_mean)
    assert torch.equal(plain.act.running_std, checkpointed.act.running_std)
    assert checkpointed.act.running_mean.item() == pytest.approx(4)


@pytest.mark.parametrize("frozen", [["points"], ["left_bound", "right_bound"]])
def test_partly_frozen_site_collects(frozen):
    model = Toy()
    for name in frozen:
        getattr(model.act1, name).requires_grad_(False)
    train(model, phase1_iters=3, max_iter=4)
    assert int(model.act1.num_batches) == 3
    assert not model.act1.collecting and not torch.equal(model.act1.left_bound, torch.full((6,), -3.0))


def test_warning_names_a_site_without_statistics(caplog):
    class InEval(Toy):
        def train(self, mode=True):
            super().train(mode)
            self.act1.eval()
            return self

    model = InEval()
    model.train()
    with caplog.at_level("WARNING"), pytest.warns(UserWarning, match="without statistics"):
        train(model, phase1_iters=2, max_iter=3)
    assert "1 of 2 sites have no statistics" in caplog.text and "initial bounds: act1" in caplog.text


# --- missing hooks --------------------------------------------------------------------------------


def test_missing_hook_is_a_warning():
    model = Toy()
    model.act1.expects_hook = True  # as for sites built from a config
    with pytest.warns(UserWarning, match=r"no TwoPhaseHook is registered.*build_phase_hook"):
        model(images(0))


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: load(save(model))], ids=["copied", "saved"]
)
def test_model_taken_from_a_training_and_trained_without_the_hook_is_a_warning(duplicate):
    model, taken = Toy(), []
    model.act1.expects_hook = True

    class Take:
        def __iter__(self):
            for i, batch in enumerate(Batches()):
                if i == 2:
                    taken.append(duplicate(model))
                yield batch

    train(model, phase1_iters=4, max_iter=4, loader=Take())
    with pytest.warns(UserWarning, match="no TwoPhaseHook is registered"):
        taken[0](images(2))
    assert int(taken[0].act1.num_batches) == 3 and not taken[0].act1.batch_moments


def test_registered_hook_gives_no_warning(recwarn):
    model = Toy()
    model.act1.expects_hook = model.act2.expects_hook = True
    train(model, phase1_iters=2, max_iter=4)
    assert not [w for w in recwarn if "PWLU" in str(w.message)]


def test_training_that_ends_in_phase_1_logs_a_warning(caplog):
    with caplog.at_level("WARNING"):
        train(Toy(), phase1_iters=5, max_iter=3)
    assert "2 sites are still in phase I, and so still ReLU" in caplog.text


def test_building_on_the_meta_device():
    with torch.device("meta"):
        site = collecting_site(3)
    assert site.collecting
    site = site.to_empty(device="cpu")
    source = collecting_site(3)
    site.load_state_dict(source.state_dict())
    x = torch.randn(2, 3, 4)
    assert torch.equal(site(x), x.relu()) and site.num_batches == 1
