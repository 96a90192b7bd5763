import pytest
import torch

from pwlu_det.activations import PWLU
from pwlu_det.activations.pwlu import LEARNING


@pytest.mark.parametrize("channel_wise", [True, False], ids=["channel-wise", "layer-wise"])
@pytest.mark.parametrize("init_bound", [3.0, 0.1, 10.0])
@pytest.mark.parametrize("n", [2, 6, 16, 64, 1024])
def test_starts_as_relu_everywhere_when_n_is_even(n, init_bound, channel_wise):
    site = PWLU(3, n, channel_wise, init_bound)
    x = torch.cat([torch.linspace(-3, 3, 4001) * init_bound, torch.tensor([0.0, init_bound, -init_bound])])
    x = x[:, None].expand(-1, 3)
    torch.testing.assert_close(site(x), x.relu(), rtol=1e-6, atol=1e-6 * init_bound)


def test_odd_n_starts_as_relu_except_in_the_interval_containing_zero():
    x = torch.linspace(-6, 6, 1201)[:, None]
    difference = (PWLU(1, 3)(x) - x.relu()).abs()
    middle = x.abs() < 0.999  # the second of three intervals of length 2
    assert difference[~middle].max() < 1e-6
    assert difference[middle].max().item() == pytest.approx(0.5)


@pytest.mark.parametrize("channel_wise", [True, False], ids=["channel-wise", "layer-wise"])
def test_initial_parameters(channel_wise):
    site = PWLU(5, 4, channel_wise, init_bound=2)
    size = 5 if channel_wise else 1
    assert torch.equal(site.points, torch.tensor([0.0, 0, 0, 1, 2]).expand(size, 5))
    starts = {"left_bound": -2.0, "right_bound": 2.0, "left_slope": 0.0, "right_slope": 1.0}
    for name, value in starts.items():
        assert torch.equal(getattr(site, name), torch.full((size,), value)), name
    assert all(p.requires_grad and p.dtype == torch.float32 for p in site.parameters())
    assert not site.collecting and site.phase == LEARNING


def test_names_in_the_state_dict():
    site = PWLU(3)
    parameters = {"points", "left_bound", "right_bound", "left_slope", "right_slope"}
    assert {name for name, _ in site.named_parameters()} == parameters
    assert set(site.state_dict()) - parameters == {"phase", "num_batches", "running_mean", "running_std"}


@pytest.mark.parametrize(
    "argument, values",
    [
        ("num_channels", [0, -1]),
        ("num_intervals", [0, -4]),
        ("init_bound", [0.0, -3.0, float("inf"), float("nan")]),
        ("stat_momentum", [-0.1, 1.0, float("nan")]),
        ("num_sigma", [0.0, -1.0, float("inf"), float("nan")]),
    ],
)
def test_error_names_the_argument_out_of_range(argument, values):
    for value in values:
        with pytest.raises(ValueError, match=f"PWLU: {argument} is {value}; it must be"):
            PWLU(**{"num_channels": 3, argument: value})
