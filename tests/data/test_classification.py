"""Datasets, images and accuracy of classifiers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from pwlu_det import ConfigError, DatasetError
from pwlu_det.data.classification import (
    ClassificationEvaluator,
    ClassificationMapper,
    register_image_folder,
)
from pwlu_det.data.dataset_check import check_datasets


@pytest.fixture
def image_folder(tmp_path):
    """Two classes of uniform images, 20 pixels wide and 10 high; the name of a dataset."""
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (20, 10), (100 * label, 0, 200)).save(tmp_path / name / f"{i}.png")
    name = f"image_folder_{tmp_path.name}"
    register_image_folder(name, str(tmp_path))
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture
def classifier_cfg(cfg, image_folder):
    cfg.MODEL.META_ARCHITECTURE = "Classifier"
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 2
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = "absolute", [8, 8]
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.RANDOM_FLIP = 10, "none"
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (image_folder,)
    return cfg


def test_image_folder(image_folder):
    entries = DatasetCatalog.get(image_folder)
    assert MetadataCatalog.get(image_folder).classes == ["cat", "dog"]
    assert [entry["label"] for entry in entries] == [0, 0, 1, 1]
    folders = [Path(entry["file_name"]).parent.name for entry in entries]
    assert folders == ["cat", "cat", "dog", "dog"]


def test_digits_are_those_of_the_scenes():
    scenes = {scene["file_name"]: scene for scene in DatasetCatalog.get("digits_val")}
    digits = DatasetCatalog.get("digit_crops_val")
    assert len(digits) == sum(len(scene["annotations"]) for scene in scenes.values())
    for digit in digits:
        of_scene = [(a["category_id"], a["bbox"]) for a in scenes[digit["file_name"]]["annotations"]]
        assert (digit["label"], digit["box"]) in of_scene


@pytest.mark.parametrize("format, channels", [("BGR", (200, 0, 100)), ("RGB", (100, 0, 200))])
@pytest.mark.parametrize("is_train", [True, False])
def test_mapper_returns_the_format_and_the_size_of_the_config(classifier_cfg, format, channels, is_train):
    classifier_cfg.INPUT.FORMAT, classifier_cfg.INPUT.CROP.ENABLED = format, is_train
    entry = DatasetCatalog.get(classifier_cfg.DATASETS.TRAIN[0])[3]
    mapped = ClassificationMapper(classifier_cfg, is_train)(entry)
    assert mapped["image"].shape == (3, 8, 8) and mapped["image"].dtype == torch.uint8
    assert mapped["image"].amax((1, 2)).tolist() == list(channels) == mapped["image"].amin((1, 2)).tolist()
    assert mapped["label"] == 1


def test_mapper_crops_the_center_and_flips(classifier_cfg, tmp_path):
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[...] = np.arange(20)[:, None]
    Image.fromarray(pixels).save(tmp_path / "ramp.png")
    entry = {"file_name": str(tmp_path / "ramp.png"), "label": 0}
    row = ClassificationMapper(classifier_cfg, False)(entry)["image"][0, 0]
    assert row.tolist() == list(range(6, 14))
    classifier_cfg.INPUT.RANDOM_FLIP = "horizontal"
    mapper = ClassificationMapper(classifier_cfg, True)
    rows = {tuple(mapper(entry)["image"][0, 0].tolist()) for _ in range(40)}
    assert rows == {tuple(range(6, 14)), tuple(range(13, 5, -1))}


@pytest.mark.parametrize(
    "box, side, expected", [((8, 2, 4, 6), 8, (6, 1, 14, 9)), ((0, 0, 4, 4), 4, (0, 0, 4, 4))]
)
def test_digit_is_cropped_with_its_surroundings(classifier_cfg, tmp_path, box, side, expected):
    """A square around the box of 1.25 times its longer side, as far as there is an image."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 20, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    left, top, right, bottom = expected
    classifier_cfg.INPUT.FORMAT = "RGB"
    classifier_cfg.INPUT.MIN_SIZE_TEST, classifier_cfg.INPUT.CROP.SIZE = side, [side, side]
    entry = {"file_name": str(tmp_path / "image.png"), "box": list(box)}
    image = ClassificationMapper(classifier_cfg, False)(entry)["image"]
    np.testing.assert_array_equal(image.permute(1, 2, 0), pixels[top:bottom, left:right])


def test_broken_image_is_named(classifier_cfg, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    for name in ("broken.jpg", "missing.jpg"):
        with pytest.raises(DatasetError, match=rf"image .*{name} cannot be used: "):
            ClassificationMapper(classifier_cfg, False)({"file_name": str(tmp_path / name), "label": 0})


def test_accuracy():
    evaluator = ClassificationEvaluator()
    evaluator.reset()
    scores = torch.tensor([0.1, 0.3, 0.2, 0.15, 0.12, 0.08, 0.05])  # labels 1, 2, 3, 4, 0 are the best five
    for label in (1, 1, 2, 0, 5, 6):
        evaluator.process([{"label": label}], [{"scores": scores}])
    assert evaluator.evaluate()["classification"] == {
        "top1": pytest.approx(200 / 6),
        "top5": pytest.approx(400 / 6),
    }


def test_accuracy_with_fewer_than_five_classes():
    evaluator = ClassificationEvaluator()
    evaluator.reset()
    evaluator.process([{"label": 1}], [{"scores": torch.tensor([0.6, 0.4])}])
    assert evaluator.evaluate()["classification"] == {"top1": 0.0, "top5": 100.0}


def test_datasets_must_be_for_the_architecture(classifier_cfg):
    assert check_datasets(classifier_cfg, training=True) == []
    classifier_cfg.MODEL.CLASSIFIER.NUM_CLASSES = 1
    with pytest.raises(ConfigError, match=r"CLASSIFIER\.NUM_CLASSES is 1; it must be at least 2"):
        check_datasets(classifier_cfg, training=True)
    classifier_cfg.DATASETS.TRAIN = ("digits_train",)
    with pytest.raises(ConfigError, match="'digits_train' is not a dataset for image classification"):
        check_datasets(classifier_cfg, training=True)
    classifier_cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    classifier_cfg.DATASETS.TRAIN = ("digit_crops_train",)
    with pytest.raises(ConfigError, match="'digit_crops_train' is a dataset for image classification; it"):
        check_datasets(classifier_cfg, training=True)


def test_missing_folder(classifier_cfg):
    classifier_cfg.DATASETS.TRAIN = ("imagenet_train",)
    with pytest.raises(DatasetError, match=r"dataset 'imagenet_train' is missing: .*imagenet/train"):
        check_datasets(classifier_cfg, training=True)
