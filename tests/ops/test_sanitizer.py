"""The CPU kernels under AddressSanitizer: they access only the memory of their arguments and results."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
TESTS = (
    "test_arguments.py",
    "test_output_mask.py",
    "test_norm_activation_arguments.py",
    "test_kernels.py::test_kernels_agree_with_plain_torch",
    "test_pointwise.py::test_layouts_and_strides",
    "test_frelu_shapes.py::test_any_shape_dtype_and_layout",
)
BEYOND_THE_END = """
import torch, pwlu_det.ops
x = torch.zeros(2, 3, 100)
x.untyped_storage().resize_(64)
torch.ops.pwlu_det.pwlu(x, torch.zeros(1, 5), *torch.tensor([[-1.0], [1.0], [0.0], [1.0]]))
"""


STUB = """
#include "../kernels.h"
const pwlu::Kernels& pwlu::{}_kernels() {{ return baseline_kernels(); }}
"""


def run(command, folder, **environment):
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """A function that runs Python with a copy of the package whose kernels are built with the sanitizer."""
    folder = tmp_path_factory.mktemp("sanitized")
    shutil.copytree(
        ROOT / "pwlu_det", folder / "pwlu_det", ignore=shutil.ignore_patterns("_C*", "__pycache__")
    )
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    best = torch.backends.cpu.get_cpu_capability().lower()
    for name in {"avx2", "avx512"} - {best}:  # not used here, and each takes a minute to compile
        (folder / f"pwlu_det/csrc/cpu/targets/{name}.cpp").write_text(STUB.format(name))
    compiler = folder / "compiler"
    compiler.write_text('#!/bin/sh\nexec g++ "$@" -O1 -g1 -fsanitize=address -fno-omit-frame-pointer\n')
    compiler.chmod(0o755)
    build = [sys.executable, "setup.py", "build_ext", "--inplace"]
    code, output = run(build, folder, CC=str(compiler), CXX=str(compiler), FORCE_CUDA="0")
    assert code == 0 and not list((folder / "pwlu_det").glob("_C*_failure.txt")), output[-3000:]
    # Python does not load the C++ library. Without it, the sanitizer fails at the first C++ exception.
    names = ("libasan.so", "libstdc++.so.6")
    libraries = [run(["g++", f"-print-file-name={name}"], folder)[1].strip() for name in names]

    def run_python(*arguments, **environment):
        options = "detect_leaks=0:alloc_dealloc_mismatch=0"
        preload = " ".join(libraries)
        environment |= {"LD_PRELOAD": preload, "ASAN_OPTIONS": options, "PYTHONPATH": str(folder)}
        return run([sys.executable, *arguments], folder, **environment)

    return run_python


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("g++"), reason="g++, which builds the kernels, is not installed"),
]


def test_sanitizer_checks_the_kernels(sanitized):
    code, output = sanitized("-c", BEYOND_THE_END)
    assert code != 0 and "AddressSanitizer: heap-buffer-overflow" in output and "pwlu_cpu.cpp" in output


@pytest.mark.parametrize("kernels", ["avx512", "baseline"])
def test_kernels_do_not_access_memory_out_of_bounds(sanitized, kernels):
    """The best kernels that the processor supports, and the baseline."""
    files = [ROOT / "tests" / "ops" / name for name in TESTS]
    code, output = sanitized(
        "-m", "pytest", "--rootdir", ROOT, "-p", "no:cacheprovider", *files, PWLU_DET_CPU_KERNELS=kernels
    )
    assert code == 0, output[-3000:]
