"""Structure and arithmetic of the benchmark tables, not the times themselves."""

import itertools
import os
import re
import runpy
import statistics
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v3_small, resnet18

from pwlu_det.activations.frelu import FReLU
from pwlu_det.activations.pwlu import PWLU
from pwlu_det.activations.registry import ACTIVATIONS, keeps_channels
from pwlu_det.benchmark import measure as measuring
from pwlu_det.benchmark import models, networks, ops, suites
from pwlu_det.benchmark.measure import Clock, Contender, measure
from pwlu_det.benchmark.table import table

ROOT = Path(__file__).resolve().parents[2]
TOOL = str(ROOT / "tools/benchmark.py")
QUICKSTART = str(ROOT / "configs/quickstart/retinanet_R_18_FPN_digits_relu.yaml")
QUICK = ("--rounds", "2", "--seconds", "0")
# The quickstart's detector with a ResNet that needs less memory; that of depth 18 cannot be narrower.
NARROW = (
    "--config-file",
    QUICKSTART,
    "--opts",
    "MODEL.RESNETS.DEPTH",
    50,
    "MODEL.RESNETS.WIDTH_PER_GROUP",
    8,
)
NARROW += ("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16)


@pytest.fixture
def benchmark(monkeypatch):
    """Run the tool in this process, in the environment of a process with warm memory."""
    module = runpy.run_path(TOOL)
    for name, value in {**module["WARM_MEMORY"], **module["QUIET"]}.items():
        monkeypatch.setenv(name, value)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [TOOL, *map(str, arguments)])
        module["main"]()

    return run


def parse(text):
    """Parse tables into {title: rows}; a row is a dict by column, with "÷" renamed to "÷ <its pass>"."""
    tables = {}
    for title, body in re.findall(r"^### (.*)\n\n((?:\|.*\n)+)", text, re.MULTILINE):
        head, rule, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in body.splitlines())
        assert set(rule) == {"---"}
        head = [f"÷ {before}" if name == "÷" else name for before, name in zip(["", *head], head)]
        assert all(len(row) == len(head) for row in rows)
        tables[title] = [dict(zip(head, row)) for row in rows]
    return tables


def check_ratios(rows, passes):
    """With two rounds, the quartiles determine both times, which bound each ratio."""
    assert all(float(rows[0][f"÷ {name}, ms"]) == 1 for name in passes)
    for row, name in itertools.product(rows, passes):
        least, most = extremes(row[f"{name}, ms"])
        base_least, base_most = extremes(rows[0][f"{name}, ms"])
        assert least / base_most * 0.9 <= float(row[f"÷ {name}, ms"]) <= most / base_least * 1.1


def extremes(cell):
    median, low, high = map(float, re.fullmatch(r"(\S+) \((\S+) to (\S+)\)", cell).groups())
    assert 0 < low <= median <= high
    return median - 2 * (median - low), median + 2 * (high - median)


def test_op_has_every_activation_and_consistent_ratios(benchmark, capsys, tmp_path):
    arguments = ("--shapes", "2,16,64,64", "--num-intervals", 4)
    benchmark("op", *arguments, *QUICK, "--output", tmp_path / "table.md")
    text = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text().strip() == text.strip()
    command = "Command: `tools/benchmark.py op --shapes 2,16,64,64 --num-intervals 4"
    for fact in (command, "Processor: ", "torch  ", "CPU kernels", "CPU threads", "CPU memory: warm"):
        assert fact in text

    ((title, rows),) = parse(text).items()
    assert title == "2x16x64x64 float32, 2 rounds"
    names = [row["activation"] for row in rows]
    assert names[0] == "torch.relu" and len(set(names)) == len(names)
    written = {"pwlu:fallback", "pwlu:plain-torch", "pwlu:compile", "torch.silu", "torch.prelu"}
    written |= {"frelu:plain-torch", "frelu:conv", "norm+relu", "norm+relu:fused", "norm+pwlu:steps"}
    written |= {f"norm+{name}" for name in ops.FUSED}
    registered = set(filter(keeps_channels, ACTIVATIONS))
    assert set(names) == {"torch.relu", *written, *registered, *ops.installed_peers()}
    check_ratios(rows, ("forward", "forward + backward", "backward"))
    # Forward keeps the output, backward also the gradient of the input: half a MiB each.
    assert (rows[0]["forward, MiB"], rows[0]["forward + backward, MiB"]) == ("0.5", "1.0")


