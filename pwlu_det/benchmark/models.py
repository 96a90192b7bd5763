"""Contenders of ``tools/benchmark.py model``: training step and inference of a model, by activation."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn

from pwlu_det.activations.two_phase import trainable_sites
from pwlu_det.benchmark.measure import Clock, Contender
from pwlu_det.config import architecture
from pwlu_det.engine.optimizer import build_optimizer
from pwlu_det.engine.phases import TwoPhaseHook
from pwlu_det.preflight import check_config

NUM_OBJECTS = 7
"""Objects per image; COCO has 7.3 on average."""

LEARNING_RATE = 1e-8
"""So small that the weights hardly change, and all rounds do the same work."""


@dataclass
class Trainee:
    """A model with random weights, and everything that its training step needs."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    inputs: Any
    """the argument of the model, for both training and inference"""
    trainer: type[SimpleTrainer] = SimpleTrainer


def phases(activation: str) -> dict[str, int | None]:
    """The names of an activation's rows, and T' of the phase hook for each (None: no hook)."""
    if activation != "pwlu":
        return {activation: None}
    return {"pwlu, phase I": sys.maxsize, "pwlu, phase II": 1}


def variants(activation: str, both: bool) -> dict[str, bool]:
    """What is added to the names of an activation's rows, and whether norms are fused with it.

    By default, all activations but ReLU are, as in a detector; with ``both``, there are rows of either kind.
    """
    if activation == "relu":
        return {"": False, **({", fused": True} if both else {})}
    return {"": True, **({", not fused": False} if both else {})}


def model_contender(name: str, trainee: Trainee, phase1_iters: int | None) -> Contender:
    """A contender that times detectron2's training step, including this package's hooks, and inference.

    With T' = 1, the first warm-up step is phase I, and the second realigns the PWLUs: all timed steps are in
    phase II.
    """
    model, inputs = trainee.model, trainee.inputs
    trainer = trainee.trainer(model, itertools.repeat(inputs), trainee.optimizer)
    trainer.iter = trainer.start_iter = 0
    trainer.storage = EventStorage()
    if phase1_iters is not None:
        for site in trainable_sites(model).values():
            site.begin_collecting()
        trainer.register_hooks([TwoPhaseHook(phase1_iters)])
    trainer.before_train()

    def train(clock: Clock):
        model.train()
        trainee.optimizer.zero_grad()  # the last step's gradients must not count as this step's memory
        with trainer.storage:
            begin = clock.start()
            trainer.before_step()
            trainer.run_step()
            trainer.after_step()
            end = clock.mark()
        trainer.iter += 1
        return {"training step": (begin, end)}

    def infer(clock: Clock):
        model.eval()
        with torch.no_grad():
            begin = clock.start()
            model(inputs)
            return {"inference": (begin, clock.mark())}

    return Contender(name, (train, infer), model)


def detector(cfg, activation: str, fuse: bool, batch: int, height: int, width: int) -> Trainee:
    """Build the detector of a config with another activation, and synthetic images of ``height`` x ``width``.

    ``fuse`` says whether norms and activations, including ReLU, are one op.

    Raises:
        ConfigError: the config does not allow the activation.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ACTIVATION.NAME = activation
    cfg.MODEL.ACTIVATION.FUSE_NORM = cfg.MODEL.ACTIVATION.FUSE_RELU = fuse
    cfg.SOLVER.BASE_LR = LEARNING_RATE
    check_config(cfg)
    torch.manual_seed(0)
    model = build_model(cfg)
    trainer = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
    inputs = list(synthetic_images(cfg, batch, height, width))
    return Trainee(model, build_optimizer(cfg, model), inputs, trainer)


def synthetic_images(cfg, batch: int, height: int, width: int) -> Iterator[dict]:
    """Yield noise images with boxes, classes and masks, in the format of detectron2's data loader."""
    if architecture(cfg) == "RetinaNet":
        num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
    else:
        num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    generator = torch.Generator().manual_seed(0)
    for _ in range(batch):
        center = torch.rand(NUM_OBJECTS, 2, generator=generator) * 0.5 + 0.25
        half = torch.rand(NUM_OBJECTS, 2, generator=generator) * 0.15 + 0.1
        boxes = torch.cat([center - half, center + half], dim=1) * torch.tensor([width, height] * 2)
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.randint(num_classes, (NUM_OBJECTS,), generator=generator)
        instances.gt_masks = _masks(cfg.INPUT.MASK_FORMAT, boxes, height, width)
        image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        yield {"image": image, "instances": instances, "height": height, "width": width}


def _masks(mask_format: str, boxes: torch.Tensor, height: int, width: int) -> BitMasks | PolygonMasks:
    """Masks that fill the boxes."""
    if mask_format == "polygon":
        return PolygonMasks([[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in boxes.tolist()])
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist()):
        mask[y0:y1, x0:x1] = True
    return BitMasks(masks)
