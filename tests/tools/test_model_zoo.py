"""Configs of detectron2's model zoo, with PWLUs in backbone and heads, each on all of its made-up datasets.

Two iterations, one in each phase, followed by the evaluation that detectron2's train_net.py would do.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo
from zoo import write_all

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.RESNETS.NORM", "BN"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.WIDTH_PER_GROUP", 4),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.FPN.OUT_CHANNELS", 32),
    *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "()", "SOLVER.BASE_LR", 1e-4),
    *("TEST.EVAL_PERIOD", 0, "DATALOADER.NUM_WORKERS", 0, "SEED", 1),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64, "MODEL.ROI_BOX_HEAD.FC_DIM", 16),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 60),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", 20, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "TEST.DETECTIONS_PER_IMAGE", 10),
    *("MODEL.ACTIVATION.NAME", "pwlu", "MODEL.ACTIVATION.PWLU.PHASE1_ITERS", 1),
]
R50 = 49  # sites in a ResNet-50
BOX = "AP,AP50,AP75,APs,APm,APl"
# For each config: the heads with PWLUs, the number of PWLUs, and the metrics by task.
CONFIGS = {
    "COCO-Detection/faster_rcnn_R_50_FPN_1x": (["box_head"], R50 + 2, {"bbox": BOX}),
    "COCO-Detection/rpn_R_50_FPN_1x": (["rpn"], R50 + 1, {"box_proposals": "AR@100"}),
    "COCO-Detection/rpn_R_50_C4_1x": (["rpn"], R50 - 9 + 1, {"box_proposals": "AR@100"}),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x": (["mask_head"], R50 + 5, {"bbox": BOX, "segm": BOX}),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x": (["res5"], R50, {"bbox": BOX, "segm": BOX}),
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x": (
        ["keypoint_head"],
        R50 + 8,
        {"bbox": BOX, "keypoints": "AP,AP50,AP75,APm,APl"},
    ),
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x": (
        ["sem_seg_head", "rpn"],
        R50 + 7 + 1,
        {"sem_seg": "mIoU", "bbox": BOX, "segm": BOX, "panoptic_seg": "PQ"},
    ),
    "Misc/semantic_R_50_FPN_1x": (["sem_seg_head"], R50 + 7, {"sem_seg": "mIoU"}),
    "Misc/cascade_mask_rcnn_R_50_FPN_1x": (["box_head"], R50 + 6, {"bbox": BOX, "segm": BOX}),
    "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x": ([], R50, {"bbox": "AP", "segm": "AP"}),
    "PascalVOC-Detection/faster_rcnn_R_50_C4": ([], R50 - 9, {"bbox": "AP,AP50,AP75"}),
    "Cityscapes/mask_rcnn_R_50_FPN": ([], R50, {"segm": "AP,AP50"}),
}
ARCHITECTURES = {
    "rpn": "ProposalNetwork",
    "panoptic_fpn": "PanopticFPN",
    "semantic": "SemanticSegmentor",
}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_all(root)
    return root


def options(name, heads):
    backbone = "resnet_fpn" if "FPN" in name or "panoptic" in name else "resnet"
    values = [*SMALL, "MODEL.BACKBONE.NAME", f"build_act_{backbone}_backbone"]
    if heads:
        stem = name.split("/")[1].split("_R_50")[0]
        architecture = ARCHITECTURES.get(stem, "GeneralizedRCNN")
        values += ["MODEL.ACTIVATION.HEADS", heads, "MODEL.META_ARCHITECTURE", f"Act{architecture}"]
    return values


@pytest.mark.parametrize("name", CONFIGS)
def test_config_trains_and_evaluates(name, datasets, tmp_path):
    heads, num_sites, metrics = CONFIGS[name]
    command = ["tools/train_net.py", "--config-file", model_zoo.get_config_file(f"{name}.yaml")]
    arguments = map(str, [sys.executable, *command, *options(name, heads), "OUTPUT_DIR", tmp_path])
    environment = {**os.environ, "DETECTRON2_DATASETS": str(datasets)}
    done = subprocess.run([*arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-4000:]
    assert f"realigned {num_sites} sites at iteration 1" in output
    found = re.findall(r"copypaste: Task: (\w+)\n.*copypaste: (\S+)\n.*copypaste: (\S+)", output)
    assert {task: names for task, names, _ in found}.keys() == metrics.keys()
    for task, names, values in found:
        assert (names + ",").startswith(metrics[task] + ","), names
        first = float(values.split(",")[0])
        assert 0 <= first <= 100, (task, values)
    model = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert sum(key.endswith(".points") for key in model) == num_sites


def test_retinanet_of_the_zoo_is_refused_for_its_unsafe_yaml(datasets, tmp_path):
    """Its anchors are Python code; configs/ has the same with numbers."""
    config = model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    command = [sys.executable, "tools/train_net.py", "--config-file", config, "OUTPUT_DIR", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "could not determine a constructor for the tag" in done.stderr


RETINANET = """
import json, sys
from detectron2 import model_zoo
from detectron2.config import get_cfg
import pwlu_det
cfg = get_cfg()
pwlu_det.add_pwlu_config(cfg)
cfg.merge_from_file(model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml"))
cfg.merge_from_list(sys.argv[1:])
pwlu_det.check_config(cfg)
trainer = pwlu_det.Trainer(cfg)
trainer.resume_or_load(resume=False)
trainer.train()
print("RESULTS", json.dumps(trainer._last_eval_results))
"""


def test_retinanet_of_the_zoo_in_a_script(datasets, tmp_path):
    overrides = [
        *SMALL,
        *("MODEL.BACKBONE.NAME", "build_act_retinanet_resnet_fpn_backbone", "MODEL.RETINANET.NUM_CONVS", 2),
        *("MODEL.META_ARCHITECTURE", "ActRetinaNet", "MODEL.ACTIVATION.HEADS", ["retinanet"]),
        *("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "OUTPUT_DIR", tmp_path),
    ]
    command = [sys.executable, "-c", RETINANET, *map(str, overrides)]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(datasets)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    (results,) = re.findall(r"RESULTS (.*)", done.stdout)
    assert 0 <= json.loads(results)["bbox"]["AP"] <= 100
    model = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert sum(key.endswith(".points") for key in model) == R50 + 1 + 4
