"""Select the evaluator of a dataset by its metadata, as in detectron2's train_net.py."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

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

from pwlu_det.errors import ConfigError


def _coco(name: str, folder: str, cfg) -> DatasetEvaluator:
    return COCOEvaluator(
        name,
        output_dir=folder,
        kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
        # detectron2 converts other datasets to COCO format; a cached conversion may be out of date.
        allow_cached_coco=False,
    )


def _sem_seg(name: str, folder: str, cfg) -> DatasetEvaluator:
    return SemSegEvaluator(name, distributed=True, output_dir=folder)


_EVALUATORS: dict[str, tuple[Callable[..., DatasetEvaluator], ...]] = {
    "coco": (_coco,),
    "sem_seg": (_sem_seg,),
    "coco_panoptic_seg": (
        _sem_seg,
        _coco,
        lambda name, folder, cfg: COCOPanopticEvaluator(name, folder),
    ),
    "cityscapes_instance": (lambda name, folder, cfg: CityscapesInstanceEvaluator(name),),
    "cityscapes_sem_seg": (lambda name, folder, cfg: CityscapesSemSegEvaluator(name),),
    "pascal_voc": (lambda name, folder, cfg: PascalVOCDetectionEvaluator(name),),
    "lvis": (lambda name, folder, cfg: LVISEvaluator(name, output_dir=folder),),
}
_PACKAGES = {
    "coco_panoptic_seg": "panopticapi",
    "cityscapes_instance": "cityscapesscripts",
    "cityscapes_sem_seg": "cityscapesscripts",
    "lvis": "lvis",
}


def evaluator_type(dataset_name: str) -> str:
    """The evaluator type in the metadata of a dataset, or "coco" if there is none, as in custom datasets.

    Raises:
        ConfigError: the type is unknown, or the package that it requires is not installed.
    """
    name = MetadataCatalog.get(dataset_name).get("evaluator_type", "coco")
    if name not in _EVALUATORS:
        raise ConfigError(
            f"DATASETS.TEST: the metadata of '{dataset_name}' has the unknown evaluator_type '{name}'; it "
            f"must be one of {', '.join(_EVALUATORS)}. For others, override build_evaluator in your trainer"
        )
    package = _PACKAGES.get(name)
    if package and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"DATASETS.TEST: evaluating '{dataset_name}' requires the package {package}, which is not "
            "installed"
        )
    return name


def build_evaluator(cfg, dataset_name: str, folder: str) -> DatasetEvaluator:
    """Build the evaluator of a dataset, which writes its results to ``folder``.

    Raises:
        ConfigError: see :func:`evaluator_type`.
    """
    evaluators = [build(dataset_name, folder, cfg) for build in _EVALUATORS[evaluator_type(dataset_name)]]
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)
