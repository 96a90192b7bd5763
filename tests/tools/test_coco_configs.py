"""The configs in configs/coco, with only sizes overridden.

Those with ReLU, Swish and PWLU are trained and evaluated with the training command. Of the others, those that
differ in more than the detector are built and take one step.
"""

import re
from pathlib import Path

import pytest
import torch
from detectors import batch, build
from detectron2.engine import DefaultTrainer
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils.events import EventStorage

from pwlu_det import ConfigError, build_optimizer
from pwlu_det.activations.registry import get_activation
from pwlu_det.config import load_config
from pwlu_det.preflight import check_config, check_training

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ACTIVATIONS = ("relu", "swish", "pwlu", "frelu", "prelu", "apl", "pau", "acon_c", "meta_acon")
RUNS = sorted(CONFIGS.glob("coco/*_3x_*.yaml"))
TRAINED = [path for path in RUNS if path.stem.rpartition("_3x_")[2] in ("relu", "swish", "pwlu")]
FROM_IMAGENET = sorted(CONFIGS.glob("coco/*_1x_*.yaml"))
STEPPED = [
    *(path for path in RUNS if path not in TRAINED and "retinanet" in path.stem),
    *(path for path in FROM_IMAGENET if "relu" not in path.stem),
    CONFIGS / "coco/mask_rcnn_R_50_FPN_3x_frelu.yaml",
]
SMALL = [
    *("MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "()"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64, "DATALOADER.NUM_WORKERS", 0),
    *("MODEL.ACTIVATION.PWLU.PHASE1_ITERS", 1, "TEST.DETECTIONS_PER_IMAGE", 10),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", 20),
    # After two large steps on two images, a detector may find nothing and then print no mask table.
    *("SOLVER.BASE_LR", 0.0001, "SEED", 1),
]


def test_every_run_of_the_paper_has_a_config():
    names = {f"{d}_R_50_FPN_3x_{a}" for d in ("retinanet", "mask_rcnn") for a in ACTIVATIONS}
    assert names == {path.stem for path in RUNS}
    names = {f"retinanet_R_50_FPN_1x_600px_{a}" for a in ("relu", "swish", "meta_acon")}  # ACON, Table 8
    assert names == {path.stem for path in FROM_IMAGENET}


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
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


@pytest.mark.parametrize("path", STEPPED, ids=lambda path: path.stem)
def test_config_takes_a_step(path):
    cfg = load_config(str(path), ["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8])
    name = cfg.MODEL.ACTIVATION.NAME
    assert path.stem.endswith(f"_{name}")
    model = build(cfg).train()
    sites = [m for m in model.backbone.bottom_up.modules() if isinstance(m, get_activation(name))]
    # R-50 has 16 blocks, 13 of them before res5, with three sites each, and one site in the stem.
    assert len(sites) == {"frelu": 39, "meta_acon": 16}.get(name, 49)
    optimizer = build_optimizer(cfg, model)
    torch.manual_seed(0)
    with EventStorage():
        losses = model(batch())
    sum(losses.values()).backward()
    optimizer.step()
    for key, parameter in model.named_parameters():
        assert parameter.isfinite().all(), key


@pytest.mark.parametrize("path", FROM_IMAGENET, ids=lambda path: path.stem)
def test_config_matches_table_8_of_acon(path):
    cfg = load_config(str(path), ["MODEL.DEVICE", "cpu"])
    check_config(cfg)
    with pytest.raises(ConfigError, match=r"must be 0 when MODEL\.WEIGHTS is empty"):
        check_training(cfg)  # the backbone needs weights
    cfg.MODEL.WEIGHTS = "backbone.pth"
    check_training(cfg)
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST) == ((600,), 600)
    assert (cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.MOMENTUM, cfg.SOLVER.MAX_ITER) == (1e-4, 0.9, 90000)
    sizes, ratios = cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS
    assert (len(sizes[0]), len(ratios[0])) == (3, 3)
    for gpus in (1, 4, 8):
        assert DefaultTrainer.auto_scale_workers(cfg, gpus).SOLVER.IMS_PER_BATCH == 2 * gpus
    frozen = [m for m in build(cfg).backbone.bottom_up.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert len(frozen) == 53 + (32 if "meta_acon" in path.stem else 0)


@pytest.mark.parametrize(
    "path", [*RUNS, *sorted(CONFIGS.glob("ablation/*.yaml"))], ids=lambda path: path.stem
)
def test_config_follows_the_schedule_of_the_paper(path):
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


def test_ablations_match_their_names():
    def node(name):
        path = CONFIGS / f"ablation/retinanet_R_50_FPN_3x_pwlu_{name}.yaml"
        return load_config(str(path), []).MODEL.ACTIVATION.PWLU

    for x in (3, 6, 10):
        assert (node(f"fix_init_{x}").REALIGN, node(f"fix_init_{x}").INIT_BOUND) == (False, x)
    for n in (4, 8, 12, 16, 20):
        assert node(f"N{n}").NUM_INTERVALS == n
    assert node("layer_wise").CHANNEL_WISE is False
