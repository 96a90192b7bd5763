import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from pwlu_det.data import digits

NUM_TRAIN, NUM_VAL = 12, 8


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A separate cache folder for each test, with only a few scenes."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PWLU_DET_CACHE", str(folder))
    monkeypatch.setattr(digits, "NUM_SCENES", {"train": NUM_TRAIN, "val": NUM_VAL})
    return folder


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_cache_dir_follows_the_environment_variable(monkeypatch, cache):
    assert digits.digits_dir() == cache / digits.VERSION
    monkeypatch.setenv("PWLU_DET_CACHE", "~/elsewhere")
    assert digits.cache_dir() == Path.home() / "elsewhere"
    monkeypatch.delenv("PWLU_DET_CACHE")
    assert digits.cache_dir() == Path.home() / ".cache" / "pwlu_det"


def test_relative_cache_dir_survives_a_change_of_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWLU_DET_CACHE", "relative")
    records = DatasetCatalog.get("digits_val")
    monkeypatch.chdir("/")
    assert all(Path(record["file_name"]).is_file() for record in records)


def test_generated_files_are_byte_identical(tmp_path):
    np.random.seed(1)
    digits.write_digits(tmp_path / "a")
    np.random.seed(2)
    state = np.random.get_state()[1].copy()
    digits.write_digits(tmp_path / "b")
    assert (np.random.get_state()[1] == state).all()
    made = contents(tmp_path / "a")
    assert len(made) == NUM_TRAIN + NUM_VAL + 2  # the images and two JSON files
    assert made == contents(tmp_path / "b")


def test_no_background_is_used_twice():
    corners = [np.asarray(Image.open(p))[0, :4].tobytes() for p in digits.digits_dir().rglob("*.png")]
    assert len(set(corners)) == len(corners) == NUM_TRAIN + NUM_VAL


def test_splits_share_no_digits():
    images, labels = digits.load_source()
    split = digits.split_digits(labels)
    assert sorted(np.concatenate([split["train"], split["val"]])) == list(range(1797))
    pixels = {name: {images[i].tobytes() for i in indices} for name, indices in split.items()}
    assert not pixels["train"] & pixels["val"]
    for label in range(10):
        share = np.mean(labels[split["val"]] == label) / np.mean(labels == label)
        assert share == pytest.approx(1, abs=0.05)


def test_scenes_use_the_digits_of_their_split(tmp_path, monkeypatch):
    pools = []
    make_scene = digits.make_scene

    def spy(images, labels, rng):
        pools.append({image.tobytes() for image in images})
        return make_scene(images, labels, rng)

    monkeypatch.setattr(digits, "make_scene", spy)
    digits.write_digits(tmp_path / "made")
    train, val = pools[0], pools[-1]
    assert pools == [train] * NUM_TRAIN + [val] * NUM_VAL
    assert len(train) + len(val) == 1797
    assert not train & val


def test_classes_match_the_pasted_digits(monkeypatch):
    # Bars that are 1 to 5 pixels wide and 8 pixels high stand in for the digits 0 to 4.
    bars = np.zeros((5, 8, 8), dtype=np.uint8)
    for label in range(5):
        bars[label, :, 1 : 2 + label] = 255
    monkeypatch.setattr(digits, "MAX_ANGLE", 0)
    seen = set()
    for seed in range(30):
        _, masks, classes = digits.make_scene(bars, np.arange(5), np.random.default_rng(seed))
        assert len(masks) == len(classes)
        for mask, label in zip(masks, classes):
            width, height = mask.any(0).sum(), mask.any(1).sum()
            assert 8 * width / height == pytest.approx(label + 1, abs=0.5)
            seen.add(label)
    assert seen == set(range(5))


