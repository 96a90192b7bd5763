"""detectron2's DefaultTrainer with the two phases, the optimiser groups and COCO evaluation."""

from __future__ import annotations

import os
import types
import weakref

import torch
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, TrainerBase, create_ddp_model
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer, PreciseBN
from detectron2.evaluation import COCOEvaluator
from detectron2.solver import build_optimizer as build_stock_optimizer
from detectron2.solver.build import reduce_param_groups
from detectron2.utils import comm
from torch import nn

from pwlu_det.activations.registry import activation_parameters, convolution_biases
from pwlu_det.checkpoint.checkpointer import Checkpointer
from pwlu_det.config import check_phase1_iters
from pwlu_det.data.mapper import Mapper
from pwlu_det.engine.amp import build_step_trainer
from pwlu_det.engine.data_stream import build_train_loader
from pwlu_det.engine.phases import TwoPhaseHook
from pwlu_det.engine.resume import ExactResume, settle_seed, warn_of_changes


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
    if cfg.SOLVER.CLIP_GRADIENTS.ENABLED and cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE == "value":
        _pass_over_unused(optimizer)
    return optimizer


def _pass_over_unused(optimizer: torch.optim.Optimizer) -> None:
    """Hide what has no gradient (of FPN levels that no head uses) from steps: clipping by value fails."""
    stock_step = type(optimizer).step

    def step(self, closure=None):
        whole = [group["params"] for group in self.param_groups]
        for group in self.param_groups:
            group["params"] = [p for p in group["params"] if p.grad is not None]
        try:
            return stock_step(self, closure)
        finally:
            for group, parameters in zip(self.param_groups, whole):
                group["params"] = parameters

    optimizer.step = types.MethodType(step, optimizer)  # a method, which is what schedulers wrap


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
    """Trains, evaluates and resumes any detectron2 config; adds :class:`TwoPhaseHook` where PWLU is used.

    A run that is killed and resumed ends with the weights of one that was not, on a CPU bit for bit. It
    trains on CPUs as on GPUs: in several processes, and with ``SOLVER.AMP``.
    """

    def __init__(self, cfg):
        TrainerBase.__init__(self)  # DefaultTrainer's own is for GPUs alone, where there is DDP or AMP
        cfg = self.auto_scale_workers(settle_seed(cfg), comm.get_world_size())
        self.cfg, self.start_iter, self.max_iter = cfg, 0, cfg.SOLVER.MAX_ITER
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = _distribute(model, cfg)
        self._trainer = build_step_trainer(cfg, model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.register_hooks(self.build_hooks())

    def build_hooks(self):
        hooks = [build_phase_hook(self.cfg, self.data_loader), *super().build_hooks()]
        behind_training = (PeriodicCheckpointer, EvalHook)
        first = next(i for i, hook in enumerate(hooks) if isinstance(hook, behind_training))
        return [*hooks[:first], ExactResume(self.cfg), *hooks[first:]]

    def resume_or_load(self, resume=True):
        resume = resume and bool(self.checkpointer.resumable)
        if resume:
            warn_of_changes(self.checkpointer.resumable, self.cfg)
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume:
            self.start_iter = self.iter + 1  # self.iter is the last one done
        for hook in self._hooks:
            if isinstance(hook, PreciseBN) and self.cfg.TEST.EVAL_PERIOD > 0:  # its data goes on, too
                passes = self.start_iter // self.cfg.TEST.EVAL_PERIOD
                hook._data_loader.batch_sampler.first_batch = passes * self.cfg.TEST.PRECISE_BN.NUM_ITER

    def run_step(self):
        # TorchScript, which the focal loss is in, rounds otherwise in its first runs than later: a resumed
        # run would differ in the last bits.
        with torch.jit.optimized_execution(self.cfg.MODEL.DEVICE != "cpu"):
            super().run_step()

    @classmethod
    def build_train_loader(cls, cfg):
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return build_detection_test_loader(cfg, dataset_name, mapper=Mapper(cfg, is_train=False))

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        return COCOEvaluator(
            dataset_name, output_dir=output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        )


def _distribute(model: nn.Module, cfg) -> nn.Module:
    """DDP where there are several processes."""
    devices = {"device_ids": None} if cfg.MODEL.DEVICE == "cpu" else {}
    # What makes levels of the FPN that no head uses, as in the quickstart, gets no gradient.
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        used = {*cfg.MODEL.RETINANET.IN_FEATURES}
    else:
        used = {*cfg.MODEL.RPN.IN_FEATURES, *cfg.MODEL.ROI_HEADS.IN_FEATURES}
    unused = set(model.backbone.output_shape()) - used
    return create_ddp_model(model, broadcast_buffers=False, find_unused_parameters=bool(unused), **devices)


def _num_images(data_loader) -> int:
    """Number of training images, after detectron2 has dropped those without annotations."""
    # A detectron2 loader wraps batching over sampling over the data set, each in an attribute `dataset`.
    while hasattr(data_loader, "dataset"):
        data_loader = data_loader.dataset
    return len(data_loader)
