"""Functional ops. They need only torch."""

from pwlu_det.ops.formulas import (
    acon_b,
    acon_c,
    apl,
    meta_acon_pixel,
    mixture,
    pau,
    prelu,
    slaf,
    srelu,
    swish,
)
from pwlu_det.ops.frelu import frelu, frelu_inference
from pwlu_det.ops.frelu_sync import frelu_sync
from pwlu_det.ops.kernels import kernels_in_use
from pwlu_det.ops.norm_activation import norm_activation
from pwlu_det.ops.norm_activation_sync import norm_activation_sync
from pwlu_det.ops.pwlu import pwlu, pwlu_phase1
from pwlu_det.ops.rpau import rpau
