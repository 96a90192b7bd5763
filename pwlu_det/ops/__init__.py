"""Functional ops. They need torch alone."""

from pwlu_det.ops.pwlu import pwlu, pwlu_phase1  # isort: skip  (defines what the kernels implement)
from pwlu_det.ops.kernels import kernels_in_use

__all__ = ["kernels_in_use", "pwlu", "pwlu_phase1"]
