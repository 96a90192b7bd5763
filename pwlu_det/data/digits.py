"""``digits_train`` and ``digits_val``: handwritten digits in textured scenes, as COCO datasets.

The digits are the 1,797 grayscale 8x8 images of ``sklearn.datasets.load_digits``. No digit is in both splits.
The scenes are generated on first use and are always the same. They are stored in ``~/.cache/pwlu_det`` or
the folder that the environment variable ``PWLU_DET_CACHE`` names.
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

IMAGE_SIZE = 96  # height and width of a scene in pixels
MAX_DIGITS = 3  # per scene
DIGIT_SIZE = (32.0, 60.0)  # lowest and highest size of the scaled 8x8 image in pixels
MAX_ANGLE = 15.0  # degrees, in either direction
PLACING_TRIES = 20  # per digit; one that fits nowhere is left out

# Change this with any change to scenes, splits or file layout: existing folders are never regenerated.
VERSION = "digits_v1"


def cache_dir() -> Path:
    """The folder for generated datasets. The environment variable is read at each call."""
    return Path(os.environ.get("PWLU_DET_CACHE") or "~/.cache/pwlu_det").expanduser().absolute()


def digits_dir() -> Path:
    """The folder with ``{train,val}.json`` and the image folders ``{train,val}/``, generated if absent.

    It is written under a temporary name and then renamed, so that it is either complete or absent.

    Raises:
        OSError: the folder cannot be written.
        ImportError: scikit-learn is missing.
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
            f"Cannot write the digits dataset to {cache} ({error}). Set PWLU_DET_CACHE to a writable folder."
        ) from error
    return final


def _publish(made: Path, final: Path) -> None:
    """Rename ``made`` to ``final``, unless another process has already published the same files."""
    try:
        made.rename(final)
    except OSError:
        if not final.is_dir():
            raise


def write_digits(root: Path) -> None:
    """Write the images and COCO files of both splits to a new folder ``root``."""
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
        raise ImportError("Generating the digits dataset requires scikit-learn.") from error
    source = load_digits()
    return np.rint(source.images * (255 / 16)).astype(np.uint8), source.target


def split_digits(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Split the digits with ``labels`` (N,), each class in the same proportion.

    Returns:
        For each split, the sorted indices of its digits.
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
    """Write the scenes of a split as PNG files and return their COCO dictionary."""
    images, annotations = [], []
    for i in range(NUM_SCENES[split]):
        # Each scene has its own generator, so that it does not depend on those before it.
        rng = np.random.default_rng([SEED, list(NUM_SCENES).index(split), i])
        scene, masks, classes = make_scene(digits, labels, rng)
        name = f"{i:06d}.png"
        Image.fromarray(scene).save(folder / name, compress_level=1)  # fast: noise hardly compresses
        images.append({"id": i + 1, "file_name": name, "height": IMAGE_SIZE, "width": IMAGE_SIZE})
        for mask, label in zip(masks, classes):
            annotations.append({"id": len(annotations) + 1, "image_id": i + 1, **_annotation(mask, label)})
    categories = [{"id": c + 1, "name": name} for c, name in enumerate(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotation(mask: np.ndarray, label: int) -> dict[str, Any]:
    """The COCO annotation of an object with a bool mask (H, W) and a class."""
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
    """Draw a scene with one to ``MAX_DIGITS`` of ``digits`` (N, 8, 8) with ``labels`` (N,).

    Returns:
        The image, (S, S, 3) uint8 RGB with S = ``IMAGE_SIZE``; the mask of each digit's strokes, (S, S) bool;
        and their classes. Digits do not overlap.
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
        scene[place] = (1 - opacity) * scene[place] + opacity * _bright_color(rng)
        mask = np.zeros_like(taken)
        mask[place] = alpha > 0.5
        masks.append(mask)
        classes.append(int(labels[index]))
    return np.rint(scene * 255).astype(np.uint8), masks, classes


def _background(rng: np.random.Generator) -> np.ndarray:
    """A dark colored texture, (S, S, 3) in [0, 1]: one color plus noise of several grain sizes."""
    scene = np.tile(rng.uniform(0.1, 0.4, 3), (IMAGE_SIZE, IMAGE_SIZE, 1))
    for cells, strength in ((3, 0.15), (8, 0.08), (32, 0.05)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        noise = noise.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        scene += strength * (np.asarray(noise) / 127.5 - 1)
    return scene.clip(0, 1)


def _bright_color(rng: np.random.Generator) -> np.ndarray:
    """A color, (3,) in [0, 1], brighter than the backgrounds in every channel."""
    return rng.uniform(0.6, 1.0, 3)


def _draw(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scale and rotate a ``digit`` (8, 8), and return the opacity of its strokes, (h, w) in [0, 1]."""
    padded = Image.fromarray(np.pad(digit, 2))  # so that no rotation cuts anything off
    side = round(rng.uniform(*DIGIT_SIZE) * padded.width / len(digit))
    image = padded.resize((side, side), Image.Resampling.BICUBIC)
    image = image.rotate(rng.uniform(-MAX_ANGLE, MAX_ANGLE), Image.Resampling.BICUBIC)
    # Upscaling blurs; raising the contrast makes the strokes opaque again.
    alpha = ((np.asarray(image) / 255 - 0.25) / 0.4).clip(0, 1)
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _find_place(
    shape: tuple[int, int], taken: np.ndarray, rng: np.random.Generator
) -> tuple[slice, slice] | None:
    """Rows and columns of a random free window of ``shape`` in ``taken`` (S, S), or None if none is found."""
    for _ in range(PLACING_TRIES):
        top, left = (int(rng.integers(0, IMAGE_SIZE - side + 1)) for side in shape)
        place = slice(top, top + shape[0]), slice(left, left + shape[1])
        if not taken[place].any():
            return place
    return None


class _DigitsMetadata(Metadata):
    """Metadata that generates the files when their paths are read.

    ``COCOEvaluator`` may read ``json_file`` before the dataset has been loaded.
    """

    @property
    def json_file(self) -> str:
        return str(digits_dir() / f"{self.split}.json")

    @property
    def image_root(self) -> str:
        return str(digits_dir() / self.split)


def _load(name: str) -> list[dict[str, Any]]:
    """Load the dataset ``name`` in detectron2's standard format."""
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