def test_both_layouts_in_bfloat16_with_selected_contenders(benchmark, capsys):
    arguments = ("--shapes", "1,2,3,3", "--layout", "both", "--dtype", "bfloat16")
    benchmark("op", *arguments, "--contenders", "pwlu", "swish", *QUICK)
    tables = parse(capsys.readouterr().out)
    assert list(tables) == ["1x2x3x3 bfloat16, 2 rounds", "1x2x3x3 bfloat16, channels_last, 2 rounds"]
    for rows in tables.values():
        assert [row["activation"] for row in rows] == ["torch.relu", "swish", "pwlu"]


def test_ratios_to_another_row(benchmark, capsys):
    arguments = ("--shapes", "2,4,8,8", "--contenders", "frelu:conv", "frelu", "--baseline", "frelu:conv")
    benchmark("op", *arguments, *QUICK)
    ((_, rows),) = parse(capsys.readouterr().out).items()
    assert [row["activation"] for row in rows] == ["frelu:conv", "frelu"]
    check_ratios(rows, ("forward", "forward + backward", "backward"))


@pytest.mark.parametrize("training", [True, False])
def test_plain_torch_frelu_matches_frelu(training):
    module, plain = FReLU(3).train(training), ops._PlainFReLU(3).train(training)
    plain.load_state_dict(module.state_dict())
    x = torch.randn(2, 3, 7, 5)
    torch.testing.assert_close(plain(x), module(x))


def test_model_has_both_phases_and_consistent_ratios(benchmark, capsys):
    benchmark(
        "model", *NARROW, "--network", "mobilenet_v3_small", "--batch", 2, "--image-size", 64, 96, *QUICK
    )
    tables = parse(capsys.readouterr().out)
    rows_of = {title.split(",")[0]: rows for title, rows in tables.items()}
    assert list(rows_of) == ["retinanet_R_18_FPN_digits_relu", "mobilenet_v3_small"]
    assert all("2x64x96, 2 rounds" in title for title in tables)
    for name, rows in rows_of.items():
        names = ["relu", "pwlu, phase I", "pwlu, phase II"] + ["as published"] * ("digits" not in name)
        assert [row["activation"] for row in rows] == names
        check_ratios(rows, ("training step", "inference"))
        memory = [(float(row["training step, MiB"]), float(row["inference, MiB"])) for row in rows]
        assert all(training > inference > 0 for training, inference in memory)


@pytest.mark.parametrize("row, collecting", [("pwlu, phase I", True), ("pwlu, phase II", False)])
def test_each_row_is_measured_in_the_phase_it_names(row, collecting):
    trainee = networks.network("mobilenet_v3_small", "pwlu", True, 2, 32, 32, "cpu")
    contender = models.model_contender(row, trainee, models.phases("pwlu")[row])
    measure([contender], Clock("cpu"), max_rounds=2, seconds=0)
    sites = [m for m in trainee.model.modules() if isinstance(m, PWLU)]
    assert [site.collecting for site in sites] == [collecting] * len(sites)
    realigned = [float(site.left_bound.detach().min()) != -3 for site in sites]
    assert realigned == [not collecting] * len(sites)


def test_mask_rcnn_trains_with_either_mask_format(cfg):
    from detectors import set_detector

    set_detector(cfg, "mask_rcnn")
    for mask_format in ("polygon", "bitmask"):
        cfg.INPUT.MASK_FORMAT = mask_format
        trainee = models.detector(cfg, "swish", True, 1, 64, 64)
        (result,) = measure([models.model_contender("swish", trainee, None)], Clock("cpu"), 2, 0)
        assert list(result.times) == ["training step", "inference"]
        assert [p.grad for p in trainee.model.parameters() if p.grad is None] == []


