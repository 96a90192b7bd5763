"""Loads the compiled kernels, which replace plain torch under the same op names."""

from __future__ import annotations

import os
import re
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

CHOICES = ("avx512", "avx2", "baseline", "none")
PACKAGE = Path(__file__).resolve().parents[1]


def load() -> str:
    """Register the CPU kernels with torch; returns the reason if that fails, else "".

    The environment variable ``PWLU_DET_CPU_KERNELS`` names the best kernels that may be used: avx512, avx2,
    baseline, or none for plain torch. With any other value, no kernels are loaded; see :func:`find_misuse`.
    """
    if os.environ.get("PWLU_DET_CPU_KERNELS") == "none":
        return "PWLU_DET_CPU_KERNELS is none"
    reason = find_misuse() or _load_library("_C", "a C++ compiler")
    if reason:
        warnings.warn(
            f"pwlu_det: activations run in plain torch, several times slower than the kernels: {reason}",
            stacklevel=2,
        )
    return reason


def find_misuse() -> str:
    """What is wrong with the environment variable ``PWLU_DET_CPU_KERNELS``, or ""."""
    chosen = os.environ.get("PWLU_DET_CPU_KERNELS", CHOICES[0])
    allowed = f"it must be one of {', '.join(CHOICES)}"
    return "" if chosen in CHOICES else f"PWLU_DET_CPU_KERNELS is {chosen!r}; {allowed}"


def load_cuda() -> str:
    """Register the CUDA kernels with torch; returns the reason if that fails, else "".

    It warns only if a GPU is available.
    """
    reason = _load_library("_C_cuda", "nvcc, and a GPU or FORCE_CUDA=1")
    if reason and torch.cuda.is_available():
        warnings.warn(
            f"pwlu_det: activations on the GPU run in plain torch, much slower than the kernels: {reason}",
            stacklevel=2,
        )
    return reason


def _load_library(name: str, requirements: str) -> str:
    failure = PACKAGE / f"{name}_failure.txt"
    if failure.exists():
        return failure.read_text().strip()
    libraries = [PACKAGE / f"{name}{suffix}" for suffix in EXTENSION_SUFFIXES]  # for this Python
    library = next((path for path in libraries if path.exists()), None)
    if library is None:
        others = ", ".join(sorted(path.name for path in PACKAGE.glob(f"{name}.*")))
        found = f"; {others} is for another Python" if others else ""
        return f"the kernels are not built; installing pwlu_det builds them with {requirements}{found}"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        built_for, running = _torch_of(library), torch.__version__.split("+")[0]
        if built_for not in ("", running):
            return f"{library.name} is built for torch {built_for}, but this is torch {running}; rebuild it"
        return f"{library.name} cannot be loaded: {error}"
    return ""


def _torch_of(library: Path) -> str:
    """The torch version that a library was built for, which ``csrc/tensors.h`` embeds in it, or ""."""
    found = re.search(rb"pwlu_det kernels for torch ([\w.]+)", library.read_bytes())
    return found[1].decode() if found else ""


FALLBACK_REASON = load()
"""The reason why plain torch is used on the CPU, or ""."""

CUDA_FALLBACK_REASON = load_cuda()
"""The reason why plain torch is used on GPUs, or ""."""


def kernels_in_use() -> str:
    """The name of the CPU kernels: avx512, avx2 or baseline; "plain torch" if there are none."""
    return "plain torch" if FALLBACK_REASON else torch.ops.pwlu_det.cpu_kernels()


def cuda_kernels_in_use() -> str:
    """``compiled``, or ``plain torch`` if there are no CUDA kernels."""
    return "plain torch" if CUDA_FALLBACK_REASON else "compiled"
