"""Builds the kernels where there is a torch and a compiler; without them the package runs on plain torch."""

import platform
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

NAME = "pwlu_det._C"

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    missing = f"torch cannot be imported ({error}): install by pip install --no-build-isolation"
    BuildExtension, CppExtension = build_ext, None


def extensions() -> list:
    if CppExtension is None:
        print(f"pwlu_det: building no kernels: {missing}")
        return []
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    ops = ("pwlu", "pointwise", "frelu")
    sources = [*(f"{op}_cpu.cpp" for op in ops), "baseline_pwlu.cpp"]
    if x86:
        sources += [f"{name}_{op}.cpp" for name in ("avx2", "avx512") for op in ops]
    return [
        CppExtension(
            NAME,
            [f"pwlu_det/csrc/cpu/{source}" for source in sources],
            # Instruction sets are chosen in the files that use them: no -march here. torch brings OpenMP.
            extra_compile_args=["-O3", "-fopenmp", "-Wno-maybe-uninitialized"],
            define_macros=[("PWLU_X86", None)] if x86 else [],
        )
    ]


class OptionalBuild(BuildExtension):
    """A build that may fail: it says why, where the package will find it."""

    def run(self) -> None:
        if not self.extensions:
            return super().run()
        note = Path(self.get_ext_fullpath(NAME)).parent / "_C_failure.txt"
        note.unlink(missing_ok=True)
        try:
            super().run()
        except (Exception, SystemExit) as error:  # a failed compiler ends in either
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(f"the build failed: {error}\n")
            print(f"pwlu_det: the kernels are not built, plain torch will be used: {error}")

    def get_outputs(self) -> list[str]:
        return [output for output in super().get_outputs() if Path(output).exists()]


setup(ext_modules=extensions(), cmdclass={"build_ext": OptionalBuild})
