"""detectron2's DefaultTrainer with two-phase learning, optimizer groups, exact resume and COCO evaluation."""

from __future__ import annotations

import logging
import os
import weakref

import torch
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, TrainerBase, create_ddp_model, hooks
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

from pwlu_det.checkpoint.checkpointer import Checkpointer, Resumable
from pwlu_det.collect_env import collect_env
from pwlu_det.config import architecture, on_cpu
from pwlu_det.data.evaluators import build_evaluator
from pwlu_det.data.mapper import build_mapper
from pwlu_det.data.proposals import own_proposal_reader
from pwlu_det.engine.amp import build_step_trainer
from pwlu_det.engine.data_stream import build_train_loader
from pwlu_det.engine.optimizer import build_lr_scheduler, build_optimizer, check_has_sites
from pwlu_det.engine.phases import build_phase_hook
from pwlu_det.engine.resume import ExactResume, ResumablePreciseBN, settle_seed, warn_of_changes
from pwlu_det.engine.run_lock import lock_output_dir
from pwlu_det.engine.stop import StopOnSignal

# The parts of each architecture that use the backbone's features.
_HEADS = {
    "RetinaNet": ("RETINANET",),
    "GeneralizedRCNN": ("RPN", "ROI_HEADS"),
    "ProposalNetwork": ("RPN",),
    "SemanticSegmentor": ("SEM_SEG_HEAD",),
    "PanopticFPN": ("RPN", "ROI_HEADS", "SEM_SEG_HEAD"),
    "Classifier": ("CLASSIFIER",),
}

# A child of detectron2's logger, so that it uses detectron2's handlers and log files.
logger = logging.getLogger(f"detectron2.{__name__}")


class Trainer(DefaultTrainer):
    """Trains, evaluates and resumes any detectron2 config; adds :class:`TwoPhaseHook` if PWLU is used.

    A run that is killed and resumed ends with the weights of an uninterrupted run, on a CPU bit for bit.
    Several processes and ``SOLVER.AMP`` work on CPUs as well as on GPUs.

    Args:
        cfg: a detectron2 config. A negative ``SEED`` is replaced by that of the resumed run or a random one.
        resumable: the checkpoint for :meth:`resume_or_load`, if already known. Default: the newest one in
            ``OUTPUT_DIR``.
    """

    def __init__(self, cfg, resumable: Resumable | None = None):
        TrainerBase.__init__(self)  # DefaultTrainer's own constructor requires GPUs for DDP and AMP
        cfg = self.auto_scale_workers(settle_seed(cfg, resumable), comm.get_world_size())
        self.cfg, self.start_iter, self.max_iter = cfg, 0, cfg.SOLVER.MAX_ITER
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = _distribute(model, cfg)
        self._trainer = build_step_trainer(cfg, model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, resumable, trainer=weakref.proxy(self))
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[hooks.HookBase | None]:
        """detectron2's default hooks and ours, in the order they run."""
        cfg = self.cfg
        main = comm.is_main_process()
        return [
            build_phase_hook(cfg, self.data_loader),
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            self._build_precise_bn(),
            ExactResume(cfg),  # after all hooks that run the model in training, before checkpointing
            hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD) if main else None,
            StopOnSignal(),  # before evaluation, for which there may be no time left
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate),
            hooks.EvalHook(0, self._evaluate_with_tta) if cfg.TEST.AUG.ENABLED else None,
            hooks.PeriodicWriter(self.build_writers(), period=20) if main else None,
        ]

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume from ``OUTPUT_DIR`` if requested and possible, else load ``MODEL.WEIGHTS``."""
        resume = resume and bool(self.checkpointer.resumable.file)
        if resume:
            warn_of_changes(self.checkpointer.resumable, self.cfg)
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume:
            self.start_iter = self.iter + 1  # self.iter is the last finished iteration

    def train(self):
        logger.info(f"Environment of pwlu_det:\n{collect_env()}")
        with lock_output_dir(self.cfg.OUTPUT_DIR):
            if self.start_iter >= self.max_iter:
                self._write_final()
            return super().train()

    def run_step(self) -> None:
        # The focal loss is in TorchScript, which rounds differently in its first calls than once optimized:
        # a resumed run would differ in the last bits.
        with torch.jit.optimized_execution(not on_cpu(self.cfg)):
            super().run_step()

    @classmethod
    def build_model(cls, cfg):
        model = super().build_model(cfg)
        check_has_sites(cfg, model)
        return model

    @classmethod
    def build_train_loader(cls, cfg):
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        batch = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size() if architecture(cfg) == "Classifier" else 1
        mapper = build_mapper(cfg, is_train=False)
        with own_proposal_reader():
            return build_detection_test_loader(cfg, dataset_name, mapper=mapper, batch_size=max(batch, 1))

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        return build_evaluator(cfg, dataset_name, output_folder or os.path.join(cfg.OUTPUT_DIR, "inference"))

    @classmethod
    def test_with_tta(cls, cfg, model) -> dict:
        """Evaluate with the test-time augmentation of ``TEST.AUG``; result keys end in ``_TTA``."""
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return {f"{key}_TTA": value for key, value in results.items()}

    def _write_final(self) -> None:
        """Write the final checkpoint of a run that was resumed from its last iteration.

        It was killed before that file was whole, or the file was damaged afterwards.
        """
        if os.path.basename(self.checkpointer.resumable.file) != "model_final.pth":
            self.checkpointer.save("model_final", iteration=self.iter)

    def _build_precise_bn(self) -> ResumablePreciseBN | None:
        cfg = self.cfg.clone()
        if not (cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model)):
            return None
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0  # PreciseBN runs rarely, and idle workers would hold memory
        loader = self.build_train_loader(cfg)
        return ResumablePreciseBN(cfg.TEST.EVAL_PERIOD, self.model, loader, cfg.TEST.PRECISE_BN.NUM_ITER)

    def _evaluate(self) -> dict:
        self._last_eval_results = self.test(self.cfg, self.model)  # detectron2 verifies these after the run
        return self._last_eval_results

    def _evaluate_with_tta(self) -> dict:
        results = self.test_with_tta(self.cfg, self.model)
        self._last_eval_results = {**self._last_eval_results, **results}
        return results


def _distribute(model: nn.Module, cfg) -> nn.Module:
    """Wrap the model in DDP if there are several processes."""
    devices = {"device_ids": None} if on_cpu(cfg) else {}
    # FPN levels that no head uses, as in the quickstart, leave parameters without a gradient.
    used = {level for part in _HEADS.get(architecture(cfg), ()) for level in cfg.MODEL[part].IN_FEATURES}
    unused = set(model.backbone.output_shape()) - used
    return create_ddp_model(model, broadcast_buffers=False, find_unused_parameters=bool(unused), **devices)
