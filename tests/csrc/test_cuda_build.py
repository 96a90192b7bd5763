"""FORCE_CUDA=1 builds the CUDA library on a machine without a GPU, where it can also be loaded."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from cuda_emulation import ROOT, keep_types

LOADED = """
import sys, warnings
warnings.simplefilter("ignore")
import torch, pwlu_det.ops
torch.ops.load_library(sys.argv[1])
for name in ("pwlu", *pwlu_det.ops.pointwise.TABLE, "frelu", "frelu_convolve", "norm_activation"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"pwlu_det::{name}_backward", "CUDA"), name
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    x = torch.empty(2, 3, 4, 5, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    parameters = [torch.empty(3, 17, device="cuda"), *(torch.empty(3, device="cuda") for _ in range(4))]
    y = torch.ops.pwlu_det.pwlu(x, *parameters)
    assert (y.shape, y.dtype, y.device, y.stride()) == (x.shape, x.dtype, x.device, x.stride())
    gradients = torch.ops.pwlu_det.pwlu_backward(y, x, *parameters, (True, True))
    assert [g.shape for g in gradients] == [t.shape for t in (x, *parameters)]
print("passed")
"""


CPU_SOURCES = re.compile(r'    sources = \["pwlu_cpu\.cpp".*\n    sources \+= .*\n')


def build(folder, **environment):
    """Build the CUDA library, for float32, and a CPU library of one source, since both are always built."""
    source = folder / "source"
    shutil.copytree(
        ROOT / "pwlu_det", source / "pwlu_det", ignore=shutil.ignore_patterns("_C*", "__pycache__")
    )
    keep_types(source / "pwlu_det" / "csrc")
    script, count = CPU_SOURCES.subn(
        '    sources = ["targets/baseline.cpp"]\n', (ROOT / "setup.py").read_text()
    )
    assert count == 1
    (source / "setup.py").write_text(script)
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", folder / "lib"]
    environment = {**os.environ, "FORCE_CUDA": "1", "MAX_JOBS": "2", **environment}
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "lib" / "pwlu_det", done.stdout


@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not installed")
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")
def test_library_can_be_built_and_loaded_without_a_gpu(tmp_path):
    version = re.search(
        r"release (\d+)", subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
    )
    if version[1] != torch.version.cuda.split(".")[0]:
        pytest.skip(f"nvcc is from CUDA {version[1]}, and torch is built for CUDA {torch.version.cuda}")
    lib, _ = build(tmp_path, TORCH_CUDA_ARCH_LIST="8.0")
    assert len(list(lib.glob("_C.*"))) == 1
    (library,) = lib.glob("_C_cuda*.so")
    done = subprocess.run(
        [sys.executable, "-c", LOADED, library], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.stdout == "passed\n", done.stderr[-3000:]


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")
@pytest.mark.parametrize(
    "nvcc, reason", [(None, "nvcc cannot be run"), ("9.1", "nvcc is from CUDA 9.1, but torch is built for")]
)
def test_reason_of_a_failed_build_is_recorded(tmp_path, nvcc, reason):
    toolkit = tmp_path / "toolkit"
    if nvcc:
        (toolkit / "bin").mkdir(parents=True)
        (toolkit / "bin" / "nvcc").write_text(f"#!/bin/sh\necho release {nvcc}\n")
        (toolkit / "bin" / "nvcc").chmod(0o755)
    lib, output = build(tmp_path, CUDA_HOME=str(toolkit))
    assert reason in output
    assert reason in (lib / "_C_cuda_failure.txt").read_text()
