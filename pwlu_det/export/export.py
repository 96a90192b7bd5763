"""Export a trained model, run it back, and describe it in a manifest; load such a file."""

from __future__ import annotations

import copy
import os
import tempfile
from typing import Any

import torch
from torch import Tensor

import pwlu_det
from pwlu_det.checkpoint.checkpointer import Checkpointer
from pwlu_det.checkpoint.export import check_paths, export_backbone, load_model
from pwlu_det.conversion.inference import for_inference
from pwlu_det.errors import CheckpointError
from pwlu_det.export import formats
from pwlu_det.export.manifest import check_config, describe_config, read_manifest, write_manifest
from pwlu_det.export.models import NamedOutputs, part_of

LIMIT = 1e-4
"""The largest difference of an exported map from the model's, relative to the map's largest value."""


def export_model(
    cfg, weights: str, output: str, format: str, heads: bool = False, bottom_up: bool = False
) -> float:
    """Export the backbone of a trained model, and write a manifest to ``{output}.json``.

    Formats other than "d2" (see :func:`~pwlu_det.checkpoint.export.export_backbone`) contain a function of
    normalized images, ``[B, 3, H, W]``, of any batch size, and of any height and width that are multiples of
    the backbone's ``size_divisibility`` and larger than its largest stride. It returns the maps by name.
    Norms are folded into convolutions, and activations consist of functions that every runtime has. Before
    anything is written to ``output``, the file is run on images of another size, and compared.

    Args:
        cfg: config of the trained model.
        weights: its checkpoint.
        output: the file to write.
        format: "d2", "onnx", "torch_export" or "aoti".
        heads: export a RetinaNet up to its head's logits and box deltas, instead of its backbone.
        bottom_up: with "d2", export only the ResNet.

    Returns:
        The largest difference from the model, relative to the largest value of the map.

    Raises:
        CheckpointError: ``weights`` or ``output`` cannot be used, a package or compiler is missing, the model
            cannot be expressed in the format, or the exported file does not give the model's maps.
    """
    if format == "d2":
        if heads:
            raise CheckpointError("--heads: d2 exports backbones only; use another format")
        export_backbone(cfg, weights, output, bottom_up)
        model = load_model(cfg, weights).eval()
        part, difference = part_of(model, False), _reload(model, output, bottom_up)
    else:
        if bottom_up:
            raise CheckpointError(f"--bottom-up is for --format d2, not {format}")
        check_paths(weights, output, formats.SUFFIXES[format])
        formats.check_available(format)
        part = part_of(load_model(cfg, weights).eval(), heads)
        difference = _write_and_run(part, output, format)
    shapes = {name: {"channels": s.channels, "stride": s.stride} for name, s in part.shapes().items()}
    write_manifest(
        output,
        format=format,
        heads=heads,
        activation=cfg.MODEL.ACTIVATION.NAME,
        input={"shape": ["B", 3, "H", "W"], "multiple": part.multiple, "smallest": part.smallest},
        outputs=shapes,
        largest_difference=difference,
        pwlu_det=pwlu_det.__version__,
        config=describe_config(cfg, heads),
    )
    return difference


def _reload(model, path: str, bottom_up: bool) -> float:
    """The difference of the features after the file has been loaded into an empty copy."""
    images = _images(part_of(model, False))
    model = model.backbone.bottom_up if bottom_up else model.backbone
    other = copy.deepcopy(model)
    for tensor in other.state_dict().values():
        tensor.zero_()
    Checkpointer(other).load(path, checkpointables=[])
    with torch.no_grad():
        return _largest_difference(other(images), model(images))


def _write_and_run(part: NamedOutputs, output: str, format: str) -> float:
    images = _images(part)
    other_size = torch.cat([images, images], 3)[:1]
    with torch.no_grad():
        program = formats.trace(for_inference(part), images, part.multiple, part.smallest)
        expected = part(other_size)
        with tempfile.TemporaryDirectory(dir=os.path.dirname(output) or ".") as folder:
            path = os.path.join(folder, os.path.basename(output))
            formats.write(program, format, path, list(expected))
            actual = _named(formats.load(format, path)(other_size), list(expected))
            difference = _largest_difference(actual, expected)
            if not difference <= LIMIT:
                raise CheckpointError(
                    f"the exported model differs from the original by {difference:.2g} of a map's largest "
                    f"value; at most {LIMIT:.0e} is allowed"
                )
            os.replace(path, output)
    return difference


class ExportedModel:
    """An exported file, with checks: :func:`load_export`. ``manifest`` is the content of its JSON file."""

    def __init__(self, manifest: dict[str, Any], run: formats.Runner):
        self.manifest, self._run = manifest, run

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Normalized images ``[B, 3, H, W]`` in float32 to the maps by name.

        Raises:
            CheckpointError: the images have another shape or dtype.
        """
        multiple, smallest = (self.manifest["input"][key] for key in ("multiple", "smallest"))
        fits = images.dim() == 4 and images.shape[1] == 3 and not any(s % multiple for s in images.shape[2:])
        if not fits or min(images.shape[2:]) < smallest or images.dtype != torch.float32:
            raise CheckpointError(
                f"images have shape {list(images.shape)} and dtype {images.dtype}; they must be [B, 3, H, W] "
                f"in float32, with H and W multiples of {multiple}, at least {smallest}"
            )
        with torch.no_grad():
            return _named(self._run(images), list(self.manifest["outputs"]))


def load_export(path: str, cfg=None) -> ExportedModel:
    """Load an exported model in format "onnx", "torch_export" or "aoti" on a CPU, by its manifest.

    Raises:
        CheckpointError: the file is damaged, or it is not a model of ``cfg`` or not for its images.
    """
    manifest = read_manifest(path)
    if cfg is not None:
        check_config(path, manifest, cfg)
    if manifest["format"] not in formats.SUFFIXES:
        raise CheckpointError(f"{path} has format {manifest['format']}; use it as MODEL.WEIGHTS of a config")
    formats.check_available(manifest["format"])
    return ExportedModel(manifest, formats.load(manifest["format"], path))


def _images(part: NamedOutputs) -> Tensor:
    height, width = part.smallest, part.smallest + 2 * part.multiple
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def _named(results, names: list[str]) -> dict[str, Tensor]:
    return results if isinstance(results, dict) else dict(zip(names, results))


def _largest_difference(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    if {k: v.shape for k, v in actual.items()} != {k: v.shape for k, v in expected.items()}:
        raise CheckpointError("the exported model has maps of other names or shapes than the original")
    differences = [(actual[k] - v).abs().max() / v.abs().max().clamp(min=1e-30) for k, v in expected.items()]
    return float(torch.stack(differences).max())
