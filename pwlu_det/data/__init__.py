"""Data sets that detectron2 knows by name once this package is imported."""

from pwlu_det.data.digits import register_digits

register_digits()
