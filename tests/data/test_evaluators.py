"""The evaluator of a dataset is chosen by the evaluator_type in its metadata."""

import copy
import json
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.pascal_voc import register_pascal_voc
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluators,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from pwlu_det import ConfigError, Trainer
from pwlu_det.data.coco_check import Use, check_coco
from pwlu_det.data.dataset_check import check_datasets
from pwlu_det.errors import DatasetError

BOX = [10.0, 20.0, 40.0, 60.0]  # x0, y0, x1, y1


@pytest.fixture
def catalog():
    """Remove the datasets registered by a test after the test."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def perfect(num_classes=1, box=BOX):
    instances = Instances((100, 100))
    instances.pred_boxes = Boxes(torch.tensor([box]))
    instances.scores = torch.tensor([0.9])
    instances.pred_classes = torch.tensor([0])
    return {"instances": instances}


def evaluate(evaluator, inputs, outputs):
    evaluator.reset()
    evaluator.process(inputs, outputs)
    return evaluator.evaluate()


def write_voc(root):
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/Main/test.txt").write_text("000001\n")
    Image.fromarray(np.zeros((100, 100, 3), np.uint8)).save(root / "JPEGImages/000001.jpg")
    tree = ET.Element("annotation")
    size = ET.SubElement(tree, "size")
    for key, value in (("width", 100), ("height", 100), ("depth", 3)):
        ET.SubElement(size, key).text = str(value)
    thing = ET.SubElement(tree, "object")
    for key, value in (("name", "cat"), ("pose", "x"), ("truncated", 0), ("difficult", 0)):
        ET.SubElement(thing, key).text = str(value)
    box = ET.SubElement(thing, "bndbox")
    for key, value in zip(("xmin", "ymin", "xmax", "ymax"), BOX):
        ET.SubElement(box, key).text = str(int(value))
    ET.ElementTree(tree).write(root / "Annotations/000001.xml")


def test_pascal_voc_has_its_own_evaluator(cfg, tmp_path, catalog):
    write_voc(tmp_path)
    register_pascal_voc("own_voc", str(tmp_path), "test", 2007, class_names=["cat"])
    MetadataCatalog.get("own_voc").evaluator_type = "pascal_voc"
    evaluator = Trainer.build_evaluator(cfg, "own_voc")
    assert isinstance(evaluator, PascalVOCDetectionEvaluator)
    box = [9.0, 19.0, 40.0, 60.0]  # zero-based pixels; VOC's are one-based
    results = evaluate(evaluator, [{"image_id": "000001"}], [perfect(box=box)])
    assert results["bbox"]["AP"] == pytest.approx(100)


def coco_dicts(box):
    annotation = {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    return [{"file_name": "x.jpg", "image_id": 1, "height": 100, "width": 100, "annotations": [annotation]}]


def test_corrected_annotations_are_used(cfg, tmp_path, catalog):
    """detectron2 would reuse the COCO file to which it converted the previous annotations."""
    boxes = [[50.0, 50.0, 60.0, 60.0], BOX]
    cfg.OUTPUT_DIR = str(tmp_path)
    for box, expected in zip(boxes, (0, 100)):
        DatasetCatalog.register("own", lambda box=box: coco_dicts(box))
        MetadataCatalog.get("own").set(thing_classes=["cat"])
        evaluator = Trainer.build_evaluator(cfg, "own")
        results = evaluate(evaluator, [{"image_id": 1}], [perfect()])
        assert results["bbox"]["AP"] == pytest.approx(expected, abs=1e-3)
        DatasetCatalog.remove("own")
        MetadataCatalog.remove("own")


def test_annotations_corrected_in_the_same_process_are_used(cfg, tmp_path, catalog):
    """detectron2 enters the file to which it converted them in the metadata."""
    box = [50.0, 50.0, 60.0, 60.0]
    DatasetCatalog.register("own", lambda: coco_dicts(box))
    MetadataCatalog.get("own").set(thing_classes=["cat"])
    cfg.OUTPUT_DIR = str(tmp_path)
    for expected in (0, 100):
        results = evaluate(Trainer.build_evaluator(cfg, "own"), [{"image_id": 1}], [perfect()])
        assert results["bbox"]["AP"] == pytest.approx(expected, abs=1e-3)
        box[:] = BOX


def test_evaluator_types(cfg, tmp_path, catalog):
    def evaluator_of(kind):
        name = f"own_{kind}"
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(
            evaluator_type=kind, stuff_classes=["a"], ignore_label=255, json_file=str(tmp_path / "x.json")
        )
        return Trainer.build_evaluator(cfg, name)

    (tmp_path / "x.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    assert type(evaluator_of("coco")) is COCOEvaluator
    assert type(evaluator_of("sem_seg")) is SemSegEvaluator
    with pytest.raises(
        ConfigError, match="has the unknown evaluator_type 'depth'; it must be one of coco, sem"
    ):
        evaluator_of("depth")


def test_error_names_a_missing_package_before_training(cfg, monkeypatch, catalog):
    DatasetCatalog.register("own_lvis", list)
    MetadataCatalog.get("own_lvis").set(evaluator_type="lvis")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("own_lvis",)
    for key, training in (("TEST", False), ("TRAIN", True)):
        match = f"DATASETS.{key}: reading 'own_lvis' requires the package lvis, which is not installed"
        with pytest.raises(ConfigError, match=match):
            check_datasets(cfg, training)
    MetadataCatalog.remove("own_lvis")
    MetadataCatalog.get("own_lvis").set(evaluator_type="coco_panoptic_seg")
    with pytest.raises(ConfigError, match="evaluating 'own_lvis' requires the package panopticapi"):
        check_datasets(cfg, training=False)


# --- annotation ids -------------------------------------------------------------------------------


def write_coco(folder, first_id, area=800.0, box=None, **changes):
    Image.fromarray(np.zeros((100, 100, 3), np.uint8)).save(folder / "x.jpg")
    annotations = [
        {"id": first_id + i, "image_id": 1, "category_id": 1, "bbox": [10 * i, 20, 20, 40], "iscrowd": 0}
        for i in range(2)
    ]
    for annotation in annotations[: 1 if box else 2]:
        annotation.update({"area": area, **changes})
    if box:
        annotations = [{**annotations[0], "bbox": box}]
    content = {
        "images": [{"id": 1, "file_name": "x.jpg", "height": 100, "width": 100}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / "set.json").write_text(json.dumps(content))
    return str(folder / "set.json"), copy.deepcopy(content)


def test_annotation_id_0_is_an_error_in_evaluation(cfg, tmp_path, catalog):
    file, _ = write_coco(tmp_path, 0)
    register_coco_instances("own_coco", {}, file, str(tmp_path))
    with pytest.raises(DatasetError, match=r"set\.json: an annotation has the id 0"):  # in a script
        Trainer.build_evaluator(cfg, "own_coco")
    with pytest.raises(
        DatasetError, match=r"annotations\[0\]: id is 0, which COCO's evaluation treats as unmatched"
    ):
        check_coco(file, str(tmp_path), Use(training=False))
    assert "an annotation has the id 0" in check_coco(file, str(tmp_path), Use(training=True)).note


@pytest.mark.parametrize("first_id", [1, -2])
def test_other_annotation_ids_are_evaluated_correctly(cfg, tmp_path, catalog, first_id):
    """COCO's evaluation treats only the id 0 as unmatched; negative ids are like any other."""
    file, content = write_coco(tmp_path, first_id)
    assert check_coco(file, str(tmp_path), Use(training=False)).note == "1 images, 2 annotations"
    register_coco_instances("own_coco", {}, file, str(tmp_path))
    DatasetCatalog.get("own_coco")
    instances = Instances((100, 100))
    boxes = [a["bbox"] for a in content["annotations"]]
    instances.pred_boxes = Boxes(torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes]).float())
    instances.scores, instances.pred_classes = torch.tensor([0.9, 0.8]), torch.tensor([0, 0])
    cfg.OUTPUT_DIR = str(tmp_path)
    evaluator = Trainer.build_evaluator(cfg, "own_coco")
    results = evaluate(evaluator, [{"image_id": 1}], [{"instances": instances}])
    assert results["bbox"]["AP"] == pytest.approx(100)


