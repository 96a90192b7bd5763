import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_util

from pwlu_det import DatasetError
from pwlu_det.data.coco_check import Use, check_coco
from pwlu_det.data.mask_check import _decode, find_mask_fault


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_compressed_masks_of_pycocotools_are_decoded(height, width, seed, density):
    mask = np.random.default_rng(seed).random((height, width)) < density
    encoded = mask_util.encode(np.asfortranarray(mask, np.uint8))
    counts = encoded["counts"].decode()
    flat = np.concatenate([[False], mask.T.reshape(-1)])  # column-major; the first run counts zeros
    ends = [*np.flatnonzero(flat[1:] != flat[:-1]), height * width]
    assert _decode(counts) == np.diff([0, *ends]).tolist()
    assert find_mask_fault({"size": [height, width], "counts": counts}, height, width) == ""
    assert find_mask_fault({"size": [height, width + 1], "counts": counts}, height, width + 1)
    assert find_mask_fault({"size": [height, width], "counts": counts[:-1]}, height, width)


def write(folder, **changes) -> str:
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 8, "width": 9}],
        "annotations": [{"id": 4, "image_id": 1, "category_id": 3, "bbox": [0, 0, 2, 2], **changes}],
        "categories": [{"id": 3, "name": "c"}],
    }
    (folder / "1.png").touch()
    (folder / "set.json").write_text(json.dumps(content))
    return str(folder / "set.json")


LEFT_OUT = {
    "crowds": ({"iscrowd": 1}, 0),
    "boxes without area": ({"bbox": [0, 0, 2, 0]}, 1),  # detectron2 drops the box, and keeps the image
    "masks without a polygon of three points": ({"segmentation": [[1, 1, 2, 2]]}, 0),
    "annotations of images that are not in the file": ({"image_id": 7}, 0),
}


@pytest.mark.parametrize("reason", LEFT_OUT)
def test_annotations_left_out_are_counted(reason, tmp_path):
    changes, num_instances = LEFT_OUT[reason]
    summary = check_coco(write(tmp_path, **changes), str(tmp_path), Use(training=True))
    assert summary.note == f"1 images, 1 annotations; left out: 1 {reason}"
    assert summary.num_instances == num_instances


RLE = {"size": [8, 9], "counts": [0, 72]}
FAULTS = {
    "infinite box": (True, "", {"bbox": [0, 0, float("inf"), 1]}, "annotation 4: bbox is"),
    "negative side": (True, "", {"bbox": [5, 5, -2, 1]}, "no negative side"),
    "box of three": (True, "", {"bbox": [5, 5, 2]}, "annotation 4: bbox is"),
    "no area": (False, "", {"iscrowd": 0}, "area is None; it must be a non-negative number of pixels"),
    "no iscrowd": (False, "", {"area": 4}, "iscrowd is None; it must be 0 or 1"),
    "no mask": (True, "polygon", {}, "must be present when MODEL.MASK_ON is True"),
    "RLE for polygons": (True, "polygon", {"segmentation": RLE}, "INPUT.MASK_FORMAT must be 'bitmask'"),
    "mask of another size": (
        True,
        "",
        {"segmentation": {**RLE, "size": [9, 8]}},
        "the size of the image, [8, 9]",
    ),
    "mask beyond the image": (
        True,
        "",
        {"segmentation": {**RLE, "counts": [0, 73]}},
        "add up to height times",
    ),
    "NaN in a polygon": (True, "", {"segmentation": [[0, 0, 1, 1, 2, float("nan")]]}, "lists of coordinates"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_error_names_the_file_and_the_fault(case, tmp_path):
    training, mask_format, changes, message = FAULTS[case]
    file = write(tmp_path, **changes)
    with pytest.raises(DatasetError) as error:
        check_coco(file, str(tmp_path), Use(training, mask_format))
    assert message in str(error.value) and str(error.value).startswith(file)
