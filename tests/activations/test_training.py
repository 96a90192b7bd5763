"""Every activation trains the quickstart's RetinaNet on its digits, in float32 and in bfloat16 autocast."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from pwlu_det.activations.registry import ACTIVATIONS, keeps_channels
from pwlu_det.checkpoint.checkpointer import Checkpointer
from pwlu_det.config import load_config
from pwlu_det.engine.trainer import Trainer
from pwlu_det.preflight import check_config, check_training

CONFIG = Path(__file__).resolve().parents[2] / "configs/quickstart/retinanet_R_18_FPN_digits_relu.yaml"
# With bottlenecks, so that there are sites in all positions.
NARROW = [
    *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.FPN.OUT_CHANNELS", 16, "SOLVER.IMS_PER_BATCH", 2),
]
QUICK = ["SOLVER.IMS_PER_BATCH", 2]
every_activation = pytest.mark.parametrize("name", [*filter(keeps_channels, ACTIVATIONS)])
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def make_config(name: str, dtype: torch.dtype, iterations: int, folder, overrides=()):
    own = (
        *("MODEL.ACTIVATION.NAME", name, "MODEL.ACTIVATION.PWLU.PHASE1_ITERS", iterations // 3),
        *("SOLVER.MAX_ITER", iterations, "SOLVER.WARMUP_ITERS", iterations // 5),  # the quickstart's share
        *("SOLVER.AMP.ENABLED", dtype == torch.bfloat16, "OUTPUT_DIR", str(folder), "DATASETS.TEST", ()),
    )
    cfg = load_config(str(CONFIG), [*overrides, *own])
    check_config(cfg)
    check_training(cfg)
    return cfg


def train(cfg) -> tuple[nn.Module, list[float]]:
    """The model that was trained, and the loss of each iteration, all finite."""
    trainer = Trainer(cfg)
    trainer.train()
    losses = [loss for loss, _ in trainer.storage.history("total_loss").values()]
    assert len(losses) == cfg.SOLVER.MAX_ITER
    assert all(map(math.isfinite, losses)), losses
    for key, parameter in trainer.model.named_parameters():
        assert parameter.isfinite().all(), key
        assert parameter.dtype == torch.float32, key
    return trainer.model, losses


def check_comes_back(cfg, model: nn.Module) -> None:
    """The checkpoint that the training has left makes the same model of another."""
    torch.manual_seed(5)
    loaded = build_model(cfg)
    Checkpointer(loaded).load(str(Path(cfg.OUTPUT_DIR, "model_final.pth")))
    # Small: the norms' statistics are far off after 3 batches, and SLAF's powers overflow soon.
    x = torch.randn(1, 3, 96, 96) / 10
    with torch.no_grad():
        features, expected = (m.eval().backbone(x) for m in (loaded, model))
    assert all(torch.equal(features[level], expected[level]) for level in expected)


@both_dtypes
@every_activation
def test_trains_and_comes_back_from_its_checkpoint(name, dtype, tmp_path):
    cfg = make_config(name, dtype, 3, tmp_path, NARROW)
    check_comes_back(cfg, train(cfg)[0])


@pytest.mark.slow
@both_dtypes
@every_activation
def test_the_loss_of_the_quickstart_falls(name, dtype, tmp_path):
    cfg = make_config(name, dtype, 60, tmp_path, QUICK)
    model, losses = train(cfg)
    # Earlier losses are too small: detectron2 divides them by 100 objects at first, and then approaches the
    # true number.
    early, late = sum(losses[20:30]) / 10, sum(losses[-10:]) / 10
    assert late < early
    check_comes_back(cfg, model)
