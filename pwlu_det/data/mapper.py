"""detectron2's dataset mapper, with error messages that name the image."""

from __future__ import annotations

import os
from collections.abc import Callable

from detectron2.data import DatasetMapper

from pwlu_det.config import architecture
from pwlu_det.data.classification import ClassificationMapper
from pwlu_det.errors import DatasetError, describe

_FILES = ("file_name", "sem_seg_file_name", "pan_seg_file_name")


class Mapper(DatasetMapper):
    """Read and augment an image as ``DatasetMapper`` does.

    Raises:
        DatasetError: an image cannot be read, or does not match its annotations.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        try:
            for path in filter(None, map(dataset_dict.get, _FILES)):
                if os.path.exists(path) and not os.path.isfile(path):
                    raise ValueError(f"{path} is not a regular file")  # reading a named pipe would never end
            return super().__call__(dataset_dict)
        except Exception as error:  # the reader of a broken image can raise anything
            image = dataset_dict.get("file_name")
            raise DatasetError(f"image {image} cannot be used: {describe(error)}") from error


def build_mapper(cfg, is_train: bool) -> Callable[[dict], dict]:
    """The mapper from entries of a dataset to inputs of ``MODEL.META_ARCHITECTURE``."""
    return (ClassificationMapper if architecture(cfg) == "Classifier" else Mapper)(cfg, is_train)
