"""Check the masks of a COCO file: pycocotools does not, and invalid ones make it write out of bounds."""

from __future__ import annotations

from typing import Any

import numpy as np

_LIMIT = 1e6  # pixels; larger coordinates would make pycocotools allocate gigabytes
_MIN_COORDINATES = 6  # three points of a polygon


def is_numbers(values: Any, limit: float = _LIMIT) -> bool:
    """Whether ``values`` is a list of numbers in [-limit, limit], none of them NaN."""
    try:  # as fast as possible: COCO has 60 million of these numbers
        return isinstance(values, list) and (
            not values
            or (-limit <= min(values) and max(values) <= limit and sum(values) <= limit * len(values))
        )
    except TypeError:
        return False


def count_polygons(segmentation: list) -> int:
    """The number of polygons that detectron2 keeps."""
    return sum(len(polygon) % 2 == 0 and len(polygon) >= _MIN_COORDINATES for polygon in segmentation)


def find_mask_fault(segmentation: Any, height: int, width: int) -> str:
    """Return what is wrong with ``segmentation``, or ""."""
    if isinstance(segmentation, list):
        if all(map(is_numbers, segmentation)):
            return ""
        return f"must be lists of coordinates in pixels, each at most {_LIMIT:.0f}"
    if not isinstance(segmentation, dict):
        return "must be a list of polygons or an object with size and counts"
    if segmentation.get("size") != [height, width]:
        return f"must have the size of the image, [{height}, {width}]"
    counts = segmentation.get("counts")
    runs = _decode(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int for run in runs):
        return "must have counts that are a list of run lengths or COCO's encoding of one"
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        return f"must have non-negative counts that add up to height times width, {height * width}"
    return ""


def mask_area(segmentation: list | dict) -> float:
    """The area of a valid mask in pixels; that of polygons which overlap is counted more than once."""
    if isinstance(segmentation, list):
        return sum(map(_polygon_area, segmentation))
    counts = segmentation["counts"]
    return sum((_decode(counts) if isinstance(counts, str) else counts)[1::2])


def _polygon_area(polygon: list[float]) -> float:
    x, y = np.reshape(polygon[: len(polygon) // 2 * 2], (-1, 2)).T
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2


def _decode(text: str) -> list[int] | None:
    """Decode the run lengths of a compressed mask; None if they are invalid.

    The encoding is COCO's variant of LEB128, with six bits per character. From the fourth on, a run is stored
    as the difference from the run two places before it.
    """
    if not text or not text.isascii():
        return None
    codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - ord("0")
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(~codes & 32)  # a number's last character has bit 32 unset
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits
        return None
    places = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 31) << 5 * places, starts)
    runs -= (codes[ends] >> 4 & 1) << 5 * lengths  # sign
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs.tolist()
