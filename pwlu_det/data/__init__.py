"""Checks of datasets, and the built-in digits, which importing this package registers with detectron2."""

from pwlu_det.data.digits import register_digits

register_digits()