class Script:
    """A clock with scripted durations for the samples of each contender."""

    is_cuda = False

    def __init__(self, lasts):
        self.lasts = lasts
        self.log = []

    def contender(self, name):
        times = iter(self.lasts[name])

        def run(clock):
            self.log.append(name)
            return {"pass": (0, next(times))}

        return Contender(name, (run,), nn.Identity())

    def milliseconds(self, begin, end):
        return end - begin


def test_ratios_are_medians_over_rounds_of_interleaved_contenders(monkeypatch):
    monkeypatch.setattr(measuring, "_page_faults", lambda: 0)  # two rounds of warm-up
    warm_up, last = [7, 7], [7, 7, 7]  # the last three runs measure memory
    script = Script({"a": [*warm_up, 1, 10, 100, *last], "b": [*warm_up, 5, 20, 100, *last]})
    results = measure([script.contender(name) for name in "ab"], script, max_rounds=3, seconds=1e9)
    assert [r.times["pass"] for r in results] == [[1, 10, 100], [5, 20, 100]]
    rounds = [script.log[i : i + 2] for i in range(0, 10, 2)]
    assert all(sorted(names) == ["a", "b"] for names in rounds)
    (rows,) = parse(table("title", results)).values()
    assert rows[1]["pass, ms"] == f"{statistics.median([5, 20, 100]):#.3g}".rstrip(".") + " (12.5 to 60.0)"
    assert rows[1]["÷ pass, ms"] == "2.00"  # the median of 5, 2 and 1


def test_error_names_a_failing_contender():
    def run(clock):
        raise ZeroDivisionError("no")

    with pytest.raises(RuntimeError, match="acon failed: no"):
        measure([Contender("acon", (run,), nn.Identity())], Clock("cpu"), max_rounds=2, seconds=0)


def test_a_norm_and_an_activation_save_one_tensor(benchmark, capsys):
    rows = "norm+relu", "norm+pwlu", "norm+pwlu:steps"
    benchmark("op", "--shapes", "2,16,64,64", "--baseline", rows[0], "--contenders", *rows, *QUICK)
    ((_, table),) = parse(capsys.readouterr().out).items()
    saved = {row["activation"]: row["forward + backward, saved MiB"] for row in table}
    assert saved == {"norm+relu": "1.0", "norm+pwlu": "0.5", "norm+pwlu:steps": "1.0"}


@pytest.mark.parametrize("network", [False, True])
def test_models_with_and_without_fused_norms(benchmark, capsys, network):
    model = ("--network", "resnet18") if network else NARROW
    size = ("--batch", 1, "--image-size", 64, 64)
    benchmark("model", *model, *size, "--activations", "swish", "--both", *QUICK)
    ((_, rows),) = parse(capsys.readouterr().out).items()
    saved = {row["activation"]: float(row["training step, saved MiB"]) for row in rows}
    assert list(saved) == ["relu", "relu, fused", "swish", "swish, not fused"] + ["as published"] * network
    assert saved["relu, fused"] <= saved["swish"] <= saved["relu"] * 1.02 < saved["swish, not fused"]


@pytest.mark.parametrize("function", [ops.plain_pwlu, ops._Fallback.apply], ids=["plain", "fallback"])
def test_other_implementations_match_pwlu(function):
    torch.manual_seed(0)
    site = PWLU(3, num_intervals=5).double()
    with torch.no_grad():
        for p in site.parameters():
            p.add_(0.3 * torch.randn_like(p))
    x = (4 * torch.randn(2, 3, 7, 5, dtype=torch.float64)).requires_grad_(True)
    g = torch.randn_like(x)
    leaves = [x, *site.parameters()]
    expected, actual = site(x), function(*leaves)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, leaves, g), torch.autograd.grad(expected, leaves, g)
    )


