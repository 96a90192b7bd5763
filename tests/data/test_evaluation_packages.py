"""Perfect predictions get perfect scores from LVIS's, Cityscapes' and COCO's panoptic evaluation."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic
from detectron2.data.datasets.coco import load_coco_json
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json
from detectron2.data.datasets.lvis import load_lvis_json
from detectron2.structures import Boxes, Instances
from PIL import Image
from zoo import write_all

from pwlu_det import Trainer

HEIGHT, WIDTH = 64, 80


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_all(root)
    return root


@pytest.fixture
def dataset():
    """A function that registers a dataset for the time of a test."""
    names = []

    def register(name, images, **metadata):
        DatasetCatalog.register(name, lambda: images)
        MetadataCatalog.get(name).set(**metadata)
        names.append(name)

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def instances_of(image):
    """The annotated objects as detections."""
    instances = Instances((HEIGHT, WIDTH))
    boxes = torch.tensor([a["bbox"] for a in image["annotations"]]).float()
    boxes[:, 2:] += boxes[:, :2]
    masks = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist()):
        mask[y0:y1, x0:x1] = True
    instances.pred_boxes, instances.pred_masks = Boxes(boxes), masks
    instances.scores = torch.linspace(0.9, 0.8, len(boxes))
    instances.pred_classes = torch.tensor([a["category_id"] for a in image["annotations"]])
    return {"instances": instances}


def evaluate(cfg, folder, name, outputs):
    cfg.OUTPUT_DIR = str(folder)
    evaluator = Trainer.build_evaluator(cfg, name)
    evaluator.reset()
    for image, output in zip(DatasetCatalog.get(name), outputs):
        evaluator.process([image], [output])
    return evaluator.evaluate()


@pytest.mark.parametrize("version", ["v0.5", "v1"])
def test_lvis(cfg, root, dataset, tmp_path, version):
    file = root / f"lvis/lvis_{version}_val.json"
    images = load_lvis_json(str(file), str(root / "coco") + "/")
    classes = [c["synonyms"][0] for c in json.loads(file.read_text())["categories"]]
    dataset("own_lvis", images, json_file=str(file), evaluator_type="lvis", thing_classes=classes)
    results = evaluate(cfg, tmp_path, "own_lvis", map(instances_of, images))
    assert results["bbox"]["AP"] == pytest.approx(100) == results["segm"]["AP"]
    images[0]["annotations"] = images[0]["annotations"][:1]  # one of four objects is missed
    results = evaluate(cfg, tmp_path, "own_lvis", map(instances_of, images))
    assert results["bbox"]["AP"] == pytest.approx(75, abs=0.5)  # 100 and 50 for the two categories


def test_cityscapes(cfg, root, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = str(root / "cityscapes/leftImg8bit/val/"), str(root / "cityscapes/gtFine/val/")
    metadata = {"gt_dir": folders[1], **_get_builtin_metadata("cityscapes")}
    images = sorted(load_cityscapes_semantic(*folders), key=lambda image: image["file_name"])
    dataset("own_sem_seg", images, evaluator_type="cityscapes_sem_seg", ignore_label=255, **metadata)
    outputs = []
    for image in images:
        labels = torch.from_numpy(np.array(Image.open(image["sem_seg_file_name"]))).long()
        outputs.append({"sem_seg": torch.nn.functional.one_hot(labels, 19).permute(2, 0, 1)})
    results = evaluate(cfg, tmp_path, "own_sem_seg", outputs)
    assert results["sem_seg"]["IoU"] == pytest.approx(100)

    coco = load_coco_json(str(root / "coco/annotations/instances_val2017.json"), str(root / "coco/val2017"))
    images = [{**image, "file_name": i["file_name"]} for image, i in zip(coco, images)]
    for image in images:
        for annotation in image["annotations"]:  # person and car
            annotation["category_id"] = 0 if annotation["category_id"] == 1 else 2
    dataset("own_instances", images, evaluator_type="cityscapes_instance", **metadata)
    outputs = list(map(instances_of, images))
    assert evaluate(cfg, tmp_path, "own_instances", outputs)["segm"]["AP"] == pytest.approx(100)
    assert list(tmp_path.iterdir()) == []  # nothing is left in the working directory


def test_panoptic(cfg, root, dataset, tmp_path):
    metadata = _get_builtin_metadata("coco_panoptic_separated")
    coco, panoptic_root = root / "coco", str(root / "coco/panoptic_val2017")
    panoptic_json = str(coco / "annotations/panoptic_val2017.json")
    json_file = str(coco / "annotations/instances_val2017.json")
    images = load_coco_panoptic_json(panoptic_json, str(coco / "val2017"), panoptic_root, metadata)
    instances = load_coco_json(json_file, str(coco / "val2017"), "own_panoptic")
    for image, other in zip(images, instances):
        image["annotations"] = other["annotations"]
        image["sem_seg_file_name"] = image["pan_seg_file_name"].replace("panoptic_val", "panoptic_stuff_val")
    dataset(
        "own_panoptic",
        images,
        evaluator_type="coco_panoptic_seg",
        json_file=json_file,
        panoptic_json=panoptic_json,
        panoptic_root=panoptic_root,
        ignore_label=255,
        **{k: v for k, v in metadata.items() if k not in MetadataCatalog.get("own_panoptic").as_dict()},
    )
    outputs = []
    for image in images:
        ids = torch.from_numpy(np.array(Image.open(image["pan_seg_file_name"]))[:, :, 0]).int()
        labels = torch.from_numpy(np.array(Image.open(image["sem_seg_file_name"]))).long()
        semantic = torch.nn.functional.one_hot(labels, len(metadata["stuff_classes"])).permute(2, 0, 1)
        segments = [dict(s) for s in image["segments_info"]]
        outputs.append({**instances_of(image), "sem_seg": semantic, "panoptic_seg": (ids, segments)})
    results = evaluate(cfg, tmp_path, "own_panoptic", outputs)
    assert results["panoptic_seg"]["PQ"] == pytest.approx(100)
    assert results["sem_seg"]["mIoU"] == pytest.approx(100)
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100)
