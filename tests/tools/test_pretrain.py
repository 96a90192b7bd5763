"""Pretraining a backbone, and starting a detector from it."""

import re
from pathlib import Path

import pytest
import torch
from detectors import build
from PIL import Image

from pwlu_det.checkpoint.checkpointer import Checkpointer
from pwlu_det.config import load_config
from pwlu_det.engine.optimizer import build_lr_scheduler
from pwlu_det.preflight import check_config, check_training

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DIGITS = CONFIGS / "pretrain/R_18_digits_pwlu.yaml"
RETINANET = CONFIGS / "quickstart/retinanet_R_18_FPN_digits_pwlu.yaml"
SHORT = [
    *("SOLVER.MAX_ITER", 6, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.CHECKPOINT_PERIOD", 2),
    *("MODEL.ACTIVATION.PWLU.PHASE1_ITERS", 3, "INPUT.MIN_SIZE_TEST", 32, "INPUT.CROP.SIZE", "[32,32]"),
]
ACTIVATIONS = {"relu", "swish", "prelu", "apl", "pau", "acon_c", "meta_acon", "frelu", "pwlu"}
IMAGENET = sorted(CONFIGS.glob("pretrain/R_*_*0*_*.yaml"))


@pytest.fixture(scope="module")
def pretrained(run_tool, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    return folder, run_tool("tools/pretrain_net.py", "--config-file", DIGITS, "OUTPUT_DIR", folder, *SHORT)


def test_digits_are_learned_in_two_phases_and_evaluated(pretrained):
    folder, output = pretrained
    assert "realigned 17 sites at iteration 3" in output
    assert re.search(r"copypaste: top1,top5\n.*copypaste: \d+\.\d+,\d+\.\d+", output)
    assert output.splitlines()[-1] == f"Exported backbone: {folder}/backbone.pth"


def test_detector_starts_from_the_backbone(pretrained):
    folder, _ = pretrained
    cfg = load_config(str(RETINANET), [])
    classifier = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    detector = build(cfg)
    Checkpointer(detector).load(str(folder / "backbone.pth"), checkpointables=[])
    loaded = detector.backbone.bottom_up.state_dict()
    assert {f"backbone.{key}" for key in loaded} == {key for key in classifier if "linear" not in key}
    assert all(torch.equal(value, classifier[f"backbone.{key}"]) for key, value in loaded.items())
    assert detector.backbone.bottom_up.stem.act1.phase == 2


@pytest.mark.parametrize(
    "changes, keys",
    [
        ([], []),
        (["INPUT.FORMAT", "RGB"], ["INPUT.FORMAT: BGR -> RGB"]),
        (["MODEL.PIXEL_MEAN", "[1.,2.,3.]"], ["MODEL.PIXEL_MEAN: [82.0, 82.0, 82.0] -> [1.0, 2.0, 3.0]"]),
    ],
)
def test_detector_with_another_input_says_so(pretrained, caplog, changes, keys):
    folder, _ = pretrained
    detector = build(load_config(str(RETINANET), changes))
    Checkpointer(detector).load(str(folder / "backbone.pth"), checkpointables=[])
    messages = [r.getMessage() for r in caplog.records if "other inputs" in r.getMessage()]
    assert len(messages) == len(keys) and all(key in message for key, message in zip(keys, messages))


def test_pretraining_resumes_exactly(pretrained, run_tool, tmp_path):
    folder, _ = pretrained
    (tmp_path / "model_0000003.pth").write_bytes((folder / "model_0000003.pth").read_bytes())
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    arguments = ("--resume", "--config-file", DIGITS, "OUTPUT_DIR", tmp_path, *SHORT, "DATASETS.TEST", "()")
    run_tool("tools/pretrain_net.py", *arguments)
    ours, theirs = (torch.load(f / "backbone.pth", weights_only=True)["model"] for f in (tmp_path, folder))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("path", IMAGENET, ids=lambda path: path.stem)
def test_imagenet_config_is_valid(path):
    cfg = load_config(str(path), [])
    check_config(cfg)
    check_training(cfg)
    assert cfg.MODEL.RESNETS.DEPTH == int(path.stem.split("_")[1])


def test_every_activation_has_both_recipes():
    names = {f"R_{d}_{r}_{a}" for d in (18, 50) for r in ("100ep", "600k") for a in ACTIVATIONS}
    assert names == {path.stem for path in IMAGENET}


def test_imagenet_recipe_on_a_small_image_folder(run_tool, tmp_path):
    for split in ("train", "val"):
        for label in range(2):
            folder = tmp_path / "datasets/imagenet" / split / str(label)
            folder.mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (50, 40), (80 * label, 10 * i, 0)).save(folder / f"{i}.jpg")
    options = ("SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 1)
    options += ("MODEL.DEVICE", "cpu", "INPUT.CROP.SIZE", "[32,32]", "INPUT.MIN_SIZE_TEST", 36)
    config = CONFIGS / "pretrain/R_18_600k_swish.yaml"
    environment = {"DETECTRON2_DATASETS": str(tmp_path / "datasets")}
    arguments = ("--config-file", config, "OUTPUT_DIR", tmp_path / "out", *options)
    message = "CLASSIFIER.NUM_CLASSES is 1000; it must be at most 2"
    assert message in run_tool("tools/pretrain_net.py", *arguments, code=2, **environment).replace("\n", " ")
    output = run_tool("tools/pretrain_net.py", *arguments, "MODEL.CLASSIFIER.NUM_CLASSES", 2, **environment)
    assert "top1,top5" in output and (tmp_path / "out/backbone.pth").is_file()


def test_linear_schedule(cfg):
    cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS = "WarmupLinearLR", 10, 0
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule, rates = build_lr_scheduler(cfg, optimizer), []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.1 * (1 - i / 10) for i in range(10)])
