"""Activation modules. They need torch alone."""

from pwlu_det.activations.build import build_activation
from pwlu_det.activations.pwlu import PWLU
from pwlu_det.activations.simple import PReLU, ReLU, Swish

__all__ = ["PWLU", "PReLU", "ReLU", "Swish", "build_activation"]
