"""Other activations for any torch model. It depends only on torch."""

from pwlu_det.conversion.convert import convert_model
from pwlu_det.conversion.inference import for_inference
from pwlu_det.conversion.report import ConversionReport, Site

__all__ = ["ConversionReport", "Site", "convert_model", "for_inference"]
