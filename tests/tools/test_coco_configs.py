"""Every config of configs/coco is trained and evaluated; only sizes are overridden."""

import re
from pathlib import Path

import pytest
import torch

from pwlu_det.config import check_config, check_training, load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RUNS = sorted(CONFIGS.glob("coco/*_3x_*.yaml"))
SMALL = [
    *("MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "()"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64, "DATALOADER.NUM_WORKERS", 0),
    *("MODEL.ACTIVATION.PWLU.PHASE1_ITERS", 1, "TEST.DETECTIONS_PER_IMAGE", 10),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", 20),
    # Two large steps on two images may leave a detector that finds nothing, and then has no mask table.
    *("SOLVER.BASE_LR", 0.0001, "SEED", 1),
]


def test_the_paper_s_runs_are_all_there():
    names = {f"{d}_R_50_FPN_3x_{a}" for d in ("retinanet", "mask_rcnn") for a in ("relu", "swish", "pwlu")}
    assert names == {path.stem for path in RUNS}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_config_trains_and_evaluates(path, run_tool, tmp_path):
    output = run_tool("tools/train_net.py", "--config-file", path, "OUTPUT_DIR", tmp_path, *SMALL)
    assert "Evaluation results for coco_2017_val" in output
    tasks = re.findall(r"copypaste: Task: (\w+)", output)
    assert tasks == (["bbox", "segm"] if "mask_rcnn" in path.stem else ["bbox"])
    assert ("realigned" in output) == ("pwlu" in path.stem)

    model = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    points = [key for key in model if key.endswith(".points")]
    # 48 sites in its blocks and 1 in the stem; RetinaNet has one more, between P6 and P7
    expected = {"pwlu": 50 if "retinanet" in path.stem else 49}.get(path.stem.rsplit("_", 1)[1], 0)
    assert len(points) == expected


@pytest.mark.parametrize(
    "path", [*RUNS, *sorted(CONFIGS.glob("ablation/*.yaml"))], ids=lambda path: path.stem
)
def test_config_is_the_paper_s_schedule(path):
    cfg = load_config(str(path), [])
    check_config(cfg, num_processes=8)
    check_training(cfg)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (270000, (210000, 250000))
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.MOMENTUM) == (0.02, 1e-4, 0.9)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.INPUT.MIN_SIZE_TRAIN) == (16, (800,))
    assert (cfg.MODEL.WEIGHTS, cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.RESNETS.DEPTH) == ("", 0, 50)
    assert (cfg.MODEL.RESNETS.NORM, cfg.MODEL.FPN.NORM) == ("SyncBN", "SyncBN")
    assert not cfg.MODEL.RESNETS.STRIDE_IN_1X1
    if cfg.MODEL.MASK_ON:
        box, mask = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD
        assert (box.NUM_CONV, box.NUM_FC, box.NORM, mask.NORM) == (4, 1, "SyncBN", "SyncBN")
    node = cfg.MODEL.ACTIVATION.PWLU
    if "ablation" not in str(path):
        assert (node.NUM_INTERVALS, node.CHANNEL_WISE, node.PHASE1_EPOCHS) == (16, True, 5)
        assert node.REALIGN and node.PHASE1_ITERS == -1


def test_ablations_change_what_their_names_say():
    def node(name):
        path = CONFIGS / f"ablation/retinanet_R_50_FPN_3x_pwlu_{name}.yaml"
        return load_config(str(path), []).MODEL.ACTIVATION.PWLU

    for x in (3, 6, 10):
        assert (node(f"fix_init_{x}").REALIGN, node(f"fix_init_{x}").INIT_BOUND) == (False, x)
    for n in (4, 8, 12, 16, 20):
        assert node(f"N{n}").NUM_INTERVALS == n
    assert node("layer_wise").CHANNEL_WISE is False
