"""Files that run without this package: ONNX, torch.export and AOTInductor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pwlu_det.errors import CheckpointError, describe
from pwlu_det.ops.library import PLAIN

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2", "aoti": ".pt2"}
"""The formats, and what their files' names end in."""

OPSET = 18
MAX_SIZE = 1 << 16

Runner = Callable[[Tensor], Sequence[Tensor]]


def trace(model: nn.Module, example: Tensor, multiple: int, smallest: int) -> ExportedProgram:
    """Export a model of images ``[B, 3, H, W]``; H and W are multiples of ``multiple`` from ``smallest`` on.

    The program consists of torch's own ops.

    Raises:
        CheckpointError: torch.export does not support the model, or an op has no definition in plain torch.
    """
    limits = {"min": smallest // multiple, "max": MAX_SIZE // multiple}
    height, width = Dim("height", **limits), Dim("width", **limits)
    sizes = {0: Dim("batch", max=MAX_SIZE), 2: multiple * height, 3: multiple * width}
    ops = {name: plain for name, plain in PLAIN.items() if name != "rpau"}  # it draws random numbers
    table = {getattr(torch.ops.pwlu_det, name).default: plain for name, plain in ops.items()}
    try:
        program = torch.export.export(model, (example,), dynamic_shapes=(sizes,), strict=False)
        program = program.run_decompositions(table)
    except Exception as error:  # torch raises many kinds
        raise CheckpointError(f"torch.export does not support this model: {describe(error)}") from error
    _check_ops(program)
    return program


def _check_ops(program: ExportedProgram) -> None:
    for node in program.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in ("aten", "prims"):
            modules = list(node.meta.get("nn_module_stack", {}).values())
            where = f" of {modules[-1][0]}" if modules else ""
            raise CheckpointError(f"the op {node.target}{where} has no definition in torch's own ops")


def write(program: ExportedProgram, format: str, path: str, outputs: Sequence[str]) -> None:
    """Write a traced program with one input ``images``; ``outputs`` are the names of its results."""
    if format == "onnx":
        options = {"input_names": ["images"], "output_names": list(outputs), "opset_version": OPSET}
        torch.onnx.export(program, f=path, dynamo=True, external_data=False, verbose=False, **options)
    elif format == "torch_export":
        torch.export.save(program, path)
    else:
        torch._inductor.aoti_compile_and_package(program, package_path=path)


def load(format: str, path: str) -> Runner:
    """A function that runs a file on a CPU.

    Raises:
        CheckpointError: the file cannot be loaded.
    """
    try:
        if format == "onnx":
            return _load_onnx(path)
        if format == "torch_export":
            return torch.export.load(path).module()
        return torch._inductor.aoti_load_package(path)
    except Exception as error:  # a file may contain anything
        raise CheckpointError(f"{path} cannot be loaded: {describe(error)}") from error


def _load_onnx(path: str) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(value) for value in session.run(None, {"images": images.numpy()})]

    return run


def check_available(format: str) -> None:
    """Raise CheckpointError if a package that a format needs is not installed."""
    needed = ("onnx", "onnxscript", "onnxruntime") if format == "onnx" else ()
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise CheckpointError(f"--format {format} needs packages that are missing: {', '.join(missing)}")
