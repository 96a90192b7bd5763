"""Precomputed proposals (``MODEL.LOAD_PROPOSALS``), read without running code from the file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from detectron2.data import build
from detectron2.structures import BoxMode

from pwlu_det.checkpoint.array_pickle import load_arrays
from pwlu_det.errors import DatasetError, describe

_OLD_NAMES = {"indexes": "ids", "scores": "objectness_logits"}  # of Detectron
_KEYS = ("ids", "boxes", "objectness_logits")


def read_proposals(file: str) -> dict[str, Any]:
    """Read a pickle of proposals in detectron2's format.

    Returns:
        A dictionary: ``ids`` (strings), for each image an array in ``boxes``, ``[N, 4]``, and one in
        ``objectness_logits``, ``[N]``, and the ``bbox_mode`` of all boxes.

    Raises:
        DatasetError: the file cannot be read, or has another content.
    """
    try:
        if not os.path.isfile(file):
            raise ValueError("it is not an existing file")
        with open(file, "rb") as f:
            content = load_arrays(f)
        return _check(content)
    except Exception as error:  # reading a broken pickle can raise anything
        raise DatasetError(f"{file} is not a pickle of proposals: {describe(error)}") from error


def load_proposals_into_dataset(dataset_dicts: list[dict], proposal_file: str) -> list[dict]:
    """detectron2's function of this name, which unpickles the file, but with :func:`read_proposals`.

    Raises:
        DatasetError: the file cannot be read, or lacks an image.
    """
    proposals = read_proposals(proposal_file)
    index = {image_id: i for i, image_id in enumerate(proposals["ids"])}
    for record in dataset_dicts:
        if str(record["image_id"]) not in index:
            raise DatasetError(f"{proposal_file} has no proposals for image {record['image_id']!r}")
        i = index[str(record["image_id"])]
        order = proposals["objectness_logits"][i].argsort()[::-1]  # descending
        record["proposal_boxes"] = proposals["boxes"][i][order]
        record["proposal_objectness_logits"] = proposals["objectness_logits"][i][order]
        record["proposal_bbox_mode"] = proposals["bbox_mode"]
    return dataset_dicts


@contextmanager
def own_proposal_reader() -> Iterator[None]:
    """Let detectron2's data loaders read proposals with :func:`load_proposals_into_dataset`."""
    stock = build.load_proposals_into_dataset
    build.load_proposals_into_dataset = load_proposals_into_dataset
    try:
        yield
    finally:
        build.load_proposals_into_dataset = stock


def _check(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError("it must be a dictionary")
    content = {_OLD_NAMES.get(key, key): value for key, value in content.items()}
    lists = [content.get(key) for key in _KEYS]
    if not all(isinstance(value, list) for value in lists) or len({len(value) for value in lists}) > 1:
        raise ValueError(f"it must have lists {', '.join(_KEYS)} of the same length")
    ids, boxes, logits = lists
    for image_id, own_boxes, own_logits in zip(ids, boxes, logits):
        if not _is_id(image_id):
            raise ValueError("its ids must be integers or strings")
        if not _is_finite(own_boxes) or not _is_finite(own_logits):
            raise ValueError(
                f"boxes and objectness_logits of image {image_id} must be arrays of finite numbers"
            )
        if own_boxes.shape != (len(own_logits), 4) or own_logits.ndim != 1:
            raise ValueError(
                f"image {image_id} has boxes of shape {own_boxes.shape} and objectness_logits of shape "
                f"{own_logits.shape}; they must be [N, 4] and [N]"
            )
    mode = BoxMode(content.get("bbox_mode", BoxMode.XYXY_ABS))
    return {
        "ids": [str(image_id) for image_id in ids],
        "boxes": boxes,
        "objectness_logits": logits,
        "bbox_mode": mode,
    }


def _is_id(value: Any) -> bool:
    return isinstance(value, str) or (np.ndim(value) == 0 and np.asarray(value).dtype.kind in "iu")


def _is_finite(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.ndim > 0 and bool(np.isfinite(array).all())
