#!/usr/bin/env python
"""Train or evaluate a detectron2 config; takes what detectron2's own train_net.py takes."""

from __future__ import annotations

from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from pwlu_det.checkpoint import Checkpointer
from pwlu_det.config import ConfigError, check_config, check_files, check_training, load_config
from pwlu_det.trainer import Trainer


def main(args, cfg):
    default_setup(cfg, args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        Checkpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def invoke_main() -> None:
    parser = default_argument_parser()
    args = parser.parse_args()
    try:
        cfg = load_config(args.config_file, args.opts)
        cfg.freeze()
        check_config(cfg, args.num_gpus * args.num_machines)
        if not args.eval_only:
            check_training(cfg)
        check_files(cfg, resume=args.resume, training=not args.eval_only)
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args, cfg),
        )
    except ConfigError as error:
        parser.error(str(error))


if __name__ == "__main__":
    invoke_main()
