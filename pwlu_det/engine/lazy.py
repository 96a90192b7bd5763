"""Training by detectron2's lazy configs: the activations, their optimizer groups, and the two phases."""

from __future__ import annotations

import logging

from detectron2.config import instantiate
from detectron2.engine import AMPTrainer, SimpleTrainer, create_ddp_model, default_writers, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn

from pwlu_det.activations import PWLU
from pwlu_det.activations.registry import ACTIVATIONS, build_activation
from pwlu_det.backbone import convert_activations, convert_heads
from pwlu_det.checkpoint.checkpointer import Checkpointer
from pwlu_det.engine.phases import TwoPhaseHook

logger = logging.getLogger(f"detectron2.{__name__}")


def build_model(cfg) -> nn.Module:
    """Build ``cfg.model`` with the activations of ``cfg.activation``, and set the optimizer's overrides.

    ``cfg.activation`` has ``name``, ``options`` (arguments of the activation's constructor), ``stages``,
    ``positions``, ``heads``, ``num_frozen`` (frozen stages of the ResNet keep ReLU), ``weight_decay``,
    ``lr_factor``, and ``phase1_iters``; if that is 0, PWLUs learn from the start.
    """
    own = cfg.activation
    model = instantiate(cfg.model)

    def build(num_channels: int) -> nn.Module:
        activation = build_activation(own.name, num_channels, **own.options)
        if isinstance(activation, PWLU) and own.phase1_iters > 0:
            activation.begin_collecting()
        return activation

    convert_activations(
        model.backbone, build, list(own.stages), list(own.positions), num_frozen=own.num_frozen
    )
    if own.heads:
        convert_heads(model, build, list(own.heads))
    activations = [m for m in model.modules() if isinstance(m, ACTIVATIONS[own.name])]
    names = {name for activation in activations for name, _ in activation.named_parameters(recurse=False)}
    override = {"weight_decay": own.weight_decay, "lr": cfg.optimizer.lr * own.lr_factor}
    cfg.optimizer.params.overrides = dict.fromkeys(names, override)
    return model


def evaluate(cfg, model: nn.Module) -> dict | None:
    """The results of ``cfg.dataloader.evaluator``, if there is one."""
    if "evaluator" not in cfg.dataloader:
        return None
    results = inference_on_dataset(
        model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    )
    print_csv_format(results)
    return results


def train(cfg, resume: bool) -> nn.Module:
    """The training of detectron2's ``lazyconfig_train_net.py``, with :class:`TwoPhaseHook`."""
    model = build_model(cfg).to(cfg.train.device)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    model = create_ddp_model(model, **cfg.train.ddp)
    trainer = (AMPTrainer if cfg.train.amp.enabled else SimpleTrainer)(model, loader, optimizer)
    checkpointer = Checkpointer(model, cfg.train.output_dir, trainer=trainer)
    main = comm.is_main_process()
    trainer.register_hooks(
        [
            TwoPhaseHook(cfg.activation.phase1_iters) if cfg.activation.name == "pwlu" else None,
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if main else None,
            hooks.EvalHook(cfg.train.eval_period, lambda: evaluate(cfg, model)),
            hooks.PeriodicWriter(
                default_writers(cfg.train.output_dir, cfg.train.max_iter), period=cfg.train.log_period
            )
            if main
            else None,
        ]
    )
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    start = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
    trainer.train(start, cfg.train.max_iter)
    return model
