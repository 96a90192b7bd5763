"""The training data as a stream that can be resumed at any batch.

On resume, detectron2 restarts its sampler, its aspect-ratio buckets and its workers' random generators. Here
the whole stream is a function of ``SEED``: skipping the first n batches yields exactly the batches that would
have followed them.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from detectron2.data import build_detection_train_loader
from detectron2.data.build import trivial_batch_collator
from detectron2.data.common import ToIterableDataset
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from pwlu_det.data.mapper import build_mapper
from pwlu_det.data.proposals import own_proposal_reader
from pwlu_det.engine.random_state import seeded

logger = logging.getLogger(f"detectron2.{__name__}")

Draw = tuple[int, int]
"""An image's position in the stream shared by all processes, and its index in the dataset."""


def build_train_loader(cfg, mapper: Callable[[dict], dict] | None = None) -> DataLoader:
    """A resumable version of detectron2's training loader (dataset, sampler, mapper, aspect-ratio grouping).

    The random numbers for an image depend only on ``SEED`` and the image's position in the stream, so neither
    ``NUM_WORKERS`` nor the number of processes changes them. Without grouping, the batches of all processes
    together are those of one process. For an ``IterableDataset``, detectron2's own loader is returned, which
    cannot resume exactly.

    Args:
        cfg: a detectron2 config.
        mapper: maps an entry of the dataset to the model's input. Default: detectron2's mapper, with errors
            that name the image. Its random numbers must come from NumPy, torch or Python's ``random``.
    """
    mapper = mapper or build_mapper(cfg, is_train=True)
    # The mapper works on one image at a time, so it can run last: batches are formed before images are read.
    with seeded(cfg.SEED), own_proposal_reader():  # detectron2's samplers draw their seed from NumPy
        loader = build_detection_train_loader(cfg, mapper=_identity)
    while not isinstance(loader, ToIterableDataset):  # the innermost layer: sampler and dataset
        if not hasattr(loader, "dataset"):
            return build_detection_train_loader(cfg, mapper=mapper)
        loader = loader.dataset
    sampler, images = loader.sampler, loader.dataset
    batches = BatchSampler(
        sampler,
        batch_size=cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(),
        wide=_find_wide(images) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None,
    )
    return DataLoader(
        SeededImages(images, mapper, cfg.SEED),
        batch_sampler=batches,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        worker_init_fn=_leave_sigterm_to_the_parent,
        generator=torch.Generator(),  # the model also uses the default one
    )


def enter_stream(loader, first_batch: int) -> None:
    """Make the next iterator of a loader from :func:`build_train_loader` skip the first batches.

    Any other loader restarts; a warning is logged if there is something to skip.
    """
    if isinstance(getattr(loader, "batch_sampler", None), BatchSampler):
        loader.batch_sampler.first_batch = first_batch
    elif first_batch > 0:
        logger.warning(
            "The data loader was not built by pwlu_det.build_train_loader, so its data stream restarts: the "
            "weights will not be exactly those of an uninterrupted run."
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


def _find_wide(images: Dataset) -> list[bool] | None:
    """For each image, whether it is wider than high; None if the dataset has no sizes."""
    entries = [images[i] for i in range(len(images))]
    if any("width" not in entry or "height" not in entry for entry in entries):
        logger.warning("DATALOADER.ASPECT_RATIO_GROUPING has no effect: the dataset has no width and height.")
        return None
    return [entry["width"] > entry["height"] for entry in entries]


def _leave_sigterm_to_the_parent(worker: int) -> None:
    """Make a worker ignore SIGTERM unless its parent sends it.

    Clusters send SIGTERM to all processes of a run, and the trainer still needs its workers after that.
    """

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=wait, daemon=True).start()
