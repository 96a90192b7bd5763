"""Arguments for any op of the package, by the names in its schema."""

from __future__ import annotations

import torch

B, C, H, W = 2, 8, 5, 7
SHAPES = {
    **dict.fromkeys(("x", "grad", "y", "conv"), (B, C, H, W)),
    "points": (C, 17),
    "weight": (C, 1, 3, 3),
    "norm_means": (2, C),
    "slopes": (3, C),
    "offsets": (3, C),
    "coefficients": (C, 4),
    "numerator": (C, 6),
    "denominator": (C, 4),
}
"""Shapes of the tensors; those that are not listed have one number per channel."""

OTHERS = ("cpu_kernels", "norm_activation", "norm_activation_backward")
"""No op on tensors, and ops on lists of tensors, which have tests of their own."""

ALL_OPS = sorted(
    name.split("::")[1]
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("pwlu_det::") and name.split("::")[1] not in OTHERS
)
BACKWARD_OPS = [name for name in ALL_OPS if name.endswith("_backward")]


def overload(op: str) -> torch._ops.OpOverload:
    return getattr(torch.ops.pwlu_det, op).default


def make_arguments(op: str, dtype=torch.float32, device="cpu", memory_format=torch.contiguous_format) -> dict:
    """Valid arguments by name, in the order of the schema."""
    generator = torch.Generator().manual_seed(0)
    others = {"eps": 1e-5, "alpha": 0.1, "output_mask": (True, True), "seed": torch.tensor(3)}
    arguments = {}
    for name in (argument.name for argument in overload(op)._schema.arguments):
        if name in others:
            arguments[name] = others[name]
            continue
        shape = SHAPES.get(name, (C,))
        value = torch.randn(shape, generator=generator)
        if shape == SHAPES["x"]:
            arguments[name] = value.to(device, dtype, memory_format=memory_format)
        else:
            value += {"left_bound": -2, "right_bound": 2, "left": -1, "right": 1, "var": 5}.get(name, 0)
            arguments[name] = value.to(device, torch.promote_types(dtype, torch.float32))
    return arguments
