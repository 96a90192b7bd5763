"""The training data as a stream that can be entered at any batch.

detectron2 starts its sampler, its buckets and its workers' generators over at a resume. Here the whole stream
is a function of ``SEED``, and entering it behind n batches gives what follows them, bit for bit.
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
"""The position of an image in the stream that all processes share, and its index in the data set."""


def build_train_loader(cfg) -> DataLoader:
    """detectron2's training loader (data set, sampler, mapper, grouping by aspect ratio), which can resume.

    Set ``loader.batch_sampler.first_batch`` to enter the stream behind that many batches. What is drawn for
    an image depends on ``SEED`` and the image's position in the stream alone, so neither ``NUM_WORKERS`` nor
    the number of processes changes it; without grouping, the processes' batches together are those of one.
    """
    # As the mapper works on one image at a time, it can come last, and batches be made of what is not read.
    with seeded(cfg.SEED):  # detectron2's samplers draw their seed from NumPy
        loader = build_detection_train_loader(cfg, mapper=_as_it_is)
    while not isinstance(loader, ToIterableDataset):  # the pair of sampler and data set, at the bottom
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
        generator=torch.Generator(),  # else it draws from the one that the model uses
    )


class BatchSampler(Sampler):
    """Batches of draws, without end, from one of detectron2's infinite samplers.

    Args:
        sampler: this process's every ``world size``-th index of the stream.
        batch_size: of this process.
        wide: whether each image is wider than high, where batches shall have images of one kind only.

    Attributes:
        first_batch: where an iterator begins.
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
    """Images as a mapper makes them, with random numbers that depend on the draw alone."""

    def __init__(self, images: Dataset, mapper, seed: int):
        self.images, self.mapper, self.seed = images, mapper, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> dict:
        position, index = draw
        with seeded(self.seed, position):
            return self.mapper(self.images[index])


def _as_it_is(image: dict) -> dict:
    return image
