"""Functional ops. They need torch alone."""

from pwlu_det.ops.pwlu import pwlu, pwlu_phase1

__all__ = ["pwlu", "pwlu_phase1"]
