"""The commands of ``tools/benchmark.py``: tables of activations alone, and of models."""

from __future__ import annotations

import argparse
import importlib.util
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pwlu_det.activations.registry import get_activation
from pwlu_det.benchmark import ops
from pwlu_det.benchmark.measure import Clock, measure
from pwlu_det.benchmark.table import table
from pwlu_det.config import load_config

LAYOUTS = {"contiguous": (False,), "channels_last": (True,), "both": (False, True)}


@dataclass(frozen=True)
class Sites:
    """A detector and the size of its input, which determine the shapes of its activation sites."""

    name: str
    config_file: str
    batch: int
    height: int
    width: int
    """of the images, in pixels"""


def op_tables(args: argparse.Namespace) -> Iterator[str]:
    """Yield the tables of ``tools/benchmark.py op``, given its arguments."""
    yield ops.LEGEND
    if not ops.installed_peers():
        yield f"Not installed, so not compared: {', '.join(ops.PEERS)}."
    yield ""
    clock = Clock(args.device)
    for shape, num_sites in op_shapes(args.shapes).items():
        for channels_last in LAYOUTS[args.layout]:
            setting = ops.Setting(
                shape, channels_last, getattr(torch, args.dtype), args.device, args.num_intervals
            )
            title = f"{'x'.join(map(str, shape))} {args.dtype}" + ", channels_last" * channels_last
            if num_sites:
                title += f", {num_sites} sites of {args.shapes.name}"
            contenders = ops.op_contenders(setting, args.contenders, args.baseline)
            yield table(title, measure(contenders, clock, args.rounds, args.seconds))


def op_shapes(chosen: Sites | tuple[int, ...]) -> dict[tuple[int, ...], int]:
    """The shapes, and the number of sites with each (0 for a shape given by the user)."""
    if isinstance(chosen, tuple):
        return {chosen: 0}
    return site_shapes(load_config(chosen.config_file, []), chosen.batch, chosen.height, chosen.width)


def site_shapes(cfg, batch: int, height: int, width: int) -> Counter[tuple[int, ...]]:
    """Count the input shapes of a backbone's activations.

    Args:
        cfg: a config with a converted backbone and the activation relu.
        batch: number of images of ``height`` x ``width`` pixels.
    """
    from detectron2.modeling import build_backbone

    shapes: Counter[tuple[int, ...]] = Counter()
    with torch.device("meta"), torch.no_grad():
        backbone = build_backbone(cfg).eval()
        for module in backbone.modules():
            if isinstance(module, nn.ReLU):
                module.register_forward_pre_hook(lambda _, inputs: shapes.update([tuple(inputs[0].shape)]))
        backbone(torch.empty(batch, 3, height, width))
    return shapes


def model_tables(args: argparse.Namespace) -> Iterator[str]:
    """Yield the tables of ``tools/benchmark.py model``, given its arguments.

    Raises:
        ValueError: a package is missing or an argument is wrong; the message says which.
    """
    for package in ("detectron2", "torchvision"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"the model command requires {package}, which is not installed")
    if not args.config_file and not args.network:
        raise ValueError("the model command requires --config-file or --network")
    from pwlu_det.benchmark import models, networks  # these need both packages

    activations = list(dict.fromkeys(["relu", *args.activations]))
    for name in activations:
        get_activation(name)
    device = ["MODEL.DEVICE", args.device]
    configs = {path: load_config(path, [*device, *args.opts]) for path in args.config_file}
    for path, cfg in configs.items():
        height, width = args.image_size or (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        batch = args.batch or 2
        contenders = [
            models.model_contender(
                row + suffix, models.detector(cfg, name, fuse, batch, height, width), phase1_iters
            )
            for name in activations
            for suffix, fuse in models.variants(name, args.both).items()
            for row, phase1_iters in models.phases(name).items()
        ]
        yield _model_table(args, Path(path).stem, (batch, height, width), contenders)
    for network in args.network:
        height, width = args.image_size or (224, 224)
        size = (args.batch or 64, height, width)
        contenders = [
            models.model_contender(
                row + suffix, networks.network(network, name, fuse, *size, args.device), phase1_iters
            )
            for name in activations
            for suffix, fuse in models.variants(name, args.both).items()
            for row, phase1_iters in models.phases(name).items()
        ]
        stock = networks.network(network, networks.AS_PUBLISHED, False, *size, args.device)
        contenders.append(models.model_contender(networks.AS_PUBLISHED, stock, None))
        yield _model_table(args, network, size, contenders)


def _model_table(args: argparse.Namespace, name: str, size: tuple[int, ...], contenders: list) -> str:
    results = measure(contenders, Clock(args.device), args.rounds, args.seconds)
    return table(f"{name}, {'x'.join(map(str, size))}", results)
