"""Invalid input gives one clear error before anything is built."""

import json
import os
import re
import runpy
import shutil
import sys
from pathlib import Path

import coco
import pytest
import torch
from detectron2.data import Metadata, MetadataCatalog

from pwlu_det import DatasetError
from pwlu_det.data.mapper import Mapper

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "configs/quickstart/retinanet_R_18_FPN_digits_pwlu.yaml"
PWLU = "MODEL.ACTIVATION.PWLU."

MISUSES = {
    "unknown name": (
        ["MODEL.ACTIVATION.NAME", "relu7"],
        "NAME: unknown activation 'relu7'; it must be one of acon_a, acon_b",
    ),
    "unknown key": (
        ["MODEL.ACTIVATION.PWLU.INTERVALS", 4],
        "Non-existent key: MODEL.ACTIVATION.PWLU.INTERVALS",
    ),
    "wrong type": ([PWLU + "NUM_INTERVALS", "many"], "many"),
    "None": (
        [PWLU + "NUM_INTERVALS", None],
        "NUM_INTERVALS is None; it must be of the type of its default 16, int",
    ),
    "unknown stage": (
        ["MODEL.ACTIVATION.STAGES", "['res7']"],
        "STAGES is ['res7']; it must be a subset of stem, res2",
    ),
    "unknown position": (["MODEL.ACTIVATION.POSITIONS", "['act9']"], "must be a subset of act1, act2, act3"),
    "no interval": ([PWLU + "NUM_INTERVALS", 0], "PWLU.NUM_INTERVALS is 0; it must be at least 1"),
    "odd N": (
        [PWLU + "NUM_INTERVALS", 5, PWLU + "REALIGN", False],
        "NUM_INTERVALS is 5; it must be an even number without phase I",
    ),
    "odd N, no phase I": (
        [PWLU + "NUM_INTERVALS", 5, PWLU + "PHASE1_ITERS", 0],
        "5; it must be an even number",
    ),
    "init bound": ([PWLU + "INIT_BOUND", -1.0], "INIT_BOUND is -1.0; it must be positive"),
    "momentum": ([PWLU + "STAT_MOMENTUM", 1.5], "STAT_MOMENTUM is 1.5; it must be in [0, 1)"),
    "sigmas": ([PWLU + "NUM_SIGMA", 0.0], "NUM_SIGMA is 0.0; it must be positive"),
    "long phase I": (
        [PWLU + "PHASE1_ITERS", 900, "SOLVER.MAX_ITER", 900],
        "PHASE1_ITERS: phase I would last 900 iterations; it must be less than SOLVER.MAX_ITER = 900",
    ),
    "learning rate": (["SOLVER.BASE_LR", -0.1], "BASE_LR is -0.1; it must be at least 0 and finite"),
    "checkpoint period": (["SOLVER.CHECKPOINT_PERIOD", 0], "CHECKPOINT_PERIOD is 0; it must be at least 1"),
    "workers": (["DATALOADER.NUM_WORKERS", -1], "NUM_WORKERS is -1; it must be at least 0"),
    "seed": (["SEED", 2**31], "SEED is 2147483648; it must be at most 2147483647, or negative"),
    "proposals": (
        ["MODEL.LOAD_PROPOSALS", True],
        "DATASETS.PROPOSAL_FILES_TRAIN has 0 files; DATASETS.TRAIN has 1 datasets",
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
        "MODEL.FPN.NORM is 'SyncBN'; it must be BN or GN: torch's SyncBN only supports GPUs",
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
    "unknown dataset": (
        ["DATASETS.TRAIN", "('digit',)"],
        "TRAIN: unknown dataset 'digit'; it must be one of",
    ),
    "missing dataset": (["DATASETS.TEST", "('lvis_v1_val',)"], "'lvis_v1_val' is missing: there is no file"),
    "no dataset": (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is (); it must be one dataset or more"),
    "missing weights": (
        ["MODEL.WEIGHTS", "none.pth"],
        "WEIGHTS is 'none.pth'; it must be an existing file",
    ),
    "nothing to evaluate": (
        ["--eval-only"],
        "MODEL.WEIGHTS is ''; it must be the file to evaluate, unless --resume is used",
    ),
    "unwritable output": (["OUTPUT_DIR", "/dev/null/x"], "OUTPUT_DIR '/dev/null/x' cannot be written"),
}


def run(monkeypatch, capsys, tool, *arguments):
    """Run a tool that must reject its arguments, and return what it printed to stderr."""
    monkeypatch.setattr(sys, "argv", [tool, *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("case", MISUSES)
def test_misuse_of_training_gives_one_clear_error(case, monkeypatch, capsys, tmp_path):
    if case == "no GPU":
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    arguments, message = MISUSES[case]
    error = run(monkeypatch, capsys, "train_net.py", "--config-file", QUICKSTART, *arguments)
    assert message in error.replace("\n", " ")
    assert "Traceback" not in error
    assert os.listdir(tmp_path) == []  # nothing was written


def test_missing_config_file(monkeypatch, capsys):
    assert "none.yaml" in run(monkeypatch, capsys, "train_net.py", "--config-file", "none.yaml")


def test_unsafe_yaml_is_rejected(monkeypatch, capsys, tmp_path):
    path = tmp_path / "unsafe.yaml"
    mark = tmp_path / "ran"
    path.write_text(f'OUTPUT_DIR: !!python/object/apply:os.system ["touch {mark}"]\nVERSION: 2\n')
    error = run(monkeypatch, capsys, "train_net.py", "--config-file", path)
    assert str(path) in error and "python/object/apply" in error
    assert not mark.exists()


def test_phase_1_of_too_many_epochs(run_tool, tmp_path):
    """The length of 5 epochs is known once the dataset is: 5 * 2000 images / 4 = 2,500 iterations."""
    arguments = ("--config-file", QUICKSTART, "OUTPUT_DIR", tmp_path, PWLU + "PHASE1_ITERS", -1)
    output = run_tool("tools/train_net.py", *arguments, code=2)
    assert "train_net.py: error: MODEL.ACTIVATION.PWLU.PHASE1_EPOCHS: phase I would last 2500 iter" in output
    assert "Traceback" not in output
    assert "Starting training" not in output


def write_coco(folder, monkeypatch, change):
    """Write and register coco_2017_train and coco_2017_val, with a fault in the former."""
    coco.write_coco(folder)
    file = folder / "coco/annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    change(content, folder / "coco/train2017")
    file.write_text(json.dumps(content))
    for split in ("train", "val"):
        name = f"coco_2017_{split}"
        stock = MetadataCatalog.get(name).as_dict()
        json_file = folder / f"coco/annotations/instances_{split}2017.json"
        paths = {"json_file": str(json_file), "image_root": str(folder / f"coco/{split}2017")}
        monkeypatch.setitem(MetadataCatalog.data, name, Metadata(**{**stock, **paths}))


COCO_FAULTS = {
    "NaN box": (
        lambda content, images: content["annotations"][3].update(bbox=[1, 2, float("nan"), 4]),
        "annotation 4: bbox is [1, 2, nan, 4]; it must be [x, y, width, height]",
    ),
    "unknown category": (
        lambda content, images: content["annotations"][3].update(category_id=12),
        "annotation 4: category_id is 12; it must be the id of one of the categories",
    ),
    "no images": (lambda content, images: content.pop("images"), "images is None; it must be a list"),
    "missing image": (
        lambda content, images: (images / "000000000002.jpg").unlink(),
        "1 of its 6 images are missing; the first is",
    ),
    "all crowd": (
        lambda content, images: [a.update(iscrowd=1) for a in content["annotations"]],
        "it has no objects to train on: 6 images, 12 annotations; left out: 12 crowds",
    ),
    "other classes": (
        lambda content, images: content["categories"].reverse() or content["categories"][0].update(name="x"),
        "its categories do not match those of dataset 'coco_2017_train'",
    ),
}


@pytest.mark.parametrize("case", COCO_FAULTS)
def test_invalid_coco_file_gives_one_clear_error_before_training(case, monkeypatch, capsys, tmp_path):
    change, message = COCO_FAULTS[case]
    write_coco(tmp_path, monkeypatch, change)
    monkeypatch.chdir(tmp_path)
    config = ROOT / "configs/coco/retinanet_R_50_FPN_3x_pwlu.yaml"
    error = run(monkeypatch, capsys, "train_net.py", "--config-file", config, "MODEL.DEVICE", "cpu")
    assert message in error.replace("\n", " ") and "Traceback" not in error
    assert not (tmp_path / "output").exists()


def test_too_few_classes(monkeypatch, capsys):
    error = run(
        monkeypatch, capsys, "train_net.py", "--config-file", QUICKSTART, "MODEL.RETINANET.NUM_CLASSES", 9
    )
    assert "NUM_CLASSES is 9; it must be at least 10, the classes of 'digits_train'" in error.replace(
        "\n", " "
    )


def test_error_names_a_broken_image(cfg, tmp_path):
    (tmp_path / "broken é.jpg").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"image .*broken é\.jpg cannot be used: cannot identify"):
        Mapper(cfg, is_train=True)({"file_name": str(tmp_path / "broken é.jpg"), "height": 3, "width": 3})


FULL_DISK = """
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_full_disk_during_training_gives_one_clear_error(run_tool, tmp_path):
    """No file can grow beyond 2 MB, and a checkpoint is larger."""
    (tmp_path / "full_disk.py").write_text(FULL_DISK)
    short = [
        "SOLVER.MAX_ITER",
        2,
        "SOLVER.CHECKPOINT_PERIOD",
        1,
        PWLU + "PHASE1_ITERS",
        1,
        "DATASETS.TEST",
        "()",
    ]
    arguments = [
        ROOT / "tools/train_net.py",
        "--config-file",
        QUICKSTART,
        "OUTPUT_DIR",
        tmp_path / "out",
        *short,
    ]
    output = run_tool(tmp_path / "full_disk.py", *arguments, code=1)
    last = output.splitlines()[-1]
    assert re.search(r"train_net.py: error: \[Errno 27\] File too large: '.*out/model_0000000.pth'$", last)
    assert not [name for name in os.listdir(tmp_path / "out") if ".pth" in name or name == "last_checkpoint"]


def test_unknown_kernels(monkeypatch, capsys):
    monkeypatch.setenv("PWLU_DET_CPU_KERNELS", "fast")
    message = "PWLU_DET_CPU_KERNELS is 'fast'; it must be one of avx512, avx2, baseline, none"
    assert message in run(monkeypatch, capsys, "train_net.py", "--config-file", QUICKSTART).replace("\n", " ")


def test_weights_of_which_nothing_fits_cannot_be_evaluated(run_tool, tmp_path):
    weights = tmp_path / "other.pth"
    torch.save({"other.weight": torch.ones(3)}, weights)
    arguments = ("--config-file", QUICKSTART, "--eval-only", "OUTPUT_DIR", tmp_path / "out")
    output = run_tool("tools/train_net.py", *arguments, "MODEL.WEIGHTS", weights, code=2)
    assert f"error: {weights} does not fit the model: none of its tensors" in output.splitlines()[-1]
    assert "Traceback" not in output


def test_broken_image_in_a_worker_gives_one_clear_error(run_tool, coco_root, tmp_path):
    """torch puts the worker's traceback in the message."""
    config = ROOT / "configs/quickstart/retinanet_R_18_FPN_digits_relu.yaml"
    data = tmp_path / "datasets"
    shutil.copytree(coco_root, data)
    for image in (data / "coco/train2017").iterdir():
        image.write_bytes(b"no image")
    options = (
        "DATASETS.TRAIN",
        "('coco_2017_train',)",
        "DATASETS.TEST",
        "()",
        "MODEL.RETINANET.NUM_CLASSES",
        80,
    )
    options += ("DATALOADER.NUM_WORKERS", 1, "OUTPUT_DIR", tmp_path / "out")
    arguments = ("--config-file", config, *options)
    output = run_tool("tools/train_net.py", *arguments, code=2, DETECTRON2_DATASETS=str(data))
    last = output.splitlines()[-1]
    assert re.search(r"error: image .*000\.jpg cannot be used: cannot identify image file", last), last


EXPORT = {
    "missing weights": (["--weights", "none.pth", "--output", "b.pth"], "file none.pth does not exist"),
    "wrong ending": (["--weights", QUICKSTART, "--output", "b.pkl"], "'b.pkl'; its name must end in .pth"),
    "missing folder": (["--weights", QUICKSTART, "--output", "none/b.pth"], "folder none does not exist"),
}


@pytest.mark.parametrize("case", EXPORT)
def test_misuse_of_export_gives_one_clear_error(case, monkeypatch, capsys):
    arguments, message = EXPORT[case]
    error = run(monkeypatch, capsys, "export_backbone.py", "--config-file", QUICKSTART, *arguments)
    assert message in error and "Traceback" not in error
