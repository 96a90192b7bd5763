"""Build the kernels if torch and a compiler are available; otherwise, the package falls back to plain torch.

The CUDA kernels are built if torch finds a GPU or FORCE_CUDA=1 is set. torch's own variables
TORCH_CUDA_ARCH_LIST and CUDA_HOME are respected but not required.
"""

import os
import platform
import re
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

CPU, CUDA = "pwlu_det._C", "pwlu_det._C_cuda"

# Without a GPU, the kernels are built for those of these architectures that nvcc supports. Code for 8.0 also
# runs on 8.6 and 8.9, code for 10.0 also on 10.3, and so on; later GPUs compile the newest PTX at run time.
ARCHITECTURES = ("7.5", "8.0", "9.0", "10.0", "12.0")

try:
    import torch
    from torch.utils import cpp_extension
    from torch.utils.cpp_extension import BuildExtension
except ImportError as error:
    missing = f"torch cannot be imported ({error}); install with pip install --no-build-isolation"
    BuildExtension, torch = build_ext, None


class Unavailable(Exception):
    """Kernels were requested but cannot be built; the message says why."""


def cpu_extension():
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    sources = ["pwlu_cpu.cpp", "pointwise_cpu.cpp", "frelu_cpu.cpp", "norm_cpu.cpp"]
    sources += [f"targets/{name}.cpp" for name in ("baseline", *(("avx2", "avx512") if x86 else ()))]
    return cpp_extension.CppExtension(
        CPU,
        [f"pwlu_det/csrc/cpu/{source}" for source in sources],
        # No -march: each source selects its own instruction set. torch provides OpenMP.
        extra_compile_args=["-O3", "-fopenmp", "-Wno-maybe-uninitialized"],
        define_macros=[("PWLU_X86", None)] if x86 else [],
    )


def cuda_extension():
    toolkit, nvcc = find_toolkit()
    cpp_extension.CUDA_HOME = str(toolkit)  # torch's own search may return a wrapper's folder
    if not os.environ.get("TORCH_CUDA_ARCH_LIST") and not torch.cuda.is_available():
        known = run(nvcc, "--list-gpu-arch")
        listed = [a for a in ARCHITECTURES if f"compute_{a.replace('.', '')}" in known.split()]
        os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(listed) + "+PTX"
    sources = ["pwlu_cuda.cpp", "pwlu_forward.cu", "pwlu_backward.cu", "pwlu_phase1.cu"]
    sources += ["pointwise_cuda.cpp", "pointwise_forward.cu", "pointwise_backward.cu"]
    sources += ["frelu_cuda.cpp", "frelu.cu", "norm_cuda.cpp", "norm.cu", "norm_pwlu.cu"]
    sources += ["norm_pointwise_forward.cu", "norm_pointwise_backward.cu"]
    return cpp_extension.CUDAExtension(
        CUDA,
        [f"pwlu_det/csrc/cuda/{source}" for source in sources],
        extra_compile_args={"cxx": ["-O3"], "nvcc": ["-O3", "-Xfatbin=-compress-all"]},
    )


def find_toolkit() -> tuple:
    """The folder of the CUDA toolkit and its nvcc, whose major version must be that of torch's CUDA."""
    if torch.version.cuda is None:
        raise Unavailable(f"torch {torch.__version__} is built without CUDA")
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = Path(home, "bin", "nvcc") if home else "nvcc"
    try:
        if not home:  # nvcc reports its folder even if called through a wrapper
            top = re.search(r"^#\$ TOP=(.*)$", run(nvcc, "--dryrun", "-x", "cu", os.devnull), re.MULTILINE)
            home = Path(top[1].strip()).resolve() if top else Path(torch.utils.cpp_extension.CUDA_HOME)
        version = re.search(r"release (\d+)\.(\d+)", run(nvcc, "--version"))
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"nvcc cannot be run ({error}); set CUDA_HOME to the toolkit's folder") from error
    if version[1] != torch.version.cuda.split(".")[0]:
        raise Unavailable(
            f"nvcc is from CUDA {version[1]}.{version[2]}, but torch is built for CUDA {torch.version.cuda}"
        )
    return home, nvcc


def run(*command) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.stdout


def extensions() -> tuple[list, dict]:
    """The extensions to build, and why others cannot be."""
    if torch is None:
        print(f"pwlu_det: no kernels are built: {missing}")
        return [], {}
    found, failures = [cpu_extension()], {}
    if torch.cuda.is_available() or os.environ.get("FORCE_CUDA") == "1":
        try:
            found.append(cuda_extension())
        except Unavailable as reason:
            failures[CUDA] = str(reason)
    return found, failures


class OptionalBuild(BuildExtension):
    """A build that continues if a library fails, and writes the reason to a file that the package reads."""

    def run(self) -> None:
        wanted = self.extensions
        for name in (CPU, CUDA):
            self._note(name).unlink(missing_ok=True)
        for name, reason in FAILURES.items():
            self._fail(name, reason)
        if not wanted:
            return super().run()
        compiler = self.compiler  # a name, until run() replaces it with an object
        for extension in wanted:  # one by one, so that one failure does not affect others
            self.extensions, self.compiler = [extension], compiler
            try:
                super().run()
            except (Exception, SystemExit) as error:  # a compiler's failure raises either
                self._fail(extension.name, f"the build failed: {error}")
        self.extensions = wanted

    def _note(self, name: str) -> Path:
        return Path(self.get_ext_fullpath(name)).parent / f"{name.split('.')[1]}_failure.txt"

    def _fail(self, name: str, reason: str) -> None:
        note = self._note(name)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(f"{reason}\n")
        print(f"pwlu_det: {name} is not built, so plain torch will be used: {reason}")

    def get_outputs(self) -> list[str]:
        return [output for output in super().get_outputs() if Path(output).exists()]


EXTENSIONS, FAILURES = extensions()
setup(ext_modules=EXTENSIONS, cmdclass={"build_ext": OptionalBuild})
