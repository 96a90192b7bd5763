"""Check a COCO file before training or evaluation, in the middle of which detectron2 would otherwise fail.

Annotations that detectron2 leaves out (crowds, boxes without area, polygons of fewer than three points) are
counted; anything that it cannot handle is an error that names the file and the entry.
"""

from __future__ import annotations

import gc
import json
import os
import reprlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pwlu_det.data.mask_check import count_polygons, find_mask_fault, is_numbers, mask_area
from pwlu_det.errors import DatasetError

_MAX_ID = 2**53  # COCO's evaluation keeps ids in float64
_MAX_SIDE = 2**16 - 1  # JPEG's maximum; the run lengths of larger masks could exceed COCO's 32 bits


@dataclass(frozen=True)
class Use:
    """What a dataset is used for."""

    training: bool
    """True: training, False: evaluation"""
    mask_format: str = ""
    """``INPUT.MASK_FORMAT``, "polygon" or "bitmask", or "" if masks are not used"""
    num_keypoints: int = 0
    """number of keypoints per object, or 0 if keypoints are not used"""


@dataclass(frozen=True)
class Summary:
    """The content of a valid file."""

    classes: list[str]
    """in the order of their ids"""
    num_instances: int
    """annotations that can be trained on"""
    note: str
    """for the log: the number of images and annotations, and what is left out"""


def check_coco(file: str, image_root: str | None, use: Use) -> Summary:
    """Check an object detection file in COCO format, and that its images exist if ``image_root`` is given.

    Raises:
        DatasetError: the file cannot be used; the message names the wrong entry and what is allowed.
    """
    with _no_garbage_collection():  # which would scan a million new objects in vain
        try:
            with open(file) as f:  # in the locale's encoding, as COCO's own API does
                content = json.load(f)
        except (OSError, ValueError, RecursionError) as error:
            raise DatasetError(f"{file} cannot be read as JSON: {error}") from error
        try:
            return _check_content(content, image_root, use, unique="minival" not in file)
        except _Fault as fault:
            raise DatasetError(f"{file}: {fault}") from None


class _Fault(Exception):
    """The message says what is wrong and what is allowed."""


def _check_content(content: Any, image_root: str | None, use: Use, unique: bool) -> Summary:
    if not isinstance(content, dict):
        raise _Fault(
            f"its content is {_short(content)}; it must be an object with images, annotations and categories"
        )
    categories = _index(content, "categories", _find_category_fault)
    images = _index(content, "images", _find_image_fault)
    if len({type(image_id) for image_id in images}) > 1:
        raise _Fault("its image ids are a mixture of integers and strings; they must be of one kind")
    annotations, left_out = [], Counter()
    if use.training or "annotations" in content:  # COCO's test sets have none
        annotations = _entries(content, "annotations")
        # COCO's own minival subsets contain duplicate annotations.
        left_out = _check_annotations(annotations, images, categories, use, unique)
    if image_root is not None:
        _check_image_files(image_root, [image["file_name"] for image in images.values()])
    note = ", ".join(f"{number} {what}" for what, number in left_out.items())
    notes = [f"left out: {note}"] if note else []
    if any(annotation["id"] == 0 for annotation in annotations):
        notes.append("an annotation has the id 0, which makes COCO's evaluation wrong")
    wrong = sum(_has_wrong_area(a) for a in annotations if not use.training and a["image_id"] in images)
    if wrong:
        notes.append(f"{wrong} areas do not match their masks or boxes, which makes AP by size wrong")
    return Summary(
        classes=[categories[i]["name"] for i in sorted(categories)],
        num_instances=len(annotations) - sum(left_out[what] for what in (_STRAY, _CROWD, _NO_POLYGON)),
        note="; ".join([f"{len(images)} images, {len(annotations)} annotations", *notes]),
    )


def _entries(content: dict, key: str) -> list[dict]:
    entries = content.get(key)
    if not isinstance(entries, list):
        raise _Fault(f"{key} is {_short(entries)}; it must be a list")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise _Fault(f"{key}[{number}] is {_short(entry)}; it must be an object")
    return entries


