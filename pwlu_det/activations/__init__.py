"""Activation modules, one file per family, and their registry. They depend only on torch."""

from pwlu_det.activations.acon import AconA, AconB, AconC, MetaAcon, Swish
from pwlu_det.activations.apl import APL
from pwlu_det.activations.frelu import FReLU
from pwlu_det.activations.norm_activation import fuse_norms
from pwlu_det.activations.pau import PAU, RPAU
from pwlu_det.activations.pwlu import PWLU
from pwlu_det.activations.rectifiers import Maxout, Mixture, PReLU, SReLU
from pwlu_det.activations.registry import ACTIVATIONS, build_activation, register_activation
from pwlu_det.activations.simple import CELU, ELU, LeakyReLU, Mish, ReLU, ReLU6, RReLU, Softplus
from pwlu_det.activations.slaf import SLAF

__all__ = [
    "ACTIVATIONS",
    "APL",
    "CELU",
    "ELU",
    "PAU",
    "PWLU",
    "RPAU",
    "SLAF",
    "AconA",
    "AconB",
    "AconC",
    "FReLU",
    "LeakyReLU",
    "Maxout",
    "MetaAcon",
    "Mish",
    "Mixture",
    "PReLU",
    "RReLU",
    "ReLU",
    "ReLU6",
    "SReLU",
    "Softplus",
    "Swish",
    "build_activation",
    "fuse_norms",
    "register_activation",
]
