"""Parameter groups for activations, and schedules."""

from __future__ import annotations

from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver import build_lr_scheduler as build_stock_lr_scheduler
from detectron2.solver import build_optimizer as build_stock_optimizer
from detectron2.solver.build import reduce_param_groups
from fvcore.common.param_scheduler import LinearParamScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pwlu_det.activations import ACTIVATIONS
from pwlu_det.activations.parameters import hide_while_stepping
from pwlu_det.activations.registry import get_activation
from pwlu_det.backbone.heads import find_head
from pwlu_det.errors import ConfigError


def build_optimizer(cfg, model: nn.Module) -> Optimizer:
    """detectron2's optimizer, with a separate parameter group for the activations' pointwise parameters.

    That group has the learning rate ``SOLVER.BASE_LR * MODEL.ACTIVATION.LR_FACTOR`` and the weight decay
    ``MODEL.ACTIVATION.WEIGHT_DECAY``. Convolutions and norms inside F-ReLU and Meta-ACON are optimized like
    all others, except that the convolutions' biases are not decayed, as in the authors' code.
    """
    check_has_sites(cfg, model)
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
        # Clipping by value fails on parameters without a gradient, such as those of FPN levels no head uses.
        hide_while_stepping(optimizer, lambda: [p for p in _parameters(optimizer) if p.grad is None])
    return optimizer


def build_lr_scheduler(cfg, optimizer: Optimizer) -> LRScheduler:
    """detectron2's schedule of the learning rate, or for "WarmupLinearLR" a linear decay to 0."""
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != "WarmupLinearLR":
        return build_stock_lr_scheduler(cfg, optimizer)
    schedule = WarmupParamScheduler(
        LinearParamScheduler(1.0, 0.0),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, schedule, solver.MAX_ITER)


def check_has_sites(cfg, model: nn.Module) -> None:
    """Check that a model has the activation of ``MODEL.ACTIVATION``, also in each of its ``HEADS``.

    Raises:
        ConfigError: it does not, because its builder ignores ``MODEL.ACTIVATION``.
    """
    name = cfg.MODEL.ACTIVATION.NAME
    if name == "relu":
        return
    if not _has(model, name):
        raise ConfigError(
            f"MODEL.ACTIVATION.NAME is {name!r}, but the model has no such activation: MODEL.BACKBONE.NAME "
            f"{cfg.MODEL.BACKBONE.NAME!r} must be one of the build_act_* backbones, or call "
            "convert_activations"
        )
    lacking = [head for head in cfg.MODEL.ACTIVATION.HEADS if not _has(find_head(model, head), name)]
    if lacking:
        raise ConfigError(
            f"MODEL.ACTIVATION.HEADS is {cfg.MODEL.ACTIVATION.HEADS}, but {', '.join(lacking)} of the model "
            f"has no {name!r}: MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE!r} must be one of the "
            "architectures whose name starts with Act, or call convert_heads"
        )


def _has(module: nn.Module | None, activation: str) -> bool:
    modules = () if module is None else module.modules()
    return any(isinstance(m, get_activation(activation)) for m in modules)


def activation_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The pointwise parameters of a model's activations, including frozen ones.

    Convolutions and norms inside F-ReLU and Meta-ACON are excluded.
    """
    return [p for activation in _activations(model) for p in activation.parameters(recurse=False)]


def convolution_biases(model: nn.Module) -> list[nn.Parameter]:
    """The biases of the convolutions inside activations, which the authors do not decay."""
    inner = (module for activation in _activations(model) for module in activation.children())
    return [m.bias for m in inner if isinstance(m, nn.Conv2d) and m.bias is not None]


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _activations(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, tuple(ACTIVATIONS.values()))]
