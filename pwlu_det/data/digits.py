"""``digits_train`` and ``digits_val``: handwritten digits in textured scenes, as COCO data sets.

The digits are the 1,797 grey 8x8 images of ``sklearn.datasets.load_digits``. No digit is in both
splits. The scenes are made the first time that they are asked for, always the same, below
``~/.cache/pwlu_det`` or the folder that the environment variable ``PWLU_DET_CACHE`` names.
"""

from __future__ import annotations

import json
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from PIL import Image
from pycocotools import mask as mask_util

CLASSES = [str(digit) for digit in range(10)]
NUM_SCENES = {"train": 2000, "val": 200}
VAL_FRACTION = 0.2  # of the digits
SEED = 0

IMAGE_SIZE = 96  # pixels, the height and the width of a scene
MAX_DIGITS = 3  # in one scene
DIGIT_SIZE = (32.0, 60.0)  # pixels that the 8x8 source image spans, lowest and highest
MAX_ANGLE = 15.0  # degrees, to either side
PLACING_TRIES = 20

# Another scene, split or file layout needs another version: made folders are never changed.
VERSION = "digits_v1"


def cache_dir() -> Path:
    """The folder that holds the made data sets, read from the environment at each call."""
    return Path(os.environ.get("PWLU_DET_CACHE") or "~/.cache/pwlu_det").expanduser().absolute()


def digits_dir() -> Path:
    """The folder with ``{train,val}.json`` and the image folders ``{train,val}/``, made if need be.

    It is filled under a temporary name and then renamed, so that it is either absent or whole.
    """
    cache = cache_dir()
    final = cache / VERSION
    if final.is_dir():
        return final
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{VERSION}-", dir=cache) as scratch:
            made = Path(scratch) / VERSION
            write_digits(made)
            _publish(made, final)
    except OSError as error:
        raise OSError(
            f"Cannot write the digits data set to {cache} ({error}). "
            "Set PWLU_DET_CACHE to a folder that can be written."
        ) from error
    return final


def _publish(made: Path, final: Path) -> None:
    """Rename ``made`` to ``final``, unless another process was faster; its copy is the same."""
    try:
        made.rename(final)
    except OSError:
        if not final.is_dir():
            raise


def write_digits(root: Path) -> None:
    """Write the images and the COCO files of both splits into the new folder ``root``."""
    images, labels = load_source()
    for split, indices in split_digits(labels).items():
        (root / split).mkdir(parents=True)
        coco = _write_scenes(root / split, split, images[indices], labels[indices])
        (root / f"{split}.json").write_text(json.dumps(coco), encoding="utf-8")


def load_source() -> tuple[np.ndarray, np.ndarray]:
    """The digits, (N, 8, 8) uint8 with bright strokes, and their classes, (N,) int64."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("Making the digits data sets needs scikit-learn.") from error
    source = load_digits()
    return np.rint(source.images * (255 / 16)).astype(np.uint8), source.target


def split_digits(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Divide the digits with ``labels`` (N,): for each split, the sorted indices of its digits.

    Each class is divided in the same proportion.
    """
    rng = np.random.default_rng(SEED)
    members = [rng.permutation(np.flatnonzero(labels == c)) for c in range(len(CLASSES))]
    cuts = [round(len(m) * VAL_FRACTION) for m in members]
    return {
        "train": np.sort(np.concatenate([m[cut:] for m, cut in zip(members, cuts)])),
        "val": np.sort(np.concatenate([m[:cut] for m, cut in zip(members, cuts)])),
    }


