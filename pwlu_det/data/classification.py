"""Image classification: datasets, mapper and evaluator."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import torch
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torchvision import transforms
from torchvision.datasets import ImageFolder

from pwlu_det.data.digits import CLASSES, digits_dir
from pwlu_det.errors import DatasetError, describe

EVALUATOR_TYPE = "classification"
CONTEXT = 1.25
"""The side of a digit's crop, relative to the longer side of its box."""

FLIPS = {
    "none": (),
    "horizontal": (transforms.RandomHorizontalFlip,),
    "vertical": (transforms.RandomVerticalFlip,),
}


def register_image_folder(name: str, root: str) -> None:
    """Register a dataset whose images are in one folder per class, ``root/class/image``.

    Its entries have a ``file_name`` and a ``label``, the index of the class in the sorted names of the
    folders. The folder is read when the dataset is used.
    """
    DatasetCatalog.register(name, partial(_load_image_folder, root))
    MetadataCatalog[name] = _FolderMetadata(name=name, evaluator_type=EVALUATOR_TYPE, root=root)


class _FolderMetadata(Metadata):
    @property
    def classes(self) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())
        except OSError as error:
            raise DatasetError(f"dataset '{self.name}' is missing: {error}") from error


def _load_image_folder(root: str) -> list[dict[str, Any]]:
    samples = ImageFolder(root).samples
    return [{"file_name": file, "image_id": i, "label": label} for i, (file, label) in enumerate(samples)]


def _load_digits(split: str) -> list[dict[str, Any]]:
    """The digits of the detection dataset ``digits_<split>``, one by one."""
    name = f"digits_{split}"
    return [
        {"file_name": scene["file_name"], "image_id": i, "label": digit["category_id"], "box": digit["bbox"]}
        for i, (scene, digit) in enumerate(
            (scene, digit) for scene in DatasetCatalog.get(name) for digit in scene["annotations"]
        )
    ]


class _DigitsMetadata(Metadata):
    """Metadata that generates the scenes when the classes are read."""

    @property
    def classes(self) -> list[str]:
        digits_dir()
        return CLASSES


def register_classification() -> None:
    """Register ``imagenet_{train,val}`` and ``digit_crops_{train,val}``; a second call does nothing.

    ImageNet is in the folder ``imagenet`` of detectron2's datasets.
    """
    datasets = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    for split in ("train", "val"):
        if f"imagenet_{split}" not in DatasetCatalog:
            register_image_folder(f"imagenet_{split}", os.path.join(datasets, "imagenet", split))
        name = f"digit_crops_{split}"
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, partial(_load_digits, split))
            MetadataCatalog[name] = _DigitsMetadata(name=name, evaluator_type=EVALUATOR_TYPE)


class ClassificationMapper:
    """Read an image and apply torchvision's transforms.

    In training with ``INPUT.CROP.ENABLED``, ``RandomResizedCrop`` to ``INPUT.CROP.SIZE``. Otherwise the
    shorter side is resized to ``INPUT.MIN_SIZE_TEST``, and the center of that size is used. Training images
    are also flipped as ``INPUT.RANDOM_FLIP`` says.

    Raises:
        DatasetError: an image cannot be read.
    """

    def __init__(self, cfg, is_train: bool):
        self.format, size = cfg.INPUT.FORMAT, cfg.INPUT.CROP.SIZE
        if is_train and cfg.INPUT.CROP.ENABLED:
            steps = [transforms.RandomResizedCrop(size, antialias=True)]
        else:
            resize = transforms.Resize(cfg.INPUT.MIN_SIZE_TEST, antialias=True)
            steps = [resize, transforms.CenterCrop(size)]
        if is_train:
            steps += [flip() for flip in FLIPS[cfg.INPUT.RANDOM_FLIP]]
        self.transform = transforms.Compose(steps)

    def __call__(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Add ``image``, ``[3, H, W]`` uint8 with channels in the order of ``INPUT.FORMAT``."""
        file = entry["file_name"]
        try:
            if not os.path.isfile(file):
                raise ValueError("it is not a regular file")
            image = torch.from_numpy(read_image(file, self.format).copy()).permute(2, 0, 1)
            return {**entry, "image": self.transform(_crop(image, entry.get("box")))}
        except Exception as error:  # the reader of a broken image can raise anything
            raise DatasetError(f"image {file} cannot be used: {describe(error)}") from error


def _crop(image: torch.Tensor, box: list[float] | None) -> torch.Tensor:
    """The square around a box (x, y, width, height), cut off at the borders of the image."""
    if box is None:
        return image
    x, y, width, height = box
    half = CONTEXT * max(width, height) / 2
    centers = x + width / 2, y + height / 2
    columns, rows = (slice(max(round(c - half), 0), round(c + half)) for c in centers)
    return image[:, rows, columns]


class ClassificationEvaluator(DatasetEvaluator):
    """Top-1 and top-5 accuracy in percent."""

    def reset(self) -> None:
        self._counts = torch.zeros(3, dtype=torch.int64)  # images, and those right among 1 and 5 guesses

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for entry, output in zip(inputs, outputs):
            guesses = output["scores"].topk(min(5, len(output["scores"]))).indices.tolist()
            hits = guesses[:1] == [entry["label"]], entry["label"] in guesses
            self._counts += torch.tensor([1, *hits])

    def evaluate(self) -> dict[str, dict[str, float]]:
        images, top1, top5 = sum(comm.all_gather(self._counts)).tolist()
        return {"classification": {"top1": 100 * top1 / max(images, 1), "top5": 100 * top5 / max(images, 1)}}
