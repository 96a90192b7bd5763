"""The images of ``write_coco`` as all datasets of detectron2's model zoo, under $DETECTRON2_DATASETS."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
from coco import HEIGHT, WIDTH, write_coco
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.lvis_v0_5_categories import LVIS_CATEGORIES as LVIS_V0_5
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES as LVIS_V1
from PIL import Image

PERSON, DOG, SKY = 1, 18, 187  # ids in COCO
STUFF = [c["id"] for c in COCO_CATEGORIES if not c["isthing"]]


def write_all(root: Path) -> None:
    write_coco(root)
    for split in ("train2017", "val2017"):
        file = root / f"coco/annotations/instances_{split}.json"
        content = json.loads(file.read_text())
        write_keypoints(root, split, content)
        write_panoptic(root, split, content)
        write_lvis(root, split, content)
        write_voc(root, split, content)
        write_cityscapes(root, split, content)


def write_keypoints(root: Path, split: str, content: dict) -> None:
    """Persons with 17 keypoints on the diagonal of their box, the last one not labelled."""
    persons = [dict(a) for a in content["annotations"] if a["category_id"] == PERSON]
    for person in persons:
        x, y, w, h = person["bbox"]
        points = [c for i in range(16) for c in (x + w * i / 17, y + h * i / 17, 2)]
        person["keypoints"], person["num_keypoints"] = [*points, 0, 0, 0], 16
    file = root / f"coco/annotations/person_keypoints_{split}.json"
    categories = [{"id": PERSON, "name": "person"}]
    write_json(file, {**content, "annotations": persons, "categories": categories})


def write_panoptic(root: Path, split: str, content: dict) -> None:
    """Sky around the boxes: panoptic annotations, and the semantic ones that detectron2 makes of them."""
    annotations = []
    for image in content["images"]:
        ids = np.full((HEIGHT, WIDTH), 1)
        semantic = np.full((HEIGHT, WIDTH), 1 + STUFF.index(SKY))
        segments = [{"id": 1, "category_id": SKY, "iscrowd": 0, "bbox": [0, 0, WIDTH, HEIGHT]}]
        for a in of(image, content):
            x, y, w, h = a["bbox"]
            segment = len(segments) + 1
            ids[y : y + h, x : x + w], semantic[y : y + h, x : x + w] = segment, 0
            segments.append({"id": segment, "category_id": a["category_id"], "iscrowd": 0, "bbox": a["bbox"]})
        for segment in segments:
            segment["area"] = int((ids == segment["id"]).sum())
        name = image["file_name"].replace("jpg", "png")
        rgb = np.stack([ids, ids * 0, ids * 0], axis=-1)
        save(root / f"coco/panoptic_{split}" / name, rgb)
        save(root / f"coco/panoptic_stuff_{split}" / name, semantic)
        annotations.append({"image_id": image["id"], "file_name": name, "segments_info": segments})
    categories = [{k: c[k] for k in ("id", "name", "isthing", "color")} for c in COCO_CATEGORIES]
    file = root / f"coco/annotations/panoptic_{split}.json"
    write_json(file, {**content, "annotations": annotations, "categories": categories})


def write_lvis(root: Path, split: str, content: dict) -> None:
    for version, categories in (("v0.5", LVIS_V0_5), ("v1", LVIS_V1)):
        ids = {c["synonyms"][0]: c["id"] for c in categories}
        lvis_id = {PERSON: ids["person" if "person" in ids else "baby"], DOG: ids["dog"]}
        keys = ("id", "image_id", "bbox", "area", "segmentation")
        annotations = [
            {**{k: a[k] for k in keys}, "category_id": lvis_id[a["category_id"]]}
            for a in content["annotations"]
        ]
        images = [
            {
                **image,
                "coco_url": f"images/{split}/{image['file_name']}",
                "neg_category_ids": [],
                "not_exhaustive_category_ids": [],
            }
            for image in content["images"]
        ]
        used = [{**c, "instance_count": 1, "image_count": 1} for c in categories]
        file = root / f"lvis/lvis_{version}_{split.replace('2017', '')}.json"
        write_json(file, {"images": images, "annotations": annotations, "categories": used})


def write_voc(root: Path, split: str, content: dict) -> None:
    for year in (2007, 2012):
        folder = root / f"VOC{year}"
        names = []
        for image in content["images"]:
            names.append(f"{split}_{image['id']}")
            (folder / "JPEGImages").mkdir(parents=True, exist_ok=True)
            shutil.copy(root / "coco" / split / image["file_name"], folder / f"JPEGImages/{names[-1]}.jpg")
            tree = ET.Element("annotation")
            add(ET.SubElement(tree, "size"), width=WIDTH, height=HEIGHT, depth=3)
            for a in of(image, content):
                x, y, w, h = a["bbox"]
                thing = ET.SubElement(tree, "object")
                name = "person" if a["category_id"] == PERSON else "dog"
                add(thing, name=name, pose="x", truncated=0, difficult=0)
                box = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
                add(ET.SubElement(thing, "bndbox"), **box)
            (folder / "Annotations").mkdir(exist_ok=True)
            ET.ElementTree(tree).write(folder / f"Annotations/{names[-1]}.xml")
        file = folder / "ImageSets/Main" / ("trainval.txt" if "train" in split else "test.txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(names) + "\n")


def write_cityscapes(root: Path, split: str, content: dict) -> None:
    """Persons and cars on a road; ids as in cityscapesscripts.helpers.labels."""
    split_folder, road = split.replace("2017", ""), 7
    for image in content["images"]:
        stem = f"town_{image['id']:06d}_000000"
        source = Image.open(root / "coco" / split / image["file_name"])
        save(root / f"cityscapes/leftImg8bit/{split_folder}/town/{stem}_leftImg8bit.png", np.asarray(source))
        labels = np.full((HEIGHT, WIDTH), road)
        instances, trained = labels.copy(), np.zeros((HEIGHT, WIDTH))
        objects = []
        for a in of(image, content):
            x, y, w, h = a["bbox"]
            label, train_id, name = (24, 11, "person") if a["category_id"] == PERSON else (26, 13, "car")
            labels[y : y + h, x : x + w], trained[y : y + h, x : x + w] = label, train_id
            instances[y : y + h, x : x + w] = label * 1000
            corners = [[x, y], [x + w - 1, y], [x + w - 1, y + h - 1], [x, y + h - 1]]
            objects.append({"label": name, "polygon": corners})
        folder = root / f"cityscapes/gtFine/{split_folder}/town"
        save(folder / f"{stem}_gtFine_labelIds.png", labels)
        save(folder / f"{stem}_gtFine_labelTrainIds.png", trained)
        save(folder / f"{stem}_gtFine_instanceIds.png", instances, np.uint16)
        polygons = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}
        write_json(folder / f"{stem}_gtFine_polygons.json", polygons)


def of(image: dict, content: dict) -> list[dict]:
    return [a for a in content["annotations"] if a["image_id"] == image["id"]]


def add(element: ET.Element, **children) -> None:
    for key, value in children.items():
        ET.SubElement(element, key).text = str(value)


def write_json(file: Path, content: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def save(file: Path, pixels: np.ndarray, dtype=np.uint8) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(dtype)).save(file)
