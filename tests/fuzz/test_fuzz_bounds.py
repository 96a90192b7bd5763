"""Training with hostile inputs, bounds and learning rates continues or stops with detectron2's error."""

import re

import numpy as np
import pytest
import torch
from detectron2.engine import SimpleTrainer
from fuzzing import attempt, fuzz
from hypothesis import given
from hypothesis import strategies as st
from toy import Toy, images, sgd

from pwlu_det import PWLU, TwoPhaseHook
from pwlu_det.engine.amp import CPUAutocastTrainer

MAX = torch.finfo(torch.float32).max
# Factors for a batch, from one that zeros it to one that makes it overflow.
FACTORS = st.sampled_from(
    [0.0, 1e-45, 1e-30, 1.0, 1.0, 1.0, -3.0, 1e4, 1e10, 1e19, 1e30, 1e38, float("inf"), float("nan")]
)
STEPS = 7


class Hostile:
    """The toy batches, each multiplied by a factor, with some constant channels."""

    def __init__(self, factors, constant):
        self.factors, self.constant = factors, constant

    def __iter__(self):
        for iteration, factor in enumerate(self.factors):
            batch = images(iteration)
            batch[:, : self.constant] = 0.5
            yield batch * factor


def run(model, factors, constant, lr, trainer_class) -> list[int]:
    optimizer = sgd(model)
    for group in optimizer.param_groups:
        group["lr"] = lr
    trainer = trainer_class(model, Hostile(factors, constant), optimizer)
    trainer.register_hooks([TwoPhaseHook(3)])
    trainer.train(0, STEPS)
    return trainer.iter


@fuzz(60, 1500)
@given(
    st.lists(st.one_of(st.just(1.0), st.just(1.0), FACTORS), min_size=STEPS, max_size=STEPS),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.01, 0.01, 0.1, 1.0, 1e3, 1e10, 1e30]),
    st.sampled_from([SimpleTrainer, CPUAutocastTrainer]),
)
def test_training_continues_or_the_error_names_the_iteration(factors, constant, lr, trainer_class):
    model = Toy()
    result = attempt(
        "bounds: training", lambda: run(model, factors, constant, lr, trainer_class), FloatingPointError
    )
    if isinstance(result, FloatingPointError):
        assert int(re.search(r"iteration=(\d+)", str(result))[1]) < STEPS
    for site in model.sites:
        assert site.running_mean.isfinite().all() and site.running_std.isfinite().all()


BOUNDS = st.sampled_from([-1e30, -1e6, -3.0, -1.0, -1e-6, 0.0, 1e-6, 1.0, 1.0 + 1e-6, 3.0, 1e6, 1e30])
SMALL = st.floats(-4, 4, width=32)


@fuzz(60, 1500)
@given(st.data(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_training_step_with_any_bounds(data, dtype):
    """With crossed, equal or distant bounds, a step on finite values gives only finite values."""

    def step():
        site = PWLU(2, num_intervals=data.draw(st.sampled_from([1, 2, 5, 16])))
        with torch.no_grad():
            for bound in (site.left_bound, site.right_bound):
                bound.copy_(torch.tensor([data.draw(BOUNDS), data.draw(BOUNDS)]))
            for slope in (site.left_slope, site.right_slope):
                slope.copy_(torch.tensor([data.draw(SMALL), data.draw(SMALL)]))
            site.points.uniform_(-2, 2)
        x = torch.tensor(data.draw(st.lists(st.floats(-1e6, 1e6, width=32), min_size=8, max_size=8)))
        x = x.reshape(2, 2, 2).to(dtype).requires_grad_()
        y = site(x)
        y.float().clamp(-1e3, 1e3).sum().backward()
        assert y.isfinite().all() and x.grad.isfinite().all()
        assert all(p.grad.isfinite().all() for p in site.parameters())
        torch.optim.SGD(site.parameters(), lr=0.1).step()
        assert not site(x).isnan().any()  # a slope that has become large may overflow

    attempt("bounds: any bounds", step, FloatingPointError)


@fuzz(60, 1500)
@given(st.data(), st.booleans())
def test_statistics_of_any_finite_input(data, channel_wise):
    """Statistics match NumPy in float64 or, if squares overflow float32, are skipped; bounds are finite."""

    def collect():
        site = PWLU(2, channel_wise=channel_wise)
        site.begin_collecting()
        scale = data.draw(st.sampled_from([0.0, 1e-40, 1e-3, 1.0, 1e5, 1e18, 1e20, 1e38]))
        shift = data.draw(st.sampled_from([0.0, 0.0, 1.0, -100.0, 1e20, -1e38]))
        x = torch.tensor(data.draw(st.lists(st.floats(-1, 1, width=32), min_size=12, max_size=12)))
        x = (x * scale + shift).reshape(3, 2, 2)
        assert torch.equal(site(x), x.relu())
        exact = x.double().numpy().transpose(1, 0, 2).reshape(2 if channel_wise else 1, -1)
        mean, std = exact.mean(1), exact.std(1)
        if site.num_batches:
            # If values are large compared with their spread, float32 keeps only a few digits of the spread
            tolerance = 1e-6 * np.abs(exact).max()
            np.testing.assert_allclose(site.running_mean.numpy(), mean, rtol=1e-5, atol=tolerance + 1e-38)
            np.testing.assert_allclose(site.running_std.numpy(), std, rtol=1e-4, atol=tolerance + 1e-20)
        else:
            assert (exact.shape[1] * std**2).max() > MAX / 2 or np.abs(exact).sum(1).max() > MAX / 2
        site.realign()
        assert all(p.isfinite().all() for p in site.parameters())
        assert (site.left_bound <= site.right_bound).all()
        assert site(x).isfinite().all()

    attempt("bounds: statistics", collect, FloatingPointError)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_batch_does_not_count(value):
    site, reference = PWLU(3), PWLU(3)
    for each in (site, reference):
        each.begin_collecting()
    for iteration in range(4):
        for each in (site, reference):
            each(images(iteration))
        bad = images(10 + iteration)
        bad[1, 2, 3, 0] = value
        site(bad)
    assert int(site.num_batches) == 4
    assert torch.equal(site.running_mean, reference.running_mean)
    assert torch.equal(site.running_std, reference.running_std)
