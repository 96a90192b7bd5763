"""What COCO's masks may be. pycocotools trusts them, to the point of writing beyond its memory."""

from __future__ import annotations

from typing import Any

import numpy as np

_LIMIT = 1e6  # pixels: what lies further out would cost pycocotools gigabytes
_MIN_COORDINATES = 6  # of a polygon: three points


def is_numbers(values: Any, limit: float = _LIMIT) -> bool:
    """Whether this is a list of numbers, none of them NaN or beyond the limit."""
    try:  # by the quickest means there is: COCO has 60 million of them
        return isinstance(values, list) and (
            not values
            or (-limit <= min(values) and max(values) <= limit and sum(values) <= limit * len(values))
        )
    except TypeError:
        return False


def count_polygons(segmentation: list) -> int:
    """Number of polygons that detectron2 keeps."""
    return sum(len(polygon) % 2 == 0 and len(polygon) >= _MIN_COORDINATES for polygon in segmentation)


def find_mask_fault(segmentation: Any, height: int, width: int) -> str:
    """What must not be so in a ``segmentation``, or ""."""
    if isinstance(segmentation, list):
        if all(map(is_numbers, segmentation)):
            return ""
        return f"must be lists of numbers of pixels, each at most {_LIMIT:.0f}"
    if not isinstance(segmentation, dict):
        return "must be a list of polygons, or an object with size and counts"
    if segmentation.get("size") != [height, width]:
        return f"must have the size of the image, [{height}, {width}]"
    counts = segmentation.get("counts")
    runs = _decode(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int for run in runs):
        return "must have counts that are a list of numbers of pixels, or COCO's encoding of one"
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        return f"must have counts that add up to height times width, {height * width}"
    return ""


def _decode(text: str) -> list[int] | None:
    """The runs of a compressed mask, or None: COCO's variant of LEB128, six bits a character.

    From the fourth on, a run is stored as its difference from the last but one.
    """
    if not text or not text.isascii():
        return None
    codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - ord("0")
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(~codes & 32)  # a character without the bit 32 is a number's last
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
