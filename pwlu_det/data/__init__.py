"""Data sets that detectron2 knows by name once this package is imported."""

from .digits import register_digits

register_digits()