@pytest.mark.parametrize(("split", "number"), [("train", NUM_TRAIN), ("val", NUM_VAL)])
def test_files_are_valid_coco(split, number):
    root = digits.digits_dir()
    coco = COCO(root / f"{split}.json")
    assert sorted(coco.imgs) == list(range(1, number + 1))
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
    assert [coco.cats[i]["name"] for i in range(1, 11)] == list("0123456789")
    for image in coco.imgs.values():
        pixels = np.asarray(Image.open(root / split / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3)
        annotations = coco.imgToAnns[image["id"]]
        assert annotations
        masks = np.stack([coco.annToMask(a) for a in annotations])
        assert masks.shape[1:] == pixels.shape[:2]
        assert masks.sum(0).max() == 1  # no overlap
        for annotation, mask in zip(annotations, masks):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            left, top = columns[0], rows[0]
            tight = [left, top, columns[-1] + 1 - left, rows[-1] + 1 - top]
            assert annotation["bbox"] == tight
            assert annotation["area"] == mask.sum() == mask_util.area(annotation["segmentation"])
            assert annotation["iscrowd"] == 0


def test_masks_cover_the_bright_strokes():
    image, masks, _ = digits.make_scene(*digits.load_source(), np.random.default_rng(0))
    inside = np.any(masks, axis=0)
    assert image[inside].mean() > image[~inside].mean() + 50


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_generation_leaves_no_files(monkeypatch, cache, error):
    calls = []

    def interrupt(*args):
        calls.append(args)
        if len(calls) == NUM_TRAIN + 2:
            raise error
        return make_scene(*args)

    make_scene = digits.make_scene
    with monkeypatch.context() as patch:
        patch.setattr(digits, "make_scene", interrupt)
        with pytest.raises(error):
            digits.digits_dir()
    assert len(calls) == NUM_TRAIN + 2
    assert list(cache.iterdir()) == []
    assert len(contents(digits.digits_dir())) == NUM_TRAIN + NUM_VAL + 2


def test_stale_temporary_folder_is_harmless(cache):
    stale = cache / f".{digits.VERSION}-stale" / digits.VERSION / "train"
    stale.mkdir(parents=True)
    (stale / "000000.png").write_bytes(b"half")
    assert len(contents(digits.digits_dir())) == NUM_TRAIN + NUM_VAL + 2


def test_slower_of_two_processes_uses_the_files_of_the_other(monkeypatch, cache):
    write_digits = digits.write_digits

    def overtaken(root):
        write_digits(root)
        write_digits(cache / digits.VERSION)
        (cache / digits.VERSION / "winner").touch()

    monkeypatch.setattr(digits, "write_digits", overtaken)
    assert (digits.digits_dir() / "winner").exists()
    assert [p.name for p in cache.iterdir()] == [digits.VERSION]


def test_failed_rename_is_an_error(monkeypatch, cache):
    def refuse(self, target):
        raise PermissionError("refused")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match=r"refused.*PWLU_DET_CACHE"):
        digits.digits_dir()
    assert list(cache.iterdir()) == []


def test_existing_files_are_reused(monkeypatch):
    digits.digits_dir()
    monkeypatch.setattr(digits, "write_digits", lambda root: pytest.fail("generated again"))
    digits.digits_dir()


def test_error_names_an_unwritable_folder(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "cache"  # not even root can create a folder inside a file
    monkeypatch.setenv("PWLU_DET_CACHE", str(folder))
    with pytest.raises(OSError, match="PWLU_DET_CACHE") as error:
        DatasetCatalog.get("digits_val")
    assert str(folder) in str(error.value)


def test_error_names_missing_scikit_learn(monkeypatch, cache):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="scikit-learn"):
        digits.digits_dir()
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("name", ["with space", "données-数字"])
def test_datasets_load_through_the_catalog(monkeypatch, tmp_path, name):
    monkeypatch.setenv("PWLU_DET_CACHE", str(tmp_path / name))
    for split, number in (("digits_train", NUM_TRAIN), ("digits_val", NUM_VAL)):
        records = DatasetCatalog.get(split)
        assert len(records) == number
        for record in records:
            assert Path(record["file_name"]).read_bytes().startswith(b"\x89PNG")
            assert {a["category_id"] for a in record["annotations"]} <= set(range(10))
        metadata = MetadataCatalog.get(split)
        assert metadata.thing_classes == list("0123456789")
        assert metadata.thing_dataset_id_to_contiguous_id == {i + 1: i for i in range(10)}
        assert metadata.evaluator_type == "coco"
        assert Path(metadata.image_root) == Path(records[0]["file_name"]).parent


def test_evaluator_can_be_built_before_the_loader(cache, tmp_path):
    COCOEvaluator("digits_val", output_dir=str(tmp_path / "output"))
    assert MetadataCatalog.get("digits_val").json_file == str(cache / digits.VERSION / "val.json")
    assert len(json.loads((cache / digits.VERSION / "val.json").read_text())["images"]) == NUM_VAL


def test_registering_twice_changes_nothing():
    before = MetadataCatalog.get("digits_train")
    digits.register_digits()
    assert MetadataCatalog.get("digits_train") is before


def test_import_only_registers(cache):
    code = (
        "import sys, pwlu_det.data\n"
        "from detectron2.data import DatasetCatalog\n"
        "assert {'digits_train', 'digits_val'} <= set(DatasetCatalog)\n"
        "assert 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not cache.exists()
