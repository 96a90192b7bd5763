"""A toy regression that detectron2's trainer can train in milliseconds."""

from __future__ import annotations

import torch
from detectron2.engine import SimpleTrainer
from torch import nn

from pwlu_det import PWLU, TwoPhaseHook

BATCH = 8


def images(iteration: int, rank: int = 0, num_ranks: int = 1) -> torch.Tensor:
    """The batch of an iteration, or the part of one rank; shifted, so that bounds are not symmetric."""
    generator = torch.Generator().manual_seed(100 + iteration)
    batch = torch.randn(BATCH, 3, 5, 4, generator=generator) * 2 + 0.7
    return batch.chunk(num_ranks)[rank]


class Batches:
    """The batches from iteration ``start`` on."""

    def __init__(self, start: int = 0, rank: int = 0, num_ranks: int = 1):
        self.start, self.rank, self.num_ranks = start, rank, num_ranks

    def __iter__(self):
        for iteration in range(self.start, 1000):
            yield images(iteration, self.rank, self.num_ranks)


class Toy(nn.Module):
    """Two convolutions, two activations and a squared loss; records the inputs of its first activation."""

    def __init__(self, collecting: bool = True, **options):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.act1 = PWLU(6, **options)
        self.conv2 = nn.Conv2d(6, 4, 1)
        self.act2 = PWLU(4, channel_wise=False)
        self.inputs: list[torch.Tensor] = []
        if collecting:
            self.act1.begin_collecting()
            self.act2.begin_collecting()

    @property
    def sites(self) -> list[PWLU]:
        return [self.act1, self.act2]

    def forward(self, x):
        hidden = self.conv(x)
        if self.training and torch.is_grad_enabled():
            self.inputs.append(hidden.detach().clone())
        y = self.act2(self.conv2(self.act1(hidden)))
        return {"loss": (y - x.mean(1, keepdim=True)).square().mean()}


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)


def train(
    model, phase1_iters, max_iter, start=0, optimizer=None, hooks_before=(), hooks_after=(), loader=None
):
    """Train with the hook under test and the given hooks, and return the trainer."""
    trainer = SimpleTrainer(model, loader or Batches(start), optimizer or sgd(model))
    trainer.register_hooks([*hooks_before, TwoPhaseHook(phase1_iters), *hooks_after])
    trainer.train(start, max_iter)
    return trainer


def parameters(*sites: PWLU) -> dict[str, torch.Tensor]:
    return {f"{i}.{n}": p.detach().clone() for i, s in enumerate(sites) for n, p in s.named_parameters()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
