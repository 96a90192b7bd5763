#!/usr/bin/env python
"""Train and evaluate by a lazy config (configs/lazy), as detectron2's tool of this name."""

from __future__ import annotations

from detectron2.config import LazyConfig
from detectron2.engine import default_argument_parser, default_setup, launch

from pwlu_det.checkpoint.checkpointer import Checkpointer
from pwlu_det.engine.lazy import build_model, evaluate, train


def main(args) -> None:
    cfg = LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts)
    default_setup(cfg, args)
    if args.eval_only:
        model = build_model(cfg).to(cfg.train.device)
        Checkpointer(model).load(cfg.train.init_checkpoint)
        evaluate(cfg, model)
    else:
        train(cfg, args.resume)


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    urls = arguments.num_machines, arguments.machine_rank, arguments.dist_url
    launch(main, arguments.num_gpus, *urls, args=(arguments,))