def _write_scenes(
    folder: Path, split: str, digits: np.ndarray, labels: np.ndarray
) -> dict[str, list[dict[str, Any]]]:
    """Write the scenes of one split as PNG files and return their COCO dictionary."""
    images, annotations = [], []
    for i in range(NUM_SCENES[split]):
        # A stream of its own for each scene: no scene depends on what was drawn before it.
        rng = np.random.default_rng([SEED, list(NUM_SCENES).index(split), i])
        scene, masks, classes = make_scene(digits, labels, rng)
        name = f"{i:06d}.png"
        Image.fromarray(scene).save(folder / name, compress_level=1)  # noise hardly compresses
        images.append({"id": i + 1, "file_name": name, "height": IMAGE_SIZE, "width": IMAGE_SIZE})
        for mask, label in zip(masks, classes):
            annotations.append({"id": len(annotations) + 1, "image_id": i + 1, **_annotation(mask, label)})
    categories = [{"id": c + 1, "name": name} for c, name in enumerate(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotation(mask: np.ndarray, label: int) -> dict[str, Any]:
    """The COCO entries that follow from a bool mask (H, W) and a class."""
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "category_id": label + 1,
        "bbox": mask_util.toBbox(rle).tolist(),
        "area": int(mask_util.area(rle)),
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        "iscrowd": 0,
    }


def make_scene(
    digits: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, list[np.ndarray], list[int]]:
    """One scene with one to ``MAX_DIGITS`` of ``digits`` (N, 8, 8), which have ``labels`` (N,).

    Returns:
        The image, (S, S, 3) uint8 RGB with S = ``IMAGE_SIZE``; for each digit the mask of
        its strokes, (S, S) bool; and the classes. Digits do not overlap.
    """
    scene = _background(rng)
    taken = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=bool)
    masks, classes = [], []
    for index in rng.choice(len(digits), size=rng.integers(1, MAX_DIGITS + 1), replace=False):
        alpha = _draw(digits[index], rng)
        place = _find_place(alpha.shape, taken, rng)
        if place is None:
            continue
        taken[place] = True
        opacity = alpha[..., None]
        scene[place] = (1 - opacity) * scene[place] + opacity * _bright_colour(rng)
        mask = np.zeros_like(taken)
        mask[place] = alpha > 0.5
        masks.append(mask)
        classes.append(int(labels[index]))
    return np.rint(scene * 255).astype(np.uint8), masks, classes


def _background(rng: np.random.Generator) -> np.ndarray:
    """A dark coloured texture, (S, S, 3) in [0, 1]: one colour and noise of several grain sizes."""
    scene = np.tile(rng.uniform(0.1, 0.4, 3), (IMAGE_SIZE, IMAGE_SIZE, 1))
    for cells, strength in ((3, 0.15), (8, 0.08), (32, 0.05)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        noise = noise.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        scene += strength * (np.asarray(noise) / 127.5 - 1)
    return scene.clip(0, 1)


def _bright_colour(rng: np.random.Generator) -> np.ndarray:
    """A colour, (3,) in [0, 1], that is brighter than the backgrounds in each channel."""
    return rng.uniform(0.6, 1.0, 3)


def _draw(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scale and turn a ``digit`` (8, 8): the opacity of its strokes, (h, w) in [0, 1]."""
    padded = Image.fromarray(np.pad(digit, 2))  # by two: nothing is cut off at any angle
    side = round(rng.uniform(*DIGIT_SIZE) * padded.width / len(digit))
    grey = padded.resize((side, side), Image.Resampling.BICUBIC)
    grey = grey.rotate(rng.uniform(-MAX_ANGLE, MAX_ANGLE), Image.Resampling.BICUBIC)
    # Scaling up blurs; a steeper edge gives opaque strokes again.
    alpha = ((np.asarray(grey) / 255 - 0.25) / 0.4).clip(0, 1)
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _find_place(
    shape: tuple[int, int], taken: np.ndarray, rng: np.random.Generator
) -> tuple[slice, slice] | None:
    """Rows and columns of a free window of ``shape`` in ``taken`` (S, S), None if none was met."""
    for _ in range(PLACING_TRIES):
        top, left = (int(rng.integers(0, IMAGE_SIZE - side + 1)) for side in shape)
        place = slice(top, top + shape[0]), slice(left, left + shape[1])
        if not taken[place].any():
            return place
    return None


class _DigitsMetadata(Metadata):
    """Metadata whose paths are looked up when read, for then the files must exist.

    ``COCOEvaluator`` reads ``json_file``, perhaps before anything has loaded the data set.
    """

    @property
    def json_file(self) -> str:
        return str(digits_dir() / f"{self.split}.json")

    @property
    def image_root(self) -> str:
        return str(digits_dir() / self.split)


def _load(name: str) -> list[dict[str, Any]]:
    """The data set ``name`` in detectron2's own format."""
    metadata = MetadataCatalog.get(name)
    return load_coco_json(metadata.json_file, metadata.image_root, name)


def register_digits() -> None:
    """Register ``digits_train`` and ``digits_val`` with detectron2; a second call does nothing."""
    for split in NUM_SCENES:
        name = f"digits_{split}"
        if name in DatasetCatalog:
            continue
        DatasetCatalog.register(name, partial(_load, name))
        MetadataCatalog[name] = _DigitsMetadata(
            name=name, split=split, evaluator_type="coco", thing_classes=CLASSES
        )
