"""detectron2's mapper, with errors that name the image."""

from __future__ import annotations

from detectron2.data import DatasetMapper

from pwlu_det.errors import DatasetError


class Mapper(DatasetMapper):
    """
    Raises:
        DatasetError: an image cannot be read, or is not as its annotations say.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        try:
            return super().__call__(dataset_dict)
        except Exception as error:  # of a broken image the reader may raise anything
            raise DatasetError(f"image {dataset_dict['file_name']} cannot be used: {error}") from error
