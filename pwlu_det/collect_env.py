"""``python -m pwlu_det.collect_env`` prints versions, and which kernels are in use and why."""

from __future__ import annotations

import importlib.util
import platform

import torch

import pwlu_det
from pwlu_det.ops import kernels


def collect_env() -> str:
    """A table of the information that a bug report needs."""
    rows = {
        "pwlu_det": pwlu_det.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "detectron2": _detectron2_version(),
        "CPU capability of torch": torch.backends.cpu.get_cpu_capability(),
        "CPU threads": torch.get_num_threads(),
        "CPU kernels": kernels.kernels_in_use(),
        "why (CPU)": kernels.FALLBACK_REASON or "built; the best that the processor supports (or is allowed)",
        "CUDA": torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU",
        "CUDA kernels": kernels.cuda_kernels_in_use(),
        "why (CUDA)": kernels.CUDA_FALLBACK_REASON or "built and loaded",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())


def _detectron2_version() -> str:
    if importlib.util.find_spec("detectron2") is None:
        return "not installed"
    return importlib.import_module("detectron2").__version__


if __name__ == "__main__":
    print(collect_env())
