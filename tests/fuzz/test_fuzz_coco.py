"""COCO files: detectron2 can load, train on and evaluate with every file that passes the check."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data.build import filter_images_with_only_crowd_annotations, print_instances_class_histogram
from detectron2.data.datasets import load_coco_json
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from fuzzing import attempt, fuzz
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_util

from pwlu_det import DatasetError
from pwlu_det.data.coco_check import Use, check_coco
from pwlu_det.data.mapper import Mapper

HEIGHT, WIDTH = 12, 16
NAN = float("nan")
USES = [
    Use(training, mask_format) for training in (True, False) for mask_format in ("", "polygon", "bitmask")
]


def rle(x0: int, y0: int, x1: int, y1: int) -> dict:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y0:y1, x0:x1] = 1
    encoded = mask_util.encode(mask)
    return {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}


MASKS = [
    [[1, 1, 8, 1, 8, 6.5, 1, 6]],
    [[1, 1, 8, 1, 8, 6.5], [2, 2, 3]],
    rle(2, 1, 9, 6),
    rle(0, 0, 16, 12),
    {"size": [HEIGHT, WIDTH], "counts": [20, 7, HEIGHT * WIDTH - 27]},
]


def valid_file() -> dict:
    annotations = [
        {
            "id": number + 1,
            "image_id": number % 3 + 1,
            "category_id": 2 + 3 * (number % 2),
            "bbox": [1, 1, 7.5, 5],
            "area": 35.5,
            "iscrowd": int(number == 4),
            "segmentation": mask,
        }
        for number, mask in enumerate(MASKS)
    ]
    return {
        "info": {"year": 2026},
        "images": [{"id": i, "file_name": f"{i} ä.png", "height": HEIGHT, "width": WIDTH} for i in (1, 2, 3)],
        "annotations": annotations,
        "categories": [{"id": 5, "name": "b"}, {"id": 2, "name": "a"}],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco ö")
    for name in ("1 ä.png", "2 ä.png", "3 ä.png", "4.png"):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)).save(folder / name)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    return folder


def mapper(use: Use) -> Mapper:
    cfg = get_cfg()
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = bool(use.mask_format), use.mask_format or "polygon"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (24,), 24
    return Mapper(cfg, is_train=use.training)


MAPPERS = {use: mapper(use) for use in USES}


def use_it(path, folder, use: Use) -> None:
    """Use a dataset as in training or evaluation."""
    name = f"fuzz_{path.stem}"
    metadata = MetadataCatalog.get(name)
    metadata.json_file = str(path)
    try:
        images = load_coco_json(str(path), str(folder), name)
        if use.training:
            images = filter_images_with_only_crowd_annotations(images)
            print_instances_class_histogram(images, metadata.thing_classes)
            for image in images:
                instances = MAPPERS[use](image)["instances"]
                assert instances.gt_boxes.tensor.isfinite().all()
                assert (instances.gt_boxes.area() > 0).all()
                assert instances.gt_classes.numel() == 0 or instances.gt_classes.max() < len(
                    metadata.thing_classes
                )
                assert not use.mask_format or len(instances) == 0 or len(instances.gt_masks) == len(instances)
            return
        evaluator = COCOEvaluator(name, distributed=False, output_dir=None, use_fast_impl=False)
        evaluator.reset()
        for image in images:
            evaluator.process([MAPPERS[use](image)], [{"instances": found(use)}])
        evaluator.evaluate()
    finally:
        MetadataCatalog.remove(name)


def found(use: Use) -> Instances:
    """Detections of one image."""
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_boxes = Boxes(torch.tensor([[1.0, 1, 8, 6], [0, 0, 4, 4]]))
    instances.scores = torch.tensor([0.9, 0.4])
    instances.pred_classes = torch.tensor([0, 0])
    if use.mask_format:
        instances.pred_masks = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
        instances.pred_masks[0, 1:6, 1:8] = True
    return instances


def try_file(target: str, content: str, folder, use: Use) -> None:
    path = folder / "it.json"
    path.write_text(content, encoding="utf-8", errors="surrogatepass")
    summary = attempt(target, lambda: check_coco(str(path), str(folder), use))
    if isinstance(summary, DatasetError):
        assert str(path) in str(summary)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The check does not open images: a broken image, or one of another size, is found when it is read.
        valid = all(
            image["file_name"] != "broken.png" and (image["height"], image["width"]) == (HEIGHT, WIDTH)
            for image in json.loads(content)["images"]
        )
        attempt(f"{target}, used", lambda: use_it(path, folder, use), NeverRaised if valid else DatasetError)


class NeverRaised(Exception):
    """No error is allowed after a file has passed the check."""


@pytest.mark.parametrize("use", USES, ids=str)
def test_valid_file_works(use, folder):
    content = valid_file()
    if use.mask_format == "polygon" and use.training:
        content["annotations"] = [a for a in content["annotations"] if isinstance(a["segmentation"], list)]
    if not use.training:
        content["annotations"] = [a for a in content["annotations"] if a["id"] != 2]
    path = folder / "valid.json"
    path.write_text(json.dumps(content))
    summary = check_coco(str(path), str(folder), use)
    assert summary.classes == ["a", "b"]
    use_it(path, folder, use)


NUMBERS = st.one_of(
    st.integers(-3, 20),
    st.integers(),
    st.floats(),
    st.floats(-20, 20),
    st.sampled_from([NAN, float("inf"), -0.0, 1e308, -1e308, 1e7, 2**31, 2**63, 10**30, 0.5]),
)
SCALARS = st.one_of(
    NUMBERS, st.none(), st.booleans(), st.text(max_size=4), st.sampled_from(["4.png", "broken.png", ".", ""])
)
VALUES = st.one_of(
    SCALARS,
    st.lists(NUMBERS, max_size=8),
    st.lists(st.lists(NUMBERS, max_size=8), max_size=2),
    st.lists(SCALARS, max_size=4),
    st.sampled_from([[], {}, [[]], [{}], *MASKS, {"size": [0, 0], "counts": []}]),
    st.builds(
        dict,
        size=st.sampled_from([[HEIGHT, WIDTH], [WIDTH, HEIGHT], [1, 1], None]),
        counts=st.one_of(st.text("0134589:;<=>?@ACXZ_`abcmno", max_size=12), st.lists(NUMBERS, max_size=4)),
    ),
    st.dictionaries(st.sampled_from(["id", "size", "counts"]), SCALARS, max_size=2),
).map(copy.deepcopy)  # since the test may change it again
KEYS = st.sampled_from(
    [
        *("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "ignore", "keypoints"),
        *("file_name", "height", "width", "name", "info"),
    ]
)


def change(data, content: dict) -> dict:
    """Make one change somewhere in a file."""
    where = data.draw(
        st.sampled_from(["top", "images", "annotations", "annotations", "annotations", "categories"])
    )
    how = data.draw(st.sampled_from(["set", "set", "set", "delete", "repeat", "empty", "number"]))
    if where == "top":
        key = data.draw(st.sampled_from(["images", "annotations", "categories", "info"]))
        if how == "delete":
            content.pop(key, None)
        elif how == "empty":
            content[key] = []
        else:
            content[key] = data.draw(VALUES)
        return content
    entries = content.get(where)
    if not isinstance(entries, list) or not entries:
        return content
    entry = data.draw(st.sampled_from(entries))
    if how == "repeat":
        entries.append(copy.deepcopy(entry))
    elif how == "empty":
        entries[0] = data.draw(VALUES)
    elif isinstance(entry, dict):
        key = data.draw(KEYS)
        if how == "delete":
            entry.pop(key, None)
        elif how == "number" and isinstance(entry.get(key), list) and entry[key]:
            entry[key] = [*entry[key][1:], data.draw(NUMBERS)]
        else:
            entry[key] = data.draw(VALUES)
    return content


@fuzz(250, 5000)
@given(st.data(), st.sampled_from(USES), st.integers(1, 3))
def test_changed_files(folder, data, use, changes):
    content = valid_file()
    if data.draw(st.integers(0, 3)):  # a mask that every use accepts, so that only the change matters
        for annotation in content["annotations"]:
            annotation["segmentation"] = copy.deepcopy(MASKS[0])
    for _ in range(changes):
        content = change(data, content)
    try_file("COCO: changed files", json.dumps(content), folder, use)


@fuzz(60, 1000)
@given(
    st.one_of(
        st.text(max_size=40),
        VALUES.map(json.dumps),
        st.integers(0, 900).map(lambda length: json.dumps(valid_file())[:length]),
        st.sampled_from(
            ["[" * 100000, '{"a":' * 100000, "1" * 5000, "NaN", "\ufeff{}", '{"images": [1e999]}', "\x00"]
        ),
    ),
    st.sampled_from(USES),
)
def test_other_files(folder, content, use):
    try_file("COCO: other files", content, folder, use)
