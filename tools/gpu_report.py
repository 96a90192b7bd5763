#!/usr/bin/env python
"""Build the CUDA kernels for this machine's GPU, test them, train on it, and measure them.

Every step writes a text file; those of the benchmarks are the GPU tables of ``docs/performance.md``.
If a step fails, the others still run, and the exit status is 1. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = "configs/quickstart/retinanet_R_18_FPN_digits_pwlu.yaml"
DETECTORS = [f"configs/coco/{name}_R_50_FPN_3x_pwlu.yaml" for name in ("retinanet", "mask_rcnn")]
ON_GPU = "--device cuda --seconds 0.2 --rounds 30"


def steps(output: Path) -> dict[str, list[str]]:
    """The arguments of Python for each step, by the name of its text file."""
    commands = {
        "build": "setup.py build_ext --inplace",
        "environment": "-m pwlu_det.collect_env",
        "tests": "-m pytest -m gpu -n 8 -q --tb=short",
    }
    for name, amp in (("float32", False), ("amp", True)):
        options = f"SOLVER.MAX_ITER 100 MODEL.DEVICE cuda SOLVER.AMP.ENABLED {amp} OUTPUT_DIR"
        folder = shlex.quote(str(output / name))
        commands[f"train_{name}"] = f"tools/train_net.py --config-file {QUICKSTART} {options} {folder}"
    for dtype in ("float32", "float16", "bfloat16"):
        options = f"--shapes 2,256,100,168 --layout both --dtype {dtype}"
        commands[f"op_{dtype}"] = f"tools/benchmark.py op {ON_GPU} {options}"
    commands["detectors"] = f"tools/benchmark.py model {ON_GPU} --config-file {' '.join(DETECTORS)}"
    commands["networks"] = f"tools/benchmark.py model {ON_GPU} --network resnet18 mobilenet_v3_small"
    return {name: shlex.split(command) for name, command in commands.items()}


def run(name: str, arguments: list[str], output: Path) -> bool:
    start = time.perf_counter()
    with open(output / f"{name}.txt", "w") as log:
        command = [sys.executable, *arguments]
        code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT).returncode
    result = "done" if code == 0 else f"FAILED with exit status {code}"
    print(f"{name:12} {result} in {time.perf_counter() - start:.0f} s: {log.name}", flush=True)
    return code == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", type=Path, default="output/gpu", help="output folder (default: output/gpu)"
    )
    output = parser.parse_args().output.resolve()
    if not torch.cuda.is_available():
        sys.exit("make gpu needs a GPU, but torch finds none on this machine")
    major, minor = torch.cuda.get_device_capability()
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")
    os.environ.setdefault("MAX_JOBS", str(os.cpu_count()))
    output.mkdir(parents=True, exist_ok=True)
    failed = [name for name, arguments in steps(output).items() if not run(name, arguments, output)]
    if failed:
        sys.exit(f"{', '.join(failed)} failed; see the text files in {output}")


if __name__ == "__main__":
    main()
