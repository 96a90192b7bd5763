"""Datasets and their checks. Importing this package registers digits and ImageNet with detectron2."""

from pwlu_det.data.classification import register_classification
from pwlu_det.data.digits import register_digits

register_digits()
register_classification()
