"""detectron2's dataset mapper, with error messages that name the image."""

from __future__ import annotations

from detectron2.data import DatasetMapper

from pwlu_det.errors import DatasetError


class Mapper(DatasetMapper):
    """Read and augment an image as ``DatasetMapper`` does.

    Raises:
        DatasetError: an image cannot be read, or does not match its annotations.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        try:
            return super().__call__(dataset_dict)
        except Exception as error:  # the reader of a broken image can raise anything
            raise DatasetError(f"image {dataset_dict['file_name']} cannot be used: {error}") from error
