"""Select the evaluator of a dataset by its metadata, as in detectron2's train_net.py."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib import import_module
from types import ModuleType, SimpleNamespace

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)
from detectron2.utils.file_io import PathManager
from PIL import Image

from pwlu_det.data.classification import EVALUATOR_TYPE, ClassificationEvaluator
from pwlu_det.errors import ConfigError, DatasetError


def _coco(name: str, folder: str, cfg) -> DatasetEvaluator:
    metadata = MetadataCatalog.get(name)
    is_converted = not hasattr(metadata, "json_file")
    evaluator = COCOEvaluator(
        name,
        output_dir=folder,
        kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
        # detectron2 converts other datasets to COCO format; a cached conversion may be out of date.
        allow_cached_coco=False,
    )
    if is_converted:  # the next evaluator must convert it again, as the dataset may have changed
        del metadata.json_file
    if 0 in evaluator._coco_api.anns:  # your own script may not have checked the file
        raise DatasetError(
            f"{metadata.json_file}: an annotation has the id 0, which COCO's evaluation treats as unmatched; "
            "it must be another integer"
        )
    return evaluator


def _sem_seg(name: str, folder: str, cfg) -> DatasetEvaluator:
    return SemSegEvaluator(name, distributed=True, output_dir=folder, sem_seg_loading_fn=_read_labels)


def _read_labels(file: str, dtype=None) -> np.ndarray:
    # The default function of detectron2's releases up to 2024 fails with NumPy 2.
    with PathManager.open(file, "rb") as f:
        return np.array(Image.open(f), dtype=dtype)


def _lvis(name: str, folder: str, cfg) -> DatasetEvaluator:
    _restore_numpy_names("lvis.eval")
    return LVISEvaluator(name, output_dir=folder)


def _cityscapes_instance(name: str, folder: str, cfg) -> DatasetEvaluator:
    module = _restore_numpy_names("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
    # It would write a debugging file to the working directory, which fails with the integers of NumPy 2.4.
    module.writeDict2JSON = lambda *_: None
    return CityscapesInstanceEvaluator(name)


def _cityscapes_sem_seg(name: str, folder: str, cfg) -> DatasetEvaluator:
    _restore_numpy_names("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    return CityscapesSemSegEvaluator(name)


def _restore_numpy_names(name: str) -> ModuleType:
    """Let a module use names that NumPy has removed: the last releases of lvis and cityscapesscripts do."""
    module = import_module(name)
    module.np = SimpleNamespace(**{"float": float, "in1d": np.isin, **vars(np)})
    return module


_EVALUATORS: dict[str, tuple[Callable[..., DatasetEvaluator], ...]] = {
    "coco": (_coco,),
    "sem_seg": (_sem_seg,),
    "coco_panoptic_seg": (
        _sem_seg,
        _coco,
        lambda name, folder, cfg: COCOPanopticEvaluator(name, folder),
    ),
    "cityscapes_instance": (_cityscapes_instance,),
    "cityscapes_sem_seg": (_cityscapes_sem_seg,),
    "pascal_voc": (lambda name, folder, cfg: PascalVOCDetectionEvaluator(name),),
    "lvis": (_lvis,),
    EVALUATOR_TYPE: (lambda name, folder, cfg: ClassificationEvaluator(),),
}
# The packages that detectron2 imports when it evaluates a dataset of each type, or reads it.
_EVALUATION_PACKAGES = {"coco_panoptic_seg": ("panopticapi",), "cityscapes_sem_seg": ("cityscapesscripts",)}
_READING_PACKAGES = {"cityscapes_instance": ("cityscapesscripts", "shapely"), "lvis": ("lvis",)}


def evaluator_type(dataset_name: str) -> str:
    """The evaluator type in the metadata of a dataset, or "coco" if there is none, as in custom datasets.

    Raises:
        ConfigError: the type is unknown, or a package that it requires is not installed.
    """
    name = _type_in_metadata(dataset_name)
    if name not in _EVALUATORS:
        raise ConfigError(
            f"DATASETS.TEST: the metadata of '{dataset_name}' has the unknown evaluator_type '{name}'; it "
            f"must be one of {', '.join(_EVALUATORS)}. For others, override build_evaluator in your trainer"
        )
    _check_installed(f"DATASETS.TEST: evaluating '{dataset_name}'", _EVALUATION_PACKAGES.get(name, ()))
    _check_installed(f"DATASETS.TEST: reading '{dataset_name}'", _READING_PACKAGES.get(name, ()))
    return name


def check_readable(dataset_name: str) -> None:
    """Check that the packages are installed that detectron2 imports to read a dataset for training.

    Raises:
        ConfigError: one is not.
    """
    packages = _READING_PACKAGES.get(_type_in_metadata(dataset_name), ())
    _check_installed(f"DATASETS.TRAIN: reading '{dataset_name}'", packages)


def _type_in_metadata(dataset_name: str) -> str:
    return MetadataCatalog.get(dataset_name).get("evaluator_type", "coco")


def _check_installed(use: str, packages: tuple[str, ...]) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"{use} requires the package {package}, which is not installed")


def build_evaluator(cfg, dataset_name: str, folder: str) -> DatasetEvaluator:
    """Build the evaluator of a dataset, which writes its results to ``folder``.

    Raises:
        ConfigError: see :func:`evaluator_type`.
        DatasetError: the ids in a COCO file would make its evaluation wrong.
    """
    evaluators = [build(dataset_name, folder, cfg) for build in _EVALUATORS[evaluator_type(dataset_name)]]
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)
