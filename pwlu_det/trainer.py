"""detectron2's DefaultTrainer with the two phases, the optimiser groups and COCO evaluation."""

from __future__ import annotations

import os
import weakref

import torch
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator
from detectron2.solver import build_optimizer as build_stock_optimizer
from detectron2.solver.build import reduce_param_groups
from torch import nn

from pwlu_det.activations.build import activation_parameters, convolution_biases
from pwlu_det.checkpoint import Checkpointer
from pwlu_det.config import check_phase1_iters
from pwlu_det.phases import TwoPhaseHook


def build_optimizer(cfg, model: nn.Module) -> torch.optim.Optimizer:
    """detectron2's optimiser, with a parameter group of its own for what activations learn pointwise.

    That group has the learning rate ``SOLVER.BASE_LR * MODEL.ACTIVATION.LR_FACTOR`` and the weight decay
    ``MODEL.ACTIVATION.WEIGHT_DECAY``. The convolutions and norms inside of F-ReLU and Meta-ACON are
    optimised as all others are, but as in their authors' code no bias of these convolutions is decayed.
    """
    optimizer = build_stock_optimizer(cfg, model)
    own = {
        "params": [p for p in activation_parameters(model) if p.requires_grad],
        "lr": cfg.SOLVER.BASE_LR * cfg.MODEL.ACTIVATION.LR_FACTOR,
        "weight_decay": cfg.MODEL.ACTIVATION.WEIGHT_DECAY,
    }
    biases = {"params": [p for p in convolution_biases(model) if p.requires_grad], "weight_decay": 0.0}
    if own["params"] or biases["params"]:
        groups = reduce_param_groups([*optimizer.param_groups, own, biases])
        optimizer.param_groups.clear()
        for group in groups:
            optimizer.add_param_group(group)
    return optimizer


def build_phase_hook(cfg, data_loader) -> TwoPhaseHook | None:
    """The hook for ``trainer.register_hooks``, made of ``trainer.cfg`` and ``trainer.data_loader``.

    None where the activation is not PWLU.

    Raises:
        ConfigError: phase I would last as long as the training.
    """
    node = cfg.MODEL.ACTIVATION.PWLU
    if cfg.MODEL.ACTIVATION.NAME != "pwlu":
        return None
    if not node.REALIGN:
        return TwoPhaseHook(0)  # ends phase I for sites that MODEL.WEIGHTS has left in it
    if node.PHASE1_ITERS >= 0:
        key, phase1_iters = "PHASE1_ITERS", node.PHASE1_ITERS
    else:
        key = "PHASE1_EPOCHS"
        phase1_iters = node.PHASE1_EPOCHS * _num_images(data_loader) // cfg.SOLVER.IMS_PER_BATCH
    check_phase1_iters(phase1_iters, f"MODEL.ACTIVATION.PWLU.{key}", cfg.SOLVER.MAX_ITER)
    return TwoPhaseHook(phase1_iters)


class Trainer(DefaultTrainer):
    """Trains, evaluates and resumes any detectron2 config; adds :class:`TwoPhaseHook` where PWLU is used."""

    def build_hooks(self):
        # DefaultTrainer has just made its own checkpointer; the hooks, and loading, are to use the safe one.
        self.checkpointer = Checkpointer(self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        return [build_phase_hook(self.cfg, self.data_loader), *super().build_hooks()]

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        return COCOEvaluator(
            dataset_name, output_dir=output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        )


def _num_images(data_loader) -> int:
    """Number of training images, after detectron2 has dropped those without annotations."""
    # A detectron2 loader wraps batching over sampling over the data set, each in an attribute `dataset`.
    while hasattr(data_loader, "dataset"):
        data_loader = data_loader.dataset
    return len(data_loader)