def test_sites_of_r50_fpn():
    """Counted by hand from the architecture: 1 + 3 * (3 + 4 + 6 + 3) plus one between P6 and P7."""
    sites = suites.op_shapes(runpy.run_path(TOOL)["SITES"]["coco"])
    expected = {(64, 400, 672): 1, (64, 200, 336): 6, (256, 200, 336): 3, (256, 13, 21): 1}
    expected |= {(128, 200, 336): 1, (128, 100, 168): 7, (512, 100, 168): 4, (256, 100, 168): 1}
    expected |= {(256, 50, 84): 11, (1024, 50, 84): 6, (512, 50, 84): 1, (512, 25, 42): 5, (2048, 25, 42): 3}
    assert sites == {(2, *shape): count for shape, count in expected.items()}


def test_converted_networks():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64)
    stock = resnet18().eval()
    converted = resnet18().eval()
    converted.load_state_dict(stock.state_dict())
    networks.convert(converted, lambda num_channels: nn.ReLU())
    assert torch.equal(converted(x), stock(x))

    resnet, mobile = resnet18(), mobilenet_v3_small()
    classifier = str(mobile.classifier)
    networks.convert(resnet, PWLU)
    networks.convert(mobile, PWLU)
    assert sum(isinstance(m, PWLU) for m in resnet.modules()) == 17
    # One before and one after the 11 blocks, and two per block except the first, which has no expansion.
    assert sum(isinstance(m, PWLU) for m in mobile.modules()) == 23
    assert str(mobile.classifier) == classifier
    squeezes = [m for m in mobile.modules() if type(m).__name__ == "SqueezeExcitation"]
    assert len(squeezes) == 9 and all(isinstance(m.activation, nn.ReLU) for m in squeezes)
    assert mobile.eval()(x).shape == (2, 1000)


class Restarted(Exception):
    pass


@pytest.mark.parametrize("memory", ["warm", "fresh"])
def test_process_restarts_with_the_requested_memory(monkeypatch, memory):
    module = runpy.run_path(TOOL)
    for name in module["WARM_MEMORY"]:
        monkeypatch.delenv(name, raising=False)
    calls = []

    def execve(*call):
        calls.append(call)
        raise Restarted

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(sys, "argv", [TOOL, "op", "--memory", memory])
    with pytest.raises(Restarted):
        module["main"]()
    ((program, arguments, environment),) = calls
    assert (program, arguments) == (sys.executable, [sys.executable, TOOL, "op", "--memory", memory])
    assert module["QUIET"].items() <= environment.items()
    assert (module["WARM_MEMORY"].items() <= environment.items()) == (memory == "warm")


MISUSES = {
    "shape": (["op", "--shapes", "2,64"], "'2,64' is neither coco nor demo nor four sizes such as"),
    "empty shape": (["op", "--shapes", "2,0,4,4"], "nor four sizes"),
    "dtype": (["op", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
    "device": (["op", "--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
    "no GPU": (["op", "--device", "cuda"], "--device is cuda, but torch finds no GPU on this machine"),
    "contender": (["op", "--contenders", "relu7"], "unknown contender 'relu7'; it must be one of torch.relu"),
    "one round": (["op", "--rounds", "1"], "1 is too few: quartiles need at least 2"),
    "threads": (["op", "--threads", "0"], "argument --threads: 0 is less than 1"),
    "output": (["op", "--output", "none/table.md"], "--output: folder none does not exist"),
    "nothing to do": (["model"], "the model command requires --config-file or --network"),
    "activation": (
        ["model", "--network", "resnet18", "--activations", "relu7"],
        "activation 'relu7'; it must be one of",
    ),
    "network": (
        ["model", "--network", "resnet7"],
        "unknown network 'resnet7'; it must be one of resnet18, mobilenet",
    ),
    "config": (["model", "--config-file", "none.yaml"], "--config-file none.yaml"),
    "stock backbone": (
        ["model", "--config-file", QUICKSTART, "--opts", "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"],
        "it must be build_act_resnet_fpn_backbone for MODEL.ACTIVATION.NAME 'pwlu'",
    ),
    "key": (["model", "--config-file", QUICKSTART, "--opts", "MODEL.X", "1"], "Non-existent key: MODEL.X"),
}


@pytest.mark.parametrize("case", MISUSES)
def test_misuse_is_one_clear_error(case, benchmark, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    arguments, message = MISUSES[case]
    with pytest.raises(SystemExit) as stop:
        benchmark(*arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