def _index(content: dict, key: str, find_fault: Callable[[dict], str]) -> dict[Any, dict]:
    """Check the entries of ``key``, and return them by id."""
    entries = _entries(content, key)
    if not entries:
        raise _Fault(f"{key} is empty")
    by_id = {}
    for number, entry in enumerate(entries):
        fault = find_fault(entry)
        if fault:
            raise _Fault(f"{key}[{number}]: {fault}")
        if entry["id"] in by_id:
            raise _Fault(f"{key}[{number}]: id {entry['id']} is used by another entry; it must be unique")
        by_id[entry["id"]] = entry
    return by_id


def _find_category_fault(category: dict) -> str:
    if not _is_id(category.get("id")):
        return f"id is {_short(category.get('id'))}; it must be an integer"
    if not isinstance(category.get("name"), str):
        return f"name is {_short(category.get('name'))}; it must be a string"
    return ""


def _find_image_fault(image: dict) -> str:
    if not _is_id(image.get("id")) and not isinstance(image.get("id"), str):
        return f"id is {_short(image.get('id'))}; it must be an integer or a string"
    if not isinstance(image.get("file_name"), str):
        return f"file_name is {_short(image.get('file_name'))}; it must be a string"
    for key in ("height", "width"):
        if type(image.get(key)) is not int or not 1 <= image[key] <= _MAX_SIDE:
            return f"{key} is {_short(image.get(key))}; it must be an integer from 1 to {_MAX_SIDE}"
    return ""


_STRAY = "annotations of images that are not in the file"
_CROWD = "crowds"
_NO_AREA = "boxes without area"
_NO_POLYGON = "masks without a polygon of three points"


def _check_annotations(
    annotations: list[dict], images: dict[Any, dict], categories: dict[Any, dict], use: Use, unique: bool
) -> Counter:
    """Check all annotations, and count those that detectron2 leaves out, by reason."""
    left_out: Counter = Counter()
    seen = set()
    for number, annotation in enumerate(annotations):
        if not _is_id(annotation.get("id")):
            shown = _short(annotation.get("id"))
            raise _Fault(f"annotations[{number}]: id is {shown}; it must be an integer")
        if annotation["id"] == 0 and not use.training:
            raise _Fault(
                f"annotations[{number}]: id is 0, which COCO's evaluation treats as unmatched; it must be "
                "another integer"
            )
        fault = _find_annotation_fault(annotation, images, categories, use)
        if fault:
            raise _Fault(f"annotation {annotation['id']}: {fault}")
        if unique and annotation["id"] in seen:
            raise _Fault(f"annotation {annotation['id']} occurs more than once; each id must be unique")
        seen.add(annotation["id"])
        reason = _why_left_out(annotation, images)
        if reason:
            left_out[reason] += 1
    return left_out


def _has_wrong_area(annotation: dict) -> bool:
    """Whether COCO's evaluation would count an object as small, medium or large by a wrong area."""
    area, (_, _, width, height) = annotation["area"], annotation["bbox"]
    if annotation.get("segmentation"):
        least = most = mask_area(annotation["segmentation"])
    else:  # objects rarely fill less than a tenth of their box
        least, most = 0.1 * width * height, (width + 1) * (height + 1)
    return not 0.9 * least <= area <= 1.1 * most and _size(area) != _size(most)


def _size(area: float) -> int:
    """0: small, 1: medium, 2: large, by COCO's definition."""
    return (area > 32**2) + (area > 96**2)


