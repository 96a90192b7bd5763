import json
import os

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


def named(folder, name: str) -> str:
    """A file with one image of this name."""
    content = json.loads((folder / "set.json").read_text())
    content["images"][0]["file_name"] = name
    (folder / "set.json").write_text(json.dumps(content))
    return str(folder / "set.json")


@pytest.mark.parametrize(
    "name", ["{root}/1.png", "../{name}/1.png", "a/../1.png", "a/../../1.png", "/dev/zero"]
)
def test_image_outside_the_image_folder_is_refused(tmp_path, name):
    write(tmp_path)
    file = named(tmp_path, name.format(root=tmp_path, name=tmp_path.name))
    with pytest.raises(
        DatasetError, match=r"1 of its 1 images are outside the image folder .*without '\.\.'"
    ):
        check_coco(file, str(tmp_path), Use(True))


def test_image_by_a_link_or_without_an_image_folder_is_allowed(tmp_path):
    """Links are made by whoever has the folder, not by whoever has written the file."""
    write(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "1.png").rename(tmp_path / "elsewhere/2.png")
    (tmp_path / "1.png").symlink_to(tmp_path / "elsewhere/2.png")
    (tmp_path / "folder").symlink_to(tmp_path / "elsewhere")
    for name in ("1.png", "folder/2.png", "./1.png", "a..b.png"):
        (tmp_path / "a..b.png").touch()
        check_coco(named(tmp_path, name), str(tmp_path), Use(True))
    check_coco(named(tmp_path, f"{tmp_path}/elsewhere/../1.png"), "", Use(True))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_image_that_is_not_a_regular_file_is_missing(tmp_path, make):
    file = write(tmp_path)
    (tmp_path / "1.png").unlink()
    make(tmp_path / "1.png")
    with pytest.raises(DatasetError, match=r"1 of its 1 images are missing; the first is .*1\.png"):
        check_coco(file, str(tmp_path), Use(True))


@pytest.mark.parametrize(
    "text, message",
    [
        ("[" * 10**6, "recursion"),
        ('{"a":' * 10**6, "recursion"),
        ("1" * 10**6, "Exceeds the limit"),
        ('{"images": 1e999}', "must be|categories"),
    ],
)
def test_json_that_is_hard_to_read(tmp_path, text, message):
    (tmp_path / "set.json").write_text(text)
    with pytest.raises(DatasetError, match=message):
        check_coco(str(tmp_path / "set.json"), str(tmp_path), Use(True))


def test_run_lengths_that_would_be_a_huge_mask():
    """A few characters of run lengths for a mask of 10^12 pixels."""
    assert find_mask_fault({"size": [10**6, 10**6], "counts": [10**12]}, 8, 9)
    assert find_mask_fault({"size": [8, 9], "counts": [10**12]}, 8, 9)
    assert find_mask_fault({"size": [8, 9], "counts": [72] + [0] * 10**6}, 8, 9) == ""
