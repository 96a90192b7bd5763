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
# With bottleneck blocks, which have all positions.
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
        *("SOLVER.MAX_ITER", iterations, "SOLVER.WARMUP_ITERS", iterations // 5),  # as in the quickstart
        *("SOLVER.AMP.ENABLED", dtype == torch.bfloat16, "OUTPUT_DIR", str(folder), "DATASETS.TEST", ()),
    )
    cfg = load_config(str(CONFIG), [*overrides, *own])
    check_config(cfg)
    check_training(cfg)
    return cfg


def train(cfg) -> tuple[nn.Module, list[float]]:
    """Train; return the model and the loss of each iteration, after checking that all are finite."""
    trainer = Trainer(cfg)
    trainer.train()
    losses = [loss for loss, _ in trainer.storage.history("total_loss").values()]
    assert len(losses) == cfg.SOLVER.MAX_ITER
    assert all(map(math.isfinite, losses)), losses
    for key, parameter in trainer.model.named_parameters():
        assert parameter.isfinite().all(), key
        assert parameter.dtype == torch.float32, key
    return trainer.model, losses


def check_checkpoint(cfg, model: nn.Module) -> None:
    """Check that loading the final checkpoint into another model gives the same outputs."""
    torch.manual_seed(5)
    loaded = build_model(cfg)
    Checkpointer(loaded).load(str(Path(cfg.OUTPUT_DIR, "model_final.pth")))
    # Small inputs: after 3 batches, the norms' statistics are inaccurate, and SLAF's powers overflow easily.
    x = torch.randn(1, 3, 96, 96) / 10
    with torch.no_grad():
        features, expected = (m.eval().backbone(x) for m in (loaded, model))
    assert all(torch.equal(features[level], expected[level]) for level in expected)


@both_dtypes
@every_activation
def test_activation_trains_and_its_checkpoint_restores_it(name, dtype, tmp_path):
    cfg = make_config(name, dtype, 3, tmp_path, NARROW)
    check_checkpoint(cfg, train(cfg)[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, dtype",
    [("pwlu", torch.float32), ("frelu", torch.bfloat16)],  # half a minute each; the test above has all
    ids=str,
)
def test_quickstart_loss_decreases(name, dtype, tmp_path):
    cfg = make_config(name, dtype, 60, tmp_path, QUICK)
    model, losses = train(cfg)
    # Earlier losses are too small: detectron2 divides by a moving average of the object count, initially 100.
    early, late = sum(losses[20:30]) / 10, sum(losses[-10:]) / 10
    assert late < early, f"the loss went from {early:.3f} to {late:.3f}"
    check_checkpoint(cfg, model)
