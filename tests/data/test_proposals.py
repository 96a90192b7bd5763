"""Precomputed proposals: what is read is what is used, and no code in the file is run."""

import os
import pickle

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, build
from detectron2.structures import BoxMode

from pwlu_det import DatasetError, build_train_loader
from pwlu_det.data.proposals import load_proposals_into_dataset, own_proposal_reader, read_proposals
from pwlu_det.engine.trainer import Trainer

BOXES = [np.array([[1, 2, 9, 9], [0, 0, 5, 6]], np.float32), np.array([[3, 3, 4, 4]], np.float32)]
LOGITS = [np.array([0.5, 2.0], np.float32), np.array([1.0], np.float32)]
PROPOSALS = {"ids": [np.int64(7), "b"], "boxes": BOXES, "objectness_logits": LOGITS, "bbox_mode": 0}


def write(folder, content):
    file = folder / "proposals.pkl"
    file.write_bytes(pickle.dumps(content))
    return str(file)


@pytest.mark.parametrize("old_names", [False, True])
def test_proposals_are_those_that_detectron2_reads(tmp_path, old_names):
    content = dict(PROPOSALS)
    if old_names:
        content["indexes"], content["scores"] = content.pop("ids"), content.pop("objectness_logits")
    file = write(tmp_path, content)
    images = [{"image_id": "b"}, {"image_id": 7}]
    ours = load_proposals_into_dataset([dict(image) for image in images], file)
    theirs = build.load_proposals_into_dataset([dict(image) for image in images], file)
    for own, stock in zip(ours, theirs):
        assert own.keys() == stock.keys() and own["proposal_bbox_mode"] == BoxMode.XYXY_ABS
        for key in ("proposal_boxes", "proposal_objectness_logits"):
            np.testing.assert_array_equal(own[key], stock[key])
    assert ours[1]["proposal_objectness_logits"].tolist() == [2.0, 0.5]


FAULTS = {
    "a list": ([PROPOSALS], "it must be a dictionary"),
    "no boxes": ({"ids": [], "objectness_logits": []}, "it must have lists ids, boxes, objectness_logits"),
    "lengths": ({**PROPOSALS, "ids": [7]}, "of the same length"),
    "ids": ({**PROPOSALS, "ids": [7, 1.5]}, "its ids must be integers or strings"),
    "shape": (
        {**PROPOSALS, "boxes": BOXES[::-1]},
        r"image 7 has boxes of shape \(1, 4\) and objectness_logits",
    ),
    "NaN": ({**PROPOSALS, "boxes": [BOXES[0] * np.nan, BOXES[1]]}, "arrays of finite numbers"),
    "objects": ({**PROPOSALS, "boxes": [np.array([{}]), BOXES[1]]}, "only numeric types are allowed"),
    "mode": ({**PROPOSALS, "bbox_mode": 17}, "17 is not a valid BoxMode"),
    "long mode": ({**PROPOSALS, "bbox_mode": "x" * 10**6}, "'x{900,1000}$"),
    "code": ({**PROPOSALS, "ids": os.mkdir}, "the file refers to posix.mkdir"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_fault_is_named(tmp_path, case):
    content, message = FAULTS[case]
    with pytest.raises(DatasetError, match=rf"proposals\.pkl is not a pickle of proposals: .*{message}"):
        read_proposals(write(tmp_path, content))


def test_missing_image_and_special_file(tmp_path):
    with pytest.raises(DatasetError, match="has no proposals for image 8"):
        load_proposals_into_dataset([{"image_id": 8}], write(tmp_path, PROPOSALS))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DatasetError, match="it is not an existing file"):
        read_proposals(str(tmp_path / "pipe"))


class Harmful:
    """A dtype whose pickle makes NumPy call a function: detectron2's own reader would run it."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def test_loaders_read_the_file_with_this_reader(cfg, tmp_path):
    """The file is replaced after it was checked, as somebody with access to the folder could do."""
    name = "proposals_test"
    DatasetCatalog.register(
        name,
        lambda: [
            {
                "image_id": 7,
                "file_name": "x",
                "height": 9,
                "width": 9,
                "annotations": [{"iscrowd": 0, "category_id": 0, "bbox": [0, 0, 1, 1], "bbox_mode": 0}],
            }
        ],
    )
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.MODEL.LOAD_PROPOSALS, cfg.SEED, cfg.DATALOADER.NUM_WORKERS = True, 1, 0
    file = write(tmp_path, PROPOSALS)
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = cfg.DATASETS.PROPOSAL_FILES_TEST = (file,)
    stock = build.load_proposals_into_dataset
    try:
        (image,) = (build_train_loader(cfg).dataset.images[i] for i in range(1))
        assert image["proposal_boxes"].tolist() == [[0, 0, 5, 6], [1, 2, 9, 9]]
        write(tmp_path, {**PROPOSALS, "x": Harmful(tmp_path / "ran")})
        for build_loader in (build_train_loader, lambda cfg: Trainer.build_test_loader(cfg, name)):
            with pytest.raises(DatasetError, match="mkdir"):
                build_loader(cfg)
        assert not (tmp_path / "ran").exists()
    finally:
        DatasetCatalog.remove(name)
    assert build.load_proposals_into_dataset is stock


def test_detectron2_s_own_reader_is_put_back_after_an_error():
    stock = build.load_proposals_into_dataset
    with pytest.raises(KeyError), own_proposal_reader():
        assert build.load_proposals_into_dataset is load_proposals_into_dataset
        raise KeyError
    assert build.load_proposals_into_dataset is stock
