"""The evaluator of a dataset is chosen by the evaluator_type in its metadata."""

import copy
import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
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
    cfg.DATASETS.TEST = ("own_lvis",)
    with pytest.raises(ConfigError, match="evaluating 'own_lvis' requires the package lvis, which is not"):
        check_datasets(cfg, training=False)


# --- annotation ids -------------------------------------------------------------------------------


def write_coco(folder, first_id, area=800.0):
    Image.fromarray(np.zeros((100, 100, 3), np.uint8)).save(folder / "x.jpg")
    annotations = [
        {"id": first_id + i, "image_id": 1, "category_id": 1, "bbox": [10 * i, 20, 20, 40], "iscrowd": 0}
        for i in range(2)
    ]
    for annotation in annotations:
        annotation["area"] = area
    content = {
        "images": [{"id": 1, "file_name": "x.jpg", "height": 100, "width": 100}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / "set.json").write_text(json.dumps(content))
    return str(folder / "set.json"), copy.deepcopy(content)


def test_annotation_id_0_is_an_error_in_evaluation(tmp_path):
    file, _ = write_coco(tmp_path, 0)
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
    from detectron2.data.datasets import register_coco_instances

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


def test_areas_larger_than_their_boxes_are_counted(tmp_path):
    file, _ = write_coco(tmp_path, 1, area=5000.0)
    note = check_coco(file, str(tmp_path), Use(training=False)).note
    assert "2 areas are larger than their boxes" in note


def test_panoptic_evaluation_has_three_evaluators(cfg, monkeypatch, catalog):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    built = {
        name: type(name, (), {"__init__": lambda self, *a, **k: None, "reset": lambda self: None})
        for name in ("SemSegEvaluator", "COCOEvaluator", "COCOPanopticEvaluator")
    }
    for name, cls in built.items():
        monkeypatch.setattr(f"pwlu_det.data.evaluators.{name}", cls)
    DatasetCatalog.register("own_panoptic", list)
    MetadataCatalog.get("own_panoptic").set(evaluator_type="coco_panoptic_seg")
    evaluator = Trainer.build_evaluator(cfg, "own_panoptic")
    assert isinstance(evaluator, DatasetEvaluators)
    assert [type(e) for e in evaluator._evaluators] == list(built.values())
