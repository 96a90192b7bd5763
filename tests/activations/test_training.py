"""Every activation trains the quickstart's RetinaNet, narrowed, in float32 and in bfloat16 autocast.

The tests make a few steps each. Run as a script this makes 100, or as many as ``--iterations`` says, and
prints a line for each activation, or for those that are named (about half an hour for all on one core):

    python tests/activations/test_training.py [--iterations N] [NAME ...]
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from torch import nn

from pwlu_det import build_optimizer, build_phase_hook
from pwlu_det.activations.build import ACTIVATIONS
from pwlu_det.checkpoint import Checkpointer
from pwlu_det.config import check_config, check_training, load_config

CONFIG = Path(__file__).resolve().parents[2] / "configs/quickstart/retinanet_R_18_FPN_digits_relu.yaml"
NAMES = [name for name, family in ACTIVATIONS.items() if not family.unfit]
DTYPES = (torch.float32, torch.bfloat16)
# With bottlenecks, so that all places are there; bfloat16 convolutions take their time on a CPU.
SMALL = [
    *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.FPN.OUT_CHANNELS", 16),
    *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.WARMUP_ITERS", 0),
]


def make_config(name: str, iterations: int):
    pwlu = ("MODEL.ACTIVATION.PWLU.PHASE1_ITERS", iterations // 3)
    own = ("MODEL.ACTIVATION.NAME", name, *pwlu, "SOLVER.MAX_ITER", iterations)
    cfg = load_config(str(CONFIG), [*SMALL, *own])
    check_config(cfg)
    check_training(cfg)
    return cfg


def train(cfg, dtype: torch.dtype, loader) -> tuple[nn.Module, list[float]]:
    """The model that was trained, and the loss of each iteration."""
    torch.manual_seed(cfg.SEED)
    model = build_model(cfg).train()
    model.forward = torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)(model.forward)
    trainer = SimpleTrainer(model, loader, build_optimizer(cfg, model))
    trainer.register_hooks([build_phase_hook(cfg, loader)])
    trainer.train(0, cfg.SOLVER.MAX_ITER)
    return model, [loss for loss, _ in trainer.storage.history("total_loss").values()]


@pytest.fixture(scope="module")
def batches():
    cfg = make_config("relu", 3)
    seed_all_rng(0)
    loader = iter(build_detection_train_loader(cfg))
    return [next(loader) for _ in range(3)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_trains_and_comes_back_from_its_checkpoint(name, dtype, batches, tmp_path):
    cfg = make_config(name, 3)
    model, losses = train(cfg, dtype, batches)
    assert len(losses) == 3 and all(map(math.isfinite, losses))
    for key, parameter in model.named_parameters():
        assert parameter.isfinite().all(), key
        assert parameter.dtype == torch.float32, key

    Checkpointer(model, str(tmp_path)).save("model")
    torch.manual_seed(5)
    loaded = build_model(cfg)
    Checkpointer(loaded).load(str(tmp_path / "model.pth"))
    x = (
        torch.randn(1, 3, 96, 96) / 10
    )  # in evaluation the norms are 3 batches old, and SLAF's powers overflow soon
    with torch.no_grad():
        features, expected = (m.eval().backbone(x) for m in (loaded, model))
    assert all(torch.equal(features[level], expected[level]) for level in expected)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the digits quickstart with every activation.")
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help="activations; all by default")
    parser.add_argument("--iterations", type=int, default=100, help="of each")
    args = parser.parse_args()
    for name in args.names:
        cfg = make_config(name, args.iterations)
        for dtype in DTYPES:
            start = time.perf_counter()
            _, losses = train(cfg, dtype, build_detection_train_loader(cfg))
            seconds, last = time.perf_counter() - start, sum(losses[-10:]) / len(losses[-10:])
            # The first losses say little: detectron2 divides them by 100 objects, and nears the true number.
            print(f"{name:12} {dtype!s:15} loss {last:.3f} at the end  {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
