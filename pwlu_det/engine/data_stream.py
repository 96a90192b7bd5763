"""The training data as a stream that can be resumed at any batch.

On resume, detectron2 restarts its sampler, its aspect-ratio buckets and its workers' random generators. Here
the whole stream is a function of ``SEED``: skipping the first n batches yields exactly the batches that would
have followed them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from detectron2.data import build_detection_train_loader
from detectron2.data.build import trivial_batch_collator
from detectron2.data.common import ToIterableDataset
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from pwlu_det.data.mapper import Mapper
from pwlu_det.engine.random_state import seeded

Draw = tuple[int, int]
"""An image's position in the stream shared by all processes, and its index in the data set."""


def build_train_loader(cfg) -> DataLoader:
    """A resumable version of detectron2's training loader (data set, sampler, mapper, aspect-ratio grouping).

    Set ``loader.batch_sampler.first_batch`` to skip that many batches. The random numbers for an image depend
    only on ``SEED`` and the image's position in the stream, so neither ``NUM_WORKERS`` nor the number of
    processes changes them. Without grouping, the batches of all processes together are those of one process.
    """
    # The mapper works on one image at a time, so it can run last: batches are formed before images are read.
    with seeded(cfg.SEED):  # detectron2's samplers draw their seed from NumPy
        loader = build_detection_train_loader(cfg, mapper=_identity)
    while not isinstance(loader, ToIterableDataset):  # the innermost layer: sampler and data set
        loader = loader.dataset
    sampler, images = loader.sampler, loader.dataset
    grouping = cfg.DATALOADER.ASPECT_RATIO_GROUPING
    batches = BatchSampler(
        sampler,
        batch_size=cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(),
        wide=[images[i]["width"] > images[i]["height"] for i in range(len(images))] if grouping else None,
    )
    return DataLoader(
        SeededImages(images, Mapper(cfg, is_train=True), cfg.SEED),
        batch_sampler=batches,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        generator=torch.Generator(),  # otherwise it would draw from the generator that the model uses
    )


class BatchSampler(Sampler):
    """An infinite sequence of batches of draws from one of detectron2's infinite samplers.

    Args:
        sampler: yields every ``world_size``-th index of the stream, those of this process.
        batch_size: batch size per process.
        wide: for each image, whether it is wider than high. If given, each batch has images of one kind only.

    Attributes:
        first_batch: the number of batches that a new iterator skips.
    """

    def __init__(self, sampler: Sampler, batch_size: int, wide: Sequence[bool] | None = None):
        self.sampler, self.batch_size, self.wide = sampler, batch_size, wide
        self.first_batch = 0

    def __iter__(self) -> Iterator[list[Draw]]:
        return itertools.islice(self._all(), self.first_batch, None)

    def _all(self) -> Iterator[list[Draw]]:
        buckets: tuple[list[Draw], list[Draw]] = ([], [])
        positions = itertools.count(comm.get_rank(), comm.get_world_size())
        for position, index in zip(positions, self.sampler):
            bucket = buckets[self.wide is not None and self.wide[index]]
            bucket.append((position, index))
            if len(bucket) == self.batch_size:
                yield bucket[:]
                bucket.clear()


class SeededImages(Dataset):
    """Applies a mapper to images, with random numbers that depend only on the draw."""

    def __init__(self, images: Dataset, mapper, seed: int):
        self.images, self.mapper, self.seed = images, mapper, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> dict:
        position, index = draw
        with seeded(self.seed, position):
            return self.mapper(self.images[index])


def _identity(image: dict) -> dict:
    return image
