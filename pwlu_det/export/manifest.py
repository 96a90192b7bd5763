"""The JSON file beside an exported model, which says what it is, and whether it fits."""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from pwlu_det.checkpoint.atomic import atomic_writer
from pwlu_det.errors import CheckpointError

_NODES = ("BACKBONE", "RESNETS", "FPN", "ACTIVATION")
_OF_HEADS = ("META_ARCHITECTURE", "RETINANET", "ANCHOR_GENERATOR")
_INPUT = ("INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD")


def manifest_path(path: str) -> str:
    return f"{path}.json"


def describe_config(cfg, heads: bool) -> dict[str, Any]:
    """The config keys that determine the exported model and its inputs, with their values."""
    node = cfg.clone()
    found = {key: _value(node, key) for key in _INPUT}
    for key in (*_NODES, *(_OF_HEADS if heads else ())):
        found.update(_flatten(f"MODEL.{key}", node.MODEL[key]))
    return json.loads(json.dumps(found))  # tuples as lists


def _value(cfg, key: str):
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def _flatten(prefix: str, value) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {key: v for name, child in value.items() for key, v in _flatten(f"{prefix}.{name}", child).items()}


def write_manifest(path: str, **content: Any) -> None:
    """Write the manifest of a file with ``content``, the versions of packages, and the file's hash."""
    file = {"bytes": os.path.getsize(path), "sha256": _sha256(path)}
    packages = {name: _version(name) for name in ("sal-detectron2", "detectron2", "onnx", "onnxruntime")}
    versions = {"torch": torch.__version__, **{name: found for name, found in packages.items() if found}}
    try:
        with atomic_writer(manifest_path(path)) as f:
            f.write(json.dumps({**content, "versions": versions, **file}, indent=2).encode())
    except OSError as error:
        raise CheckpointError(f"{manifest_path(path)} cannot be written: {error}") from error


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def read_manifest(path: str) -> dict[str, Any]:
    """The manifest of a file, which must be as it was written.

    Raises:
        CheckpointError: the file or its manifest is missing, or either of them is damaged.
    """
    try:
        with open(manifest_path(path)) as f:
            manifest = json.load(f)
        size = os.path.getsize(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: the file or its manifest cannot be read: {error}") from error
    needed = {"format", "config", "input", "outputs", "bytes", "sha256", "heads"}
    if not isinstance(manifest, dict) or needed - manifest.keys():
        raise CheckpointError(f"{manifest_path(path)} is not the manifest of an exported model")
    if size != manifest["bytes"]:
        raise CheckpointError(
            f"{path} has {size} bytes, and its manifest says {manifest['bytes']}: is it truncated?"
        )
    if _sha256(path) != manifest["sha256"]:
        raise CheckpointError(f"{path} is not the file of its manifest: the SHA-256 hashes differ")
    return manifest


def check_config(path: str, manifest: dict[str, Any], cfg) -> None:
    """Raise CheckpointError if an exported model is not that of a config, or takes other images."""
    own, exported = describe_config(cfg, manifest["heads"]), manifest["config"]
    differing = [key for key in sorted({*own, *exported}) if own.get(key) != exported.get(key)]
    if differing:
        lines = "; ".join(f"{k} is {exported.get(k)!r} there and {own.get(k)!r} here" for k in differing)
        raise CheckpointError(f"{path} was exported with another config: {lines}")


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