AREAS = {  # of two objects, each with a box of 20x40
    "the box": (800.0, None, 0),
    "larger than the box": (5000.0, None, 2),
    "half the box": (400.0, None, 0),
    "the mask": (1800.0, [[0, 0, 60, 0, 60, 30, 0, 30]], 0),
    "of two polygons": (2000.0, [[0, 0, 40, 0, 40, 25, 0, 25], [0, 50, 40, 50, 40, 75, 0, 75]], 0),
    "zero with a medium mask": (0.0, [[0, 0, 60, 0, 60, 30, 0, 30]], 2),
    "large with a small mask": (1e5, {"size": [100, 100], "counts": [0, 900, 9100]}, 2),
    "wrong, but of the same size class": (9000.0, [[0, 0, 60, 0, 60, 30, 0, 30]], 0),
}


@pytest.mark.parametrize("case", AREAS)
def test_areas_that_do_not_match_masks_or_boxes_are_counted(tmp_path, case):
    area, segmentation, wrong = AREAS[case]
    file, _ = write_coco(tmp_path, 1, area=area, segmentation=segmentation)
    note = check_coco(file, str(tmp_path), Use(training=False)).note
    expected = f"; {wrong} areas do not match their masks or boxes" if wrong else ""
    assert note.startswith("1 images, 2 annotations" + expected) and ("areas" in note) == bool(wrong)


def test_masks_of_images_that_are_not_in_the_file_are_not_read(tmp_path):
    file, _ = write_coco(tmp_path, 1, image_id=7, segmentation={"size": [2, 2], "counts": "?"})
    note = check_coco(file, str(tmp_path), Use(training=False)).note
    assert "2 annotations of images that are not in the file" in note


