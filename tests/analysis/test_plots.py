"""Plots of PWLUs, compared with the parameters in the checkpoints."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from PIL import Image, ImageSequence
from torch import nn

from pwlu_det import PWLU
from pwlu_det.analysis.plots import draw_pages, draw_strip, plot_pwlus
from pwlu_det.analysis.snapshots import read_snapshots
from pwlu_det.errors import CheckpointError

NAMES = ["stem.act1", "res2.0.act1"]
LEARNED = [4, 1]  # the channels that differ from ReLU at the end, in descending order of the difference


def save(file, model, **extra):
    torch.save({"model": model, **extra}, file)
    return str(file)


class Run(nn.Module):
    """A network with two sites in training; N is odd, so that even the initial PWLUs are not ReLU."""

    def __init__(self, num_channels=6, num_intervals=5):
        super().__init__()
        self.sites = [PWLU(num_channels, num_intervals) for _ in NAMES]
        stem, block = (nn.ModuleDict({"act1": site}) for site in self.sites)
        bottom_up = nn.ModuleDict({"stem": stem, "res2": nn.ModuleList([block])})
        self.backbone = nn.ModuleDict({"bottom_up": bottom_up})
        for site in self.sites:
            site.begin_collecting()

    @torch.no_grad()
    def realign(self):
        for site in self.sites:
            mean = torch.arange(site.num_channels) / 10
            site.update_statistics(mean, 1 + mean)
            site.realign()

    @torch.no_grad()
    def learn(self, amount):
        for site in self.sites:
            for rank, channel in enumerate(LEARNED):
                site.points[channel, 1:-1] -= amount / (1 + rank)
            site.left_bound[LEARNED[0]] -= amount


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Checkpoints after 10, 20, 30, 40 and 50 iterations, of which the first 15 are phase I."""
    folder, run = tmp_path_factory.mktemp("run"), Run()
    steps = [lambda: None, run.realign, *[lambda: run.learn(0.3)] * 3]
    files = []
    for iteration, step in zip((9, 19, 29, 39, 49), steps):
        step()
        files.append(save(folder / f"model_{iteration:07d}.pth", run.state_dict(), iteration=iteration))
    return files


TITLES = [
    ["after 10 iterations", "phase I: ReLU"],
    ["after 20 iterations", "phase II: bounds placed"],
    ["after 30 iterations", "phase II: shape learned"],
    ["after 40 iterations", "phase II: shape learned"],
    ["after 50 iterations", "phase II: shape learned"],
]


def check_panel(axis, file, name, num_channels):
    """Compare a panel with the parameters in the checkpoint."""
    state = torch.load(file, weights_only=True)["model"]
    values = {
        key.rsplit(".", 1)[1]: v.numpy()
        for key, v in state.items()
        if key.startswith(f"backbone.bottom_up.{name}.")
    }
    dotted = [line for line in axis.lines if line.get_linestyle() == ":"]
    curves = [line for line in axis.lines if line.get_linestyle() == "-"]
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    assert len(dotted) == 1
    x, y = dotted[0].get_data()
    np.testing.assert_array_equal(y, np.maximum(x, 0))
    if values["phase"] == 1:
        assert len(curves) == 1 and not dots
        x, y = curves[0].get_data()
        np.testing.assert_array_equal(y, np.maximum(x, 0))
        return
    assert len(curves) == len(dots) == num_channels
    assert len({to_hex(line.get_color()) for line in curves}) == num_channels
    for channel, curve, ends in zip(LEARNED, curves, dots):
        left, right = values["left_bound"][channel], values["right_bound"][channel]
        points = values["points"][channel]
        np.testing.assert_allclose(
            np.transpose(ends.get_data()), [[left, points[0]], [right, points[-1]]], atol=1e-6
        )
        assert curve.get_color() == ends.get_color()
        x, y = map(np.asarray, curve.get_data())
        inside = (x >= left) & (x <= right)
        assert 100 < inside.sum() < len(x)
        expected = np.interp(x[inside], np.linspace(left, right, len(points)), points)
        np.testing.assert_allclose(y[inside], expected, atol=1e-6)
        low, high = axis.get_ylim()
        assert low < y.min() and y.max() < high


def test_strip_has_one_column_per_checkpoint_and_one_row_per_site(files):
    figure = draw_strip(read_snapshots(files), NAMES, num_channels=2)
    rows = np.reshape(figure.axes, (len(NAMES), len(files)))
    assert [axis.get_title().split("\n") for axis in rows[0]] == TITLES
    assert [axis.get_ylabel() for axis in rows[:, 0]] == NAMES
    for name, row in zip(NAMES, rows):
        assert len({(*axis.get_xlim(), *axis.get_ylim()) for axis in row}) == 1
        for axis, file in zip(row, files):
            check_panel(axis, file, name, num_channels=2)


def test_checkpoints_are_drawn_in_the_order_given(files):
    figure = draw_strip(read_snapshots([files[2], files[0]]), NAMES[:1])
    titles = [axis.get_title().split("\n") for axis in figure.axes]
    assert titles == [TITLES[2], TITLES[0]]


def test_animation_has_one_page_per_checkpoint(files):
    pages = draw_pages(read_snapshots(files), NAMES[::-1], num_channels=2)
    assert [page.get_suptitle().split(" · ") for page in pages] == TITLES
    for page, file in zip(pages, files):
        assert [axis.get_title() for axis in page.axes] == NAMES[::-1]
        for axis in page.axes:
            check_panel(axis, file, axis.get_title(), num_channels=2)
    limits = [[(*axis.get_xlim(), *axis.get_ylim()) for axis in page.axes] for page in pages]
    assert all(page == limits[0] for page in limits)


