#!/usr/bin/env python
"""Train or evaluate a model, with the same arguments as detectron2's train_net.py."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from pwlu_det.checkpoint.checkpointer import Checkpointer, find_resumable
from pwlu_det.config import load_config, on_cpu
from pwlu_det.engine.failures import explain, explain_exit
from pwlu_det.engine.launch import launch, num_processes
from pwlu_det.engine.process_watch import share_cores, watch_processes
from pwlu_det.engine.resume import settle_seed
from pwlu_det.engine.run_lock import lock_output_dir
from pwlu_det.engine.trainer import Trainer
from pwlu_det.errors import CheckpointError, ConfigError, PwluDetError
from pwlu_det.preflight import check_config, check_files, check_training

logger = logging.getLogger("detectron2.train_net")
WRONG_USE, FAILED = 2, 1  # exit status, as in argparse and Python


def main(args, cfg, notes, train):
    if on_cpu(cfg):
        share_cores(comm.get_local_size())
    try:
        with watch_processes():
            return evaluate(args, cfg, notes) if args.eval_only else train(args, cfg, notes)
    except Exception as error:  # detectron2 has logged the iteration
        message = explain(error)
        if message is None:
            raise
        # Each process finds most faults, but only one finds that an image is broken or the disk full.
        if comm.is_main_process() or not isinstance(error, (CheckpointError, ConfigError)):
            print(f"{sys.argv[0]}: error: {message}", file=sys.stderr)
        sys.exit(WRONG_USE if isinstance(error, PwluDetError) else FAILED)


def set_up(args, cfg, notes):
    default_setup(cfg, args)
    for note in notes:
        logger.info(note)


def train(args, cfg, notes):
    with lock_output_dir(cfg.OUTPUT_DIR):
        resumable = find_resumable(cfg.OUTPUT_DIR) if args.resume else None
        cfg = settle_seed(cfg, resumable)
        set_up(args, cfg, notes)
        trainer = Trainer(cfg, resumable)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()


def evaluate(args, cfg, notes):
    set_up(args, cfg, notes)
    model = Trainer.build_model(cfg)
    Checkpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_tta(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def invoke_main(train: Callable = train) -> None:
    """Run the command.

    Args:
        train: a function that is called instead of :func:`train`, in each process.
    """
    parser = default_argument_parser()
    args = parser.parse_args()
    try:
        number = num_processes(args)
        cfg = load_config(args.config_file, args.opts)
        cfg.freeze()
        check_config(cfg, number)
        if not args.eval_only:
            check_training(cfg, number)
        notes = check_files(cfg, resume=args.resume, training=not args.eval_only)
    except PwluDetError as error:
        parser.error(str(error))
    try:
        launch(main, args, (args, cfg, notes, train))
    except ProcessExitedException as error:
        message, status = explain_exit(error, first_rank=args.machine_rank * args.num_gpus)
        if message:
            print(f"{sys.argv[0]}: error: {message}", file=sys.stderr)
        sys.exit(status)


if __name__ == "__main__":
    invoke_main()
