"""Check the datasets of a config before anything is built."""

from __future__ import annotations

import os

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from pwlu_det.config import architecture
from pwlu_det.data.classification import EVALUATOR_TYPE
from pwlu_det.data.coco_check import Summary, Use, check_coco
from pwlu_det.data.evaluators import check_readable, evaluator_type
from pwlu_det.data.proposals import read_proposals
from pwlu_det.errors import ConfigError, DatasetError

_CLASS_COUNTS = {"RetinaNet": "RETINANET", "GeneralizedRCNN": "ROI_HEADS", "PanopticFPN": "ROI_HEADS"}
_COCO_KEYPOINTS = 17


def check_datasets(cfg, training: bool) -> list[str]:
    """Check that the datasets exist and, if they are in COCO format, that their content is valid.

    Returns:
        One line for the log per dataset, which says what detectron2 will leave out.

    Raises:
        ConfigError: a config key does not fit the datasets.
        DatasetError: a dataset is missing or damaged.
    """
    notes = []
    for key in ("TRAIN", "TEST") if training else ("TEST",):
        summaries: dict[str, Summary] = {}
        for name in cfg.DATASETS[key]:
            metadata = _find(f"DATASETS.{key}", name)
            if key == "TEST":
                evaluator_type(name)
            else:
                check_readable(name)
            _check_kind(cfg, metadata, key)
            _check_stuff_classes(cfg, metadata, key == "TRAIN")
            if _has_coco_file(metadata, key == "TRAIN"):
                use = Use(
                    training=key == "TRAIN",
                    mask_format=cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else "",
                    num_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if cfg.MODEL.KEYPOINT_ON else 0,
                )
                summary = check_coco(metadata.json_file, metadata.get("image_root"), use)
                summaries[name] = summary
                _check_classes(cfg, metadata, summary.classes, use.training)
                notes.append(f"{name}: {summary.note}")
        if cfg.MODEL.KEYPOINT_ON and key == "TEST" and cfg.DATASETS.TEST:
            _check_sigmas(cfg)
        if key == "TRAIN" and len(summaries) == len(cfg.DATASETS.TRAIN):
            _check_together(cfg, summaries)
        if cfg.MODEL.LOAD_PROPOSALS:
            _check_proposals(cfg, key)
    return notes


def _find(key: str, name: str) -> Metadata:
    if name not in DatasetCatalog.list():
        known = ", ".join(DatasetCatalog.list())
        raise ConfigError(f"{key}: unknown dataset '{name}'; it must be one of {known}")
    metadata = MetadataCatalog.get(name)
    try:
        annotations = metadata.get("json_file")
    except (OSError, ImportError) as error:  # the digits cannot be generated
        raise DatasetError(f"{key}: {error}") from error
    if annotations and not os.path.isfile(annotations):
        raise DatasetError(
            f"{key}: dataset '{name}' is missing: there is no file {annotations}. The environment variable "
            "DETECTRON2_DATASETS names the folder of detectron2's datasets (default: ./datasets)."
        )
    return metadata


def _check_kind(cfg, metadata: Metadata, key: str) -> None:
    """Classifiers need datasets for classification, and detectors all others."""
    classifies = metadata.get("evaluator_type") == EVALUATOR_TYPE
    if classifies != (architecture(cfg) == "Classifier"):
        raise ConfigError(
            f"DATASETS.{key}: '{metadata.name}' is {'' if classifies else 'not '}a dataset for image "
            f"classification; it cannot be used with MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE!r}"
        )
    if classifies:
        _check_number_of_classes(cfg, "CLASSIFIER", metadata.name, len(metadata.classes), key == "TRAIN")


def _has_coco_file(metadata: Metadata, training: bool) -> bool:
    """Whether detectron2 reads the instances of a dataset from a COCO file, ``json_file``."""
    kind, keys = metadata.get("evaluator_type"), metadata.as_dict()
    return (
        kind == "coco"
        or (kind == "coco_panoptic_seg" and "sem_seg_root" in keys)
        or (kind is None and not training and "json_file" in keys)  # evaluated with COCOEvaluator
    )


def _check_classes(cfg, metadata: Metadata, classes: list[str], training: bool) -> None:
    known = metadata.get("thing_classes", classes)
    if list(known) != classes:
        raise DatasetError(
            f"{metadata.json_file}: its categories do not match those of dataset '{metadata.name}': it has "
            f"{len(classes)}, and {len(known)} are registered; names and order must be the same"
        )
    part = _CLASS_COUNTS.get(architecture(cfg))
    if part is not None:
        _check_number_of_classes(cfg, part, metadata.name, len(classes), training)


def _check_stuff_classes(cfg, metadata: Metadata, training: bool) -> None:
    if architecture(cfg) in ("SemanticSegmentor", "PanopticFPN") and metadata.get("stuff_classes"):
        number = len(metadata.stuff_classes)
        _check_number_of_classes(cfg, "SEM_SEG_HEAD", metadata.name, number, training)


def _check_number_of_classes(cfg, part: str, dataset: str, there: int, training: bool) -> None:
    number = cfg.MODEL[part].NUM_CLASSES
    if number < there if training else number > there:
        allowed = f"at {'least' if training else 'most'} {there}, the classes of '{dataset}'"
        raise ConfigError(f"MODEL.{part}.NUM_CLASSES is {number}; it must be {allowed}")


def _check_sigmas(cfg) -> None:
    number, there = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS, len(cfg.TEST.KEYPOINT_OKS_SIGMAS)
    if number != (there or _COCO_KEYPOINTS):
        raise ConfigError(
            f"TEST.KEYPOINT_OKS_SIGMAS has {there} values; it must have one for each of the {number} "
            f"keypoints of MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS, or none for COCO's {_COCO_KEYPOINTS}"
        )


def _check_together(cfg, summaries: dict[str, Summary]) -> None:
    if len({tuple(summary.classes) for summary in summaries.values()}) > 1:
        raise ConfigError(f"DATASETS.TRAIN is {cfg.DATASETS.TRAIN}; all datasets must have the same classes")
    usable = sum(summary.num_instances for summary in summaries.values())
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS and not usable:
        notes = "; ".join(summary.note for summary in summaries.values())
        raise ConfigError(f"DATASETS.TRAIN is {cfg.DATASETS.TRAIN}; it has no objects to train on: {notes}")


def _check_proposals(cfg, split: str) -> None:
    key = f"PROPOSAL_FILES_{split}"
    files, number = cfg.DATASETS[key], len(cfg.DATASETS[split])
    if len(files) != number:
        raise ConfigError(f"DATASETS.{key} has {len(files)} files; DATASETS.{split} has {number} datasets")
    for file in files:
        try:
            read_proposals(file)
        except DatasetError as error:
            raise DatasetError(f"DATASETS.{key}: {error}") from error
