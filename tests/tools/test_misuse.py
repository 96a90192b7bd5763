"""Wrong input ends in one clear error before anything is built."""

import os
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "configs/quickstart/retinanet_R_18_FPN_digits_pwlu.yaml"
PWLU = "MODEL.ACTIVATION.PWLU."

MISUSES = {
    "unknown name": (
        ["MODEL.ACTIVATION.NAME", "relu7"],
        "NAME: unknown activation 'relu7'; known are acon_a, acon_b",
    ),
    "unknown key": (
        ["MODEL.ACTIVATION.PWLU.INTERVALS", 4],
        "Non-existent key: MODEL.ACTIVATION.PWLU.INTERVALS",
    ),
    "wrong type": ([PWLU + "NUM_INTERVALS", "many"], "many"),
    "unknown stage": (
        ["MODEL.ACTIVATION.STAGES", "['res7']"],
        "STAGES is ['res7']; it must be out of stem, res2",
    ),
    "unknown position": (["MODEL.ACTIVATION.POSITIONS", "['act9']"], "must be out of act1, act2, act3"),
    "no interval": ([PWLU + "NUM_INTERVALS", 0], "PWLU.NUM_INTERVALS is 0; it must be at least 1"),
    "odd N": (
        [PWLU + "NUM_INTERVALS", 5, PWLU + "REALIGN", False],
        "NUM_INTERVALS is 5; it must be even where",
    ),
    "odd N, no phase I": ([PWLU + "NUM_INTERVALS", 5, PWLU + "PHASE1_ITERS", 0], "5; it must be even where"),
    "init bound": ([PWLU + "INIT_BOUND", -1.0], "INIT_BOUND is -1.0; it must be positive"),
    "momentum": ([PWLU + "STAT_MOMENTUM", 1.5], "STAT_MOMENTUM is 1.5; it must be in [0, 1)"),
    "sigmas": ([PWLU + "NUM_SIGMA", 0.0], "NUM_SIGMA is 0.0; it must be positive"),
    "long phase I": (
        [PWLU + "PHASE1_ITERS", 900, "SOLVER.MAX_ITER", 900],
        "PHASE1_ITERS: phase I would last 900 iterations; it must be less than SOLVER.MAX_ITER = 900",
    ),
    "negative phase I": ([PWLU + "PHASE1_ITERS", -2], "PHASE1_ITERS is -2; it must be at least 0"),
    "lr factor": (["MODEL.ACTIVATION.LR_FACTOR", -1.0], "LR_FACTOR is -1.0; it must be at least 0"),
    "weight decay": (["MODEL.ACTIVATION.WEIGHT_DECAY", -1.0], "WEIGHT_DECAY is -1.0"),
    "stock backbone": (
        ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"],
        "it must be build_act_resnet_fpn_backbone for MODEL.ACTIVATION.NAME 'pwlu'",
    ),
    "SyncBN on CPUs": (
        ["--num-gpus", 2, "MODEL.FPN.NORM", "SyncBN"],
        "MODEL.FPN.NORM is 'SyncBN'; it must be BN or GN: torch's SyncBN works on GPUs only",
    ),
    "FrozenBN": (
        ["MODEL.RESNETS.NORM", "FrozenBN"],
        "RESNETS.NORM is 'FrozenBN'; it must be BN, SyncBN or GN when",
    ),
    "FREEZE_AT": (
        ["MODEL.BACKBONE.FREEZE_AT", 2],
        "FREEZE_AT is 2; it must be 0 when MODEL.WEIGHTS is empty",
    ),
    "no GPU": (["MODEL.DEVICE", "cuda"], "MODEL.DEVICE is 'cuda'; it must be 'cpu' on this machine"),
    "unknown data set": (["DATASETS.TRAIN", "('digit',)"], "TRAIN: unknown data set 'digit'; known are"),
    "missing data set": (["DATASETS.TEST", "('lvis_v1_val',)"], "'lvis_v1_val' is not there: no file"),
    "no data set": (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is (); it must be one data set or more"),
    "missing weights": (
        ["MODEL.WEIGHTS", "none.pth"],
        "WEIGHTS is 'none.pth'; it must be a file that exists",
    ),
    "nothing to evaluate": (
        ["--eval-only"],
        "MODEL.WEIGHTS is ''; it must be the file to evaluate, or use --resume",
    ),
    "unwritable output": (["OUTPUT_DIR", "/dev/null/x"], "OUTPUT_DIR '/dev/null/x' cannot be written"),
}


def run(monkeypatch, capsys, tool, *arguments):
    """Run a tool that must refuse its arguments, and give what it said."""
    monkeypatch.setattr(sys, "argv", [tool, *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("case", MISUSES)
def test_misuse_of_training_is_one_clear_error(case, monkeypatch, capsys, tmp_path):
    if case == "no GPU":
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    arguments, message = MISUSES[case]
    error = run(monkeypatch, capsys, "train_net.py", "--config-file", QUICKSTART, *arguments)
    assert message in error.replace("\n", " ")
    assert "Traceback" not in error
    assert os.listdir(tmp_path) == []  # nothing was begun


def test_missing_config_file(monkeypatch, capsys):
    assert "none.yaml" in run(monkeypatch, capsys, "train_net.py", "--config-file", "none.yaml")


def test_unsafe_yaml_is_refused(monkeypatch, capsys, tmp_path):
    path = tmp_path / "unsafe.yaml"
    mark = tmp_path / "ran"
    path.write_text(f'OUTPUT_DIR: !!python/object/apply:os.system ["touch {mark}"]\nVERSION: 2\n')
    error = run(monkeypatch, capsys, "train_net.py", "--config-file", path)
    assert str(path) in error and "python/object/apply" in error
    assert not mark.exists()


def test_phase_1_in_epochs_that_is_too_long(run_tool, tmp_path):
    """T' of 5 epochs is known once the data set is: 5 * 2000 images / 4 = 2,500 iterations."""
    arguments = ("--config-file", QUICKSTART, "OUTPUT_DIR", tmp_path, PWLU + "PHASE1_ITERS", -1)
    output = run_tool("tools/train_net.py", *arguments, code=2)
    assert "train_net.py: error: MODEL.ACTIVATION.PWLU.PHASE1_EPOCHS: phase I would last 2500 iter" in output
    assert "Traceback" not in output
    assert "Starting training" not in output


EXPORT = {
    "missing weights": (["--weights", "none.pth", "--output", "b.pth"], "there is no file none.pth"),
    "wrong ending": (["--weights", QUICKSTART, "--output", "b.pkl"], "'b.pkl'; its name must end in .pth"),
    "missing folder": (["--weights", QUICKSTART, "--output", "none/b.pth"], "there is no folder none"),
}


@pytest.mark.parametrize("case", EXPORT)
def test_misuse_of_export_is_one_clear_error(case, monkeypatch, capsys):
    arguments, message = EXPORT[case]
    error = run(monkeypatch, capsys, "export_backbone.py", "--config-file", QUICKSTART, *arguments)
    assert message in error and "Traceback" not in error