def test_gif_pauses_at_the_start_of_each_phase_and_at_the_end(files, tmp_path):
    output = str(tmp_path / "learned.gif")
    plot_pwlus(read_snapshots(files), output, NAMES)
    with Image.open(output) as image:
        assert image.format == "GIF" and image.info["loop"] == 0 and image.width == 830
        frames = [(f.info["duration"], f.convert("RGB").tobytes()) for f in ImageSequence.Iterator(image)]
    assert [duration for duration, _ in frames] == [1500, 1500, 1500, 500, 3000]
    assert len({pixels for _, pixels in frames}) == len(files)


@pytest.mark.parametrize("ending", ["png", "svg", "PDF", "gif"])
def test_one_checkpoint_and_several_in_each_format(files, tmp_path, ending):
    start = {"png": b"\x89PNG", "svg": b"<?xml", "PDF": b"%PDF", "gif": b"GIF89a"}[ending]
    for number in (1, 2):
        output = tmp_path / f"{number}.{ending}"
        plot_pwlus(read_snapshots(files[-number:]), str(output))
        assert output.read_bytes().startswith(start)


def test_single_file_needs_no_iteration_or_phase(files, tmp_path):
    """An exported backbone without its phases: parameters alone are taken as trained, as in training."""
    state = torch.load(files[-1], weights_only=True)["model"]
    state = {key.removeprefix("backbone."): v for key, v in state.items() if not key.endswith(".phase")}
    torch.save({"model": state}, tmp_path / "backbone.pth")
    (page,) = draw_pages(read_snapshots([str(tmp_path / "backbone.pth")]), NAMES, num_channels=2)
    assert page.get_suptitle() == "phase II: shape learned"
    assert [len(axis.lines) for axis in page.axes] == [5, 5]


def test_sites_in_both_phases(files):
    (snapshot,) = read_snapshots(files[-1:])
    snapshot.sites[NAMES[0]].collecting = True
    (page,) = draw_pages([snapshot], NAMES)
    assert page.get_suptitle() == "after 50 iterations · phases I and II"


@pytest.mark.filterwarnings("error")  # matplotlib warns of axes without an extent
@pytest.mark.parametrize("value", [0.0, 1e-30, 3e38, -3e38])
def test_parameters_of_any_size_and_bounds_in_any_order_are_drawn(tmp_path, value):
    run = Run()
    run.realign()
    for site in run.sites:
        with torch.no_grad():
            for parameter in site.parameters():
                parameter.fill_(value)
            site.right_bound.neg_()
    plot_pwlus(read_snapshots([save(tmp_path / "w.pth", run.state_dict())]), str(tmp_path / "w.png"))
    assert (tmp_path / "w.png").is_file()


def test_several_files_must_come_from_one_run(files, tmp_path):
    expected = {
        "no iteration": (
            save(tmp_path / "export.pth", Run().state_dict()),
            "export.pth: the file has no 'iteration'",
        ),
        "other N": (
            save(tmp_path / "n.pth", Run(num_intervals=4).state_dict(), iteration=1),
            rf"n.pth: its PWLUs differ from those of {files[0]}: 2 are .*; the first is stem.act1",
        ),
        "no PWLU": (
            save(tmp_path / "relu.pth", {"conv.weight": torch.zeros(1)}, iteration=3),
            "relu.pth: the file contains no PWLU",
        ),
    }
    state = Run().state_dict()
    fewer = {key: value for key, value in state.items() if "res2" not in key}
    more = {**state, **{key.replace("stem", "res3.0"): value for key, value in state.items()}}
    for name, model, unfit in (("fewer", fewer, NAMES[1]), ("more", more, "res3.0.act1")):
        file = save(tmp_path / f"{name}.pth", model, iteration=3)
        expected[name] = (file, rf"{name}.pth: its PWLUs .*: 1 are .*; the first is {unfit}")
    for file, message in expected.values():
        with pytest.raises(CheckpointError, match=message):
            read_snapshots([files[0], file])
    with pytest.raises(CheckpointError, match=r"export.pth: the file has no 'iteration'"):
        read_snapshots([str(tmp_path / "export.pth"), files[0]])
    assert read_snapshots([str(tmp_path / "export.pth")])[0].iterations is None


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state, key: state.pop(key + "left_bound"), "is incomplete"),
        (lambda state, key: state[key + "points"].fill_(float("nan")), "not finite"),
        (lambda state, key: state.update({key + "points": torch.zeros(6)}), "do not match"),
        (lambda state, key: state.update({key + "points": torch.zeros(6, 1)}), "do not match"),
        (lambda state, key: state.update({key + "right_slope": torch.zeros(5)}), "do not match"),
    ],
)
def test_error_names_a_damaged_pwlu(tmp_path, change, message):
    state = Run().state_dict()
    change(state, "backbone.bottom_up.res2.0.act1.")
    with pytest.raises(CheckpointError, match=rf"w.pth: its PWLU backbone.bottom_up.res2.0.act1 .*{message}"):
        read_snapshots([save(tmp_path / "w.pth", state, iteration=3)])


def test_unknown_sites_and_formats_write_nothing(files, tmp_path):
    snapshots = read_snapshots(files)
    with pytest.raises(ValueError, match=r"unknown PWLU 'res9'; it must be one of stem.act1, res2.0.act1"):
        plot_pwlus(snapshots, str(tmp_path / "p.png"), ["res9"])
    with pytest.raises(ValueError, match=r"file name is '.*p.xyz'; it must end in one of .*gif.*png"):
        plot_pwlus(snapshots, str(tmp_path / "p.xyz"))
    assert not list(tmp_path.iterdir())
