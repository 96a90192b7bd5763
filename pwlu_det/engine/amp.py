"""Mixed-precision training steps on any device (``SOLVER.AMP``)."""

from __future__ import annotations

import time

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer

from pwlu_det.config import on_cpu


def build_step_trainer(cfg, model, data_loader, optimizer) -> SimpleTrainer:
    """Build the trainer that runs the training steps: in float32, or with autocast if ``SOLVER.AMP`` says so.

    Autocast uses float16 with loss scaling or bfloat16 without it on a GPU, and bfloat16 on a CPU.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return SimpleTrainer(model, data_loader, optimizer)
    if on_cpu(cfg):
        return CPUAutocastTrainer(model, data_loader, optimizer)
    dtype = getattr(torch, cfg.SOLVER.AMP.DTYPE)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    return AMPTrainer(model, data_loader, optimizer, grad_scaler=scaler, precision=dtype)


class CPUAutocastTrainer(SimpleTrainer):
    """SimpleTrainer with bfloat16 autocast; detectron2's AMPTrainer requires CUDA."""

    def run_step(self) -> None:
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast("cpu", torch.bfloat16):
            losses = self.model(data)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.optimizer.step()