def _find_annotation_fault(annotation: dict, images: dict, categories: dict, use: Use) -> str:
    image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
    kind = type(next(iter(images)))
    if type(image_id) is not kind:
        allowed = "a string" if kind is str else "an integer"
        return f"image_id is {_short(image_id)}; it must be {allowed}, like the ids of the images"
    if not _is_id(category_id) or category_id not in categories:
        return f"category_id is {_short(category_id)}; it must be the id of one of the categories"
    box = annotation.get("bbox")
    if not is_numbers(box) or len(box) != 4 or box[2] < 0 or box[3] < 0:
        return f"bbox is {_short(box)}; it must be [x, y, width, height], finite, with no negative side"
    # If these are missing, training assumes 0, but evaluation fails after running all images.
    crowd, area = (annotation.get(key, 0 if use.training else None) for key in ("iscrowd", "area"))
    if crowd not in (0, 1):
        return f"iscrowd is {_short(crowd)}; it must be 0 or 1"
    if not use.training and (not is_numbers([area], _MAX_SIDE**2) or area < 0):
        return f"area is {_short(area)}; it must be a non-negative number of pixels"
    if annotation.get("ignore", 0) != 0:
        return "ignore is set, which detectron2 does not support; it must be 0 or absent"
    keypoints = annotation.get("keypoints")
    if keypoints and (not is_numbers(keypoints) or len(keypoints) % 3):
        return f"keypoints is {_short(keypoints)}; it must be a list of x, y and visibility for each keypoint"
    if use.num_keypoints:
        fault = _find_keypoint_fault(annotation, use)
        if fault:
            return fault
    if image_id not in images:
        return ""
    return _find_segmentation_fault(annotation.get("segmentation"), bool(crowd), images[image_id], use)


def _find_keypoint_fault(annotation: dict, use: Use) -> str:
    keypoints = annotation.get("keypoints")
    if (keypoints or not use.training) and len(keypoints or ()) != 3 * use.num_keypoints:
        return (
            f"keypoints is {_short(keypoints)}; it must have x, y and visibility for each of the "
            f"{use.num_keypoints} keypoints of MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"
        )
    if use.training:
        return ""
    # COCO's evaluation ignores objects whose num_keypoints is 0, and fails if the key is missing.
    visible = sum(v > 0 for v in keypoints[2::3])
    if annotation.get("num_keypoints") != visible:
        shown = _short(annotation.get("num_keypoints"))
        return f"num_keypoints is {shown}; it must be {visible}, the number of keypoints with visibility > 0"
    return ""


def _find_segmentation_fault(segmentation: Any, crowd: bool, image: dict, use: Use) -> str:
    fault = find_mask_fault(segmentation, image["height"], image["width"]) if segmentation else ""
    if not fault and use.mask_format and not (use.training and crowd):
        polygons = isinstance(segmentation, list)
        if not segmentation:
            fault = "must be present when MODEL.MASK_ON is True"
        elif use.training and use.mask_format == "polygon" and not polygons:
            fault = "must be a list of polygons, or INPUT.MASK_FORMAT must be 'bitmask'"
        elif not use.training and polygons and count_polygons(segmentation) < len(segmentation):
            fault = "must have polygons of at least three points when masks are evaluated"
    return fault and f"segmentation is {_short(segmentation)}; it {fault}"


def _why_left_out(annotation: dict, images: dict[Any, dict]) -> str:
    segmentation = annotation.get("segmentation")
    if annotation["image_id"] not in images:
        return _STRAY
    if annotation.get("iscrowd"):
        return _CROWD
    if segmentation and isinstance(segmentation, list) and not count_polygons(segmentation):
        return _NO_POLYGON
    return "" if annotation["bbox"][2] > 0 and annotation["bbox"][3] > 0 else _NO_AREA


def _check_image_files(image_root: str, names: list[str]) -> None:
    if "://" in image_root:
        return
    outside = [name for name in names if os.path.isabs(name) or ".." in name.split("/")] if image_root else []
    if outside:
        raise _Fault(
            f"{len(outside)} of its {len(names)} images are outside the image folder {image_root}; the first "
            f"is {_short(outside[0])}; each file_name must be a relative path without '..'"
        )
    paths = [os.path.join(image_root, name) for name in names]
    existing = {folder: _list_files(folder) for folder in {os.path.dirname(path) for path in paths}}
    missing = [path for path in paths if os.path.basename(path) not in existing[os.path.dirname(path)]]
    if missing:
        raise _Fault(f"{len(missing)} of its {len(paths)} images are missing; the first is {missing[0]}")


def _list_files(folder: str) -> set[str]:
    """The names of all files in a folder: faster than checking each image."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (OSError, ValueError) as error:
        raise _Fault(f"its image folder cannot be read: {error}") from error


def _is_id(value: Any) -> bool:
    return type(value) is int and -_MAX_ID < value < _MAX_ID


_short = reprlib.repr


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
