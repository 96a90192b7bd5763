"""The lazy configs train in two phases, with optimizer groups, and resume."""

from pathlib import Path

import pytest
import torch
from detectors import batch
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig

from pwlu_det import PWLU
from pwlu_det.engine.lazy import build_model, train

CONFIGS = Path(__file__).resolve().parents[2] / "configs/lazy"


class Batches:
    def __iter__(self):
        while True:
            yield batch()


def load(name, folder):
    """A config that is small, and switches at iteration 2 of 3."""
    cfg = LazyConfig.load(str(CONFIGS / f"{name}_R_50_FPN_3x_pwlu.py"))
    folder.mkdir(exist_ok=True)
    cfg.train.update(output_dir=str(folder), device="cpu", max_iter=3, eval_period=0)
    cfg.train.checkpointer.period = 1
    cfg.dataloader = {"train": L(Batches)()}
    cfg.activation.phase1_iters = 2
    if name == "retinanet":
        cfg.model.head.conv_dims = [256]
    else:
        cfg.model.roi_heads.batch_size_per_image = 4
        cfg.model.roi_heads.box_head.fc_dims = [32]
        cfg.model.roi_heads.box_predictor.input_shape.channels = 32
        cfg.activation.heads = ["rpn", "box_head"]
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize("name, number", [("retinanet", 50), ("mask_rcnn", 51)])
def test_training(tmp_path, name, number):
    torch.manual_seed(0)
    cfg = load(name, tmp_path / "run")
    model = train(cfg, resume=False)
    sites = [m for m in model.modules() if isinstance(m, PWLU)]
    assert len(sites) == number
    assert all(int(site.phase) == 2 and int(site.num_batches) == 2 for site in sites)
    cfg.train.max_iter = 4
    resumed = train(cfg, resume=True)
    assert all(int(m.num_batches) == 2 for m in resumed.modules() if isinstance(m, PWLU))
    assert (tmp_path / "run/model_0000003.pth").exists()


def test_activations_have_their_own_weight_decay_and_rate(tmp_path):
    cfg = load("retinanet", tmp_path)
    cfg.activation.lr_factor = 0.5
    model = build_model(cfg)
    assert all(m.collecting for m in model.modules() if isinstance(m, PWLU))
    override = {"weight_decay": 0.0, "lr": 0.005}
    names = ("points", "left_bound", "right_bound", "left_slope", "right_slope")
    assert cfg.optimizer.params.overrides == dict.fromkeys(names, override)
