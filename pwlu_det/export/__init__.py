"""Trained models in files that run without this package."""

from pwlu_det.export.export import ExportedModel, export_model, load_export
from pwlu_det.export.formats import SUFFIXES

__all__ = ["SUFFIXES", "ExportedModel", "export_model", "load_export"]
