import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from PIL import Image

from pwlu_det.engine.data_stream import build_train_loader
from pwlu_det.engine.random_state import seed_all, seeded

NUM_IMAGES = 11


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The name of a registered dataset of landscape and portrait images."""
    folder, chance, name = tmp_path_factory.mktemp("images"), np.random.default_rng(0), "stream_test"
    dicts = []
    for i in range(NUM_IMAGES):
        width, height = (40, 30) if i % 3 else (30, 40)
        pixels = chance.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        box = {"bbox": [3.0, 4, 20, 20], "bbox_mode": 0, "category_id": 0}
        dicts.append({"file_name": str(folder / f"{i}.png"), "image_id": i, "width": width, "height": height})
        dicts[-1]["annotations"] = [box]
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).thing_classes = ["thing"]
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture
def stream_cfg(cfg, images):
    cfg.DATASETS.TRAIN = (images,)
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.ASPECT_RATIO_GROUPING = 0, False
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (24, 28, 32), 100
    cfg.SEED = 5
    return cfg


def batches(cfg, number: int, first: int = 0) -> list[list[tuple]]:
    """Batches from the loader: the id, the shape and the sum of the pixels of each image."""
    loader = build_train_loader(cfg)
    loader.batch_sampler.first_batch = first
    found = []
    for batch in itertools.islice(loader, number):
        found.append([(b["image_id"], tuple(b["image"].shape), int(b["image"].sum())) for b in batch])
    return found


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize(
    "sampler", ["TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"]
)
def test_stream_can_be_resumed_at_any_batch(stream_cfg, sampler, grouping, workers):
    stream_cfg.DATALOADER.SAMPLER_TRAIN, stream_cfg.DATALOADER.RANDOM_SUBSET_RATIO = sampler, 0.8
    stream_cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    whole = batches(stream_cfg, 12)
    stream_cfg.DATALOADER.NUM_WORKERS = workers
    for first in (0, 1, 7):
        np.random.seed(first)  # independent of the state of the global generators
        torch.manual_seed(first)
        assert batches(stream_cfg, 12 - first, first) == whole[first:]
    stream_cfg.SEED = 6
    assert batches(stream_cfg, 12) != whole


def test_each_epoch_has_every_image_once_with_new_augmentation(stream_cfg):
    stream_cfg.SOLVER.IMS_PER_BATCH = 1
    epochs = [image for (image,) in batches(stream_cfg, 3 * NUM_IMAGES)]
    ids = [number for number, *_ in epochs]
    for epoch in range(3):
        assert sorted(ids[epoch * NUM_IMAGES : (epoch + 1) * NUM_IMAGES]) == list(range(NUM_IMAGES))
    assert len({size for number, size, _ in epochs if number == 1}) > 1  # drawn from three sizes


def test_batches_are_grouped_by_aspect_ratio(stream_cfg):
    stream_cfg.DATALOADER.ASPECT_RATIO_GROUPING = True
    for batch in batches(stream_cfg, 20):
        assert len({width > height for _, (_, height, width), _ in batch}) == 1


@pytest.mark.parametrize("num_processes", [2, 4])
def test_batches_of_all_processes_together_match_a_single_process(stream_cfg, monkeypatch, num_processes):
    whole = batches(stream_cfg, 6)
    monkeypatch.setattr(comm, "get_world_size", lambda: num_processes)
    monkeypatch.setattr(comm, "all_gather", lambda value: [value])
    parts = []
    for rank in range(num_processes):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(batches(stream_cfg, 4, first=2))
    together = [sorted(itertools.chain(*part)) for part in zip(*parts)]
    assert together == [sorted(batch) for batch in whole[2:]]


def test_loader_does_not_change_the_global_generators(stream_cfg):
    loader = build_train_loader(stream_cfg)
    seed_all(1, 2)
    expected = random.random(), np.random.rand(), float(torch.rand(1))
    seed_all(1, 2)
    next(iter(loader))
    assert (random.random(), np.random.rand(), float(torch.rand(1))) == expected


def test_every_number_of_a_seed_key_matters():
    def draw(*key):
        with seeded(*key):
            return random.random(), np.random.rand(), float(torch.rand(1))

    assert draw(1, 2, 3) == draw(1, 2, 3)
    keys = [(1, 2, 3), (2, 1, 3), (1, 2), (1, 2, 0), (1,), (1, 2, 4), (2**31 + 5, 2, 3)]
    for numbers in zip(*(draw(*key) for key in keys)):
        assert len(set(numbers)) == len(keys)