def test_area_zero_makes_ap_by_size_wrong(cfg, tmp_path, catalog):
    """What the note is about: the perfect detection of a medium object."""
    cfg.OUTPUT_DIR = str(tmp_path)
    for name, area, medium in (("right", 1800.0, 100.0), ("zero", 0.0, float("nan"))):
        file, _ = write_coco(tmp_path, 1, area=area, box=[0, 0, 60, 30])
        register_coco_instances(name, {}, file, str(tmp_path))
        DatasetCatalog.get(name)
        evaluator = Trainer.build_evaluator(cfg, name)
        results = evaluate(evaluator, [{"image_id": 1}], [perfect(box=[0.0, 0.0, 60.0, 30.0])])
        assert results["bbox"]["APm"] == pytest.approx(medium, nan_ok=True)


def test_image_ids_of_another_type_are_an_error(tmp_path):
    """COCO's evaluation would find no object in any image."""
    file, content = write_coco(tmp_path, 1)
    content["annotations"][1]["image_id"] = "1"
    (tmp_path / "set.json").write_text(json.dumps(content))
    for training in (True, False):
        with pytest.raises(DatasetError, match="image_id is '1'; it must be an integer, like the ids of the"):
            check_coco(file, str(tmp_path), Use(training))


KEYPOINTS = {
    "right": ({"keypoints": [1, 2, 2, 3, 4, 1, 0, 0, 0], "num_keypoints": 2}, ""),
    "none": ({}, r"keypoints is None; it must have x, y and visibility for each of the 3 keypoints"),
    "too few": ({"keypoints": [1, 2, 2], "num_keypoints": 1}, r"each of the 3 keypoints of MODEL"),
    "not counted": ({"keypoints": [1, 2, 2] * 3}, "num_keypoints is None; it must be 3"),
    "wrong count": ({"keypoints": [1, 2, 2] * 3, "num_keypoints": 0}, "num_keypoints is 0; it must be 3"),
}


@pytest.mark.parametrize("case", KEYPOINTS)
def test_keypoints_that_cannot_be_evaluated_are_an_error(tmp_path, case):
    changes, message = KEYPOINTS[case]
    file, _ = write_coco(tmp_path, 1, **changes)
    if not message:
        check_coco(file, str(tmp_path), Use(training=False, num_keypoints=3))
        return
    with pytest.raises(DatasetError, match=message):
        check_coco(file, str(tmp_path), Use(training=False, num_keypoints=3))
    if case != "too few":  # training reads neither the count nor objects without keypoints
        check_coco(file, str(tmp_path), Use(training=True, num_keypoints=3))


def test_number_of_sigmas_is_checked_before_training(cfg, tmp_path, catalog):
    file, _ = write_coco(tmp_path, 1, keypoints=[1, 2, 2] * 3, num_keypoints=3)
    DatasetCatalog.register("own", list)
    MetadataCatalog.get("own").set(
        json_file=file, image_root=str(tmp_path), thing_classes=["cat"], evaluator_type="coco"
    )
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("own",)
    cfg.MODEL.KEYPOINT_ON, cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = True, 3
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    with pytest.raises(ConfigError, match=r"OKS_SIGMAS has 0 values; it must have one for each of"):
        check_datasets(cfg, training=True)
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.1, 0.1, 0.1]
    check_datasets(cfg, training=True)


def test_coco_file_without_evaluator_type_is_checked_before_evaluation(cfg, tmp_path, catalog):
    """detectron2 evaluates it with COCO's evaluation, too."""
    file, _ = write_coco(tmp_path, 0)
    DatasetCatalog.register("own", list)
    MetadataCatalog.get("own").set(json_file=file, thing_classes=["cat"])
    cfg.DATASETS.TEST = ("own",)
    with pytest.raises(DatasetError, match="id is 0"):
        check_datasets(cfg, training=False)


def test_number_of_stuff_classes_is_checked(cfg, catalog):
    DatasetCatalog.register("own", list)
    MetadataCatalog.get("own").set(evaluator_type="sem_seg", stuff_classes=["a", "b"], ignore_label=255)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("own",)
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    for number, word in ((1, "least"), (3, "most")):
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = number
        with pytest.raises(ConfigError, match=f"NUM_CLASSES is {number}; it must be at {word} 2, the"):
            check_datasets(cfg, training=number == 1)


def test_panoptic_evaluation_has_three_evaluators(cfg, monkeypatch, catalog):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    members = {
        "__init__": lambda self, *a, **k: None,
        "reset": lambda self: None,
        "_coco_api": SimpleNamespace(anns={}),
    }
    built = {
        name: type(name, (), members)
        for name in ("SemSegEvaluator", "COCOEvaluator", "COCOPanopticEvaluator")
    }
    for name, cls in built.items():
        monkeypatch.setattr(f"pwlu_det.data.evaluators.{name}", cls)
    DatasetCatalog.register("own_panoptic", list)
    MetadataCatalog.get("own_panoptic").set(evaluator_type="coco_panoptic_seg", json_file="x.json")
    evaluator = Trainer.build_evaluator(cfg, "own_panoptic")
    assert isinstance(evaluator, DatasetEvaluators)
    assert [type(e) for e in evaluator._evaluators] == list(built.values())
