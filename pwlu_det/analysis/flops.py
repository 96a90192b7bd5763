"""How fvcore counts FLOPs and activations of the ops. Importing this module registers it.

The ops count as 0, as ReLU does in fvcore. That is enough for Funnel ReLU, too: fvcore hooks every module
that it analyses, so the convolution and the norm are called as modules
(:func:`pwlu_det.activations.modules.is_plain_module`), and counted as such.
"""

from __future__ import annotations

# fvcore has no function that adds to its default handles, which detectron2's tools use.
from fvcore.nn.activation_count import _DEFAULT_SUPPORTED_OPS as ACTIVATION_HANDLES
from fvcore.nn.flop_count import _DEFAULT_SUPPORTED_OPS as FLOP_HANDLES

from pwlu_det.ops.library import ARGUMENTS

HANDLES = {f"pwlu_det::{name}": None for name in ARGUMENTS}
"""For ``set_op_handle`` of ``fvcore.nn.FlopCountAnalysis``; None stands for an op that counts as 0."""

ACTIVATION_HANDLES.update(HANDLES)
FLOP_HANDLES.update(HANDLES)
