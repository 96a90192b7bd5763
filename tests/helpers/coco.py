"""A few images in the layout that detectron2 expects of COCO under $DETECTRON2_DATASETS."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

NUM_IMAGES = {"train2017": 6, "val2017": 2}
HEIGHT, WIDTH = 64, 80


def write_coco(root: Path) -> None:
    """Write ``root/coco/{annotations,train2017,val2017}``: bright boxes of two classes on noise."""
    rng = np.random.default_rng(0)
    for split, num_images in NUM_IMAGES.items():
        folder = root / "coco" / split
        folder.mkdir(parents=True)
        images, annotations = [], []
        for i in range(num_images):
            image = rng.integers(0, 80, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            for category, (x, y, w, h) in ((1, (6, 8, 30, 28)), (18, (42, 20, 32, 40))):
                x, y = x + int(rng.integers(0, 5)), y + int(rng.integers(0, 4))
                image[y : y + h, x : x + w] = 120 + 60 * (category == 1)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i,
                        "category_id": category,
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    }
                )
            cv2.imwrite(str(folder / f"{i:012d}.jpg"), image)
            images.append({"id": i, "file_name": f"{i:012d}.jpg", "height": HEIGHT, "width": WIDTH})
        categories = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
        file = root / "coco/annotations" / f"instances_{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
