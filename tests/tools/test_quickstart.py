"""The commands in the README, run on the digits for a few iterations instead of hundreds."""

import json
import re
from pathlib import Path

import pytest
import torch
from detectors import build
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from pwlu_det import PWLU
from pwlu_det.checkpoint.checkpointer import Checkpointer
from pwlu_det.config import load_config

QUICKSTART = Path(__file__).resolve().parents[2] / "configs/quickstart"
RETINANET = QUICKSTART / "retinanet_R_18_FPN_digits_pwlu.yaml"
# Without a score threshold, a few iterations suffice for detections, and thus for an AP to compare.
SHORT = [
    *("SOLVER.MAX_ITER", 12, "MODEL.ACTIVATION.PWLU.PHASE1_ITERS", 6, "SOLVER.CHECKPOINT_PERIOD", 4),
    *("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 20),
]


@pytest.fixture(scope="module")
def demo(run_tool, tmp_path_factory):
    """Folder and output of a short run of `make demo`."""
    folder = tmp_path_factory.mktemp("a folder") / "dämo"
    return folder, run_tool("tools/demo.py", "--output", folder, *SHORT)


def test_demo_ends_with_its_ap_and_lists_its_output_files(demo):
    folder, output = demo
    assert re.fullmatch(r"box AP50 = \d+\.\d\d", output.rstrip().splitlines()[-1])
    assert "Average Precision" in output and "eta:" in output
    assert "realigned 18 sites at iteration 6" in output
    for name in ("model_final.pth", "backbone.pth", "metrics.json", "log.txt"):
        assert (folder / name).is_file()
        assert str(folder / name) in output


def test_eval_only_gives_identical_detections(demo, run_tool, tmp_path):
    folder, _ = demo
    arguments = ("--config-file", RETINANET, "--eval-only", "MODEL.WEIGHTS", folder / "model_final.pth")
    output = run_tool("tools/train_net.py", *arguments, "OUTPUT_DIR", tmp_path, *SHORT)
    again, before = (f / "inference/coco_instances_results.json" for f in (tmp_path, folder))
    assert json.loads(again.read_text()) == json.loads(before.read_text())
    metrics = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    ap = next(line["bbox/AP"] for line in metrics if "bbox/AP" in line)
    assert f"copypaste: {ap:.4f}," in output


def test_training_resumes(demo, run_tool, tmp_path):
    """From a checkpoint on either side of the switch at iteration 6; realignment is not repeated."""
    folder, _ = demo
    for checkpoint, realigned in (("model_0000003.pth", True), ("model_0000007.pth", False)):
        (tmp_path / checkpoint).write_bytes((folder / checkpoint).read_bytes())
        (tmp_path / "last_checkpoint").write_text(checkpoint)
        arguments = ("--resume", "--config-file", RETINANET, "OUTPUT_DIR", tmp_path, *SHORT)
        output = run_tool("tools/train_net.py", *arguments, "DATASETS.TEST", "()")
        assert f"Starting training from iteration {int(checkpoint[6:13]) + 1}" in output
        assert ("realigned 18 sites at iteration 6" in output) == realigned
        assert (tmp_path / "model_final.pth").is_file()


def test_exported_backbone_gives_identical_features_in_another_detector(demo, cfg):
    folder, _ = demo
    cfg = load_config(str(RETINANET), [])
    trained = build(cfg)
    Checkpointer(trained).load(str(folder / "model_final.pth"))
    cfg.MODEL.RETINANET.NUM_CLASSES = 3  # another detector
    other = build(cfg, seed=1)
    checkpointer = DetectionCheckpointer(other)  # detectron2's own reads the file
    checkpointer.load(str(folder / "backbone.pth"))
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        ours, theirs = (model.eval().backbone(x) for model in (trained, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert all(not m.collecting for m in other.modules() if isinstance(m, PWLU))


def test_every_checkpoint_loads_with_weights_only(demo):
    folder, _ = demo
    files = list(folder.glob("*.pth"))
    assert len(files) == 5  # three checkpoints, the final one and the backbone
    for file in files:
        assert torch.load(file, weights_only=True)["model"]


def test_bottom_up_export_of_relu_loads_into_the_stock_resnet(demo, run_tool, tmp_path):
    config, weights, output = (
        QUICKSTART / "retinanet_R_18_FPN_digits_relu.yaml",
        tmp_path / "w.pth",
        tmp_path / "b.pth",
    )
    cfg = load_config(str(config), [])
    trained = build(cfg)
    torch.save({"model": trained.state_dict()}, weights)
    for option, name in (
        (["--bottom-up"], "build_resnet_backbone"),
        ([], "build_retinanet_resnet_fpn_backbone"),
    ):
        run_tool(
            "tools/export_backbone.py",
            "--config-file",
            config,
            "--weights",
            weights,
            "--output",
            output,
            *option,
        )
        cfg.MODEL.BACKBONE.NAME = name
        stock = build_backbone(cfg, ShapeSpec(channels=3))
        checkpointer = Checkpointer(stock)
        checkpointer.load(str(output))
        incompatible = checkpointer.incompatible
        assert not incompatible.missing_keys and not incompatible.unexpected_keys
        assert not incompatible.incorrect_shapes
        x = torch.randn(1, 3, 96, 96)
        bottom_up = trained.backbone.bottom_up if option else trained.backbone
        for a, b in zip(bottom_up.eval()(x).values(), stock.eval()(x).values()):
            assert torch.equal(a, b)


def test_learned_activations_are_plotted(demo, run_tool, tmp_path):
    folder, _ = demo
    picture = tmp_path / "learned.png"
    run_tool("tools/plot_activations.py", "--weights", folder / "backbone.pth", "--output", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")

    strip, run = tmp_path / "strip.svg", [folder / f"model_{i:07d}.pth" for i in (3, 7)]
    arguments = ("--weights", *run, folder / "model_final.pth", "--sites", "stem.act1", "res5.1.act2")
    run_tool("tools/plot_activations.py", *arguments, "--output", strip)
    texts = re.findall(r"<!-- (.*?) -->", strip.read_text())  # beside the outlines of their letters
    assert [text for text in texts if "iterations" in text or "phase" in text] == [
        *("after 4 iterations", "phase I: ReLU"),
        *("after 8 iterations", "phase II: bounds placed"),
        *("after 12 iterations", "phase II: shape learned"),
    ]
    assert "stem.act1" in texts and "res5.1.act2" in texts and "top_block.act" not in texts

    torch.save({"model": {"stem.conv1.weight": torch.zeros(1)}}, tmp_path / "relu.pth")
    arguments = ("--weights", tmp_path / "relu.pth", "--output", tmp_path / "none.png")
    assert "the file contains no PWLU" in run_tool("tools/plot_activations.py", *arguments, code=2)


def test_export_refuses_weights_of_another_backbone(run_tool, tmp_path):
    torch.save({"model": {"head.weight": torch.zeros(1)}}, tmp_path / "w.pth")
    arguments = ("--weights", tmp_path / "w.pth", "--output", tmp_path / "b.pth")
    output = run_tool("tools/export_backbone.py", "--config-file", RETINANET, *arguments, code=2)
    assert "does not fit the model: none of its tensors" in output
    assert not (tmp_path / "b.pth").exists()


def test_mask_rcnn_trains_and_prints_both_tables(run_tool, tmp_path):
    config = QUICKSTART / "mask_rcnn_R_18_FPN_digits_pwlu.yaml"
    overrides = (*SHORT[:4], "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 5)
    output = run_tool("tools/train_net.py", "--config-file", config, "OUTPUT_DIR", tmp_path, *overrides)
    assert re.findall(r"copypaste: Task: (\w+)", output) == ["bbox", "segm"]
    assert "realigned 17 sites" in output
