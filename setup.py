"""Builds the kernel libraries that this machine can build, and installs in any case: the package works without them.

VAE_KERNELS_BUILD_CPU = auto | 0 | 1   1: fail if it cannot be built; 0: leave it out
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FIND_TORCH = "import json, torch.utils.cpp_extension as c; print(json.dumps([c.include_paths(), c.library_paths()]))"
COMPILE = [
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-g0",
]


def find_torch() -> tuple[list[str], list[str]] | None:
    """Where torch's headers and libraries are: of the environment that is installed into, also from an isolated build."""
    for command in ([sys.executable, "-c"], [sys.executable, "-I", "-c"]):
        found = subprocess.run([*command, FIND_TORCH], capture_output=True, text=True)
        if found.returncode == 0:
            return json.loads(found.stdout.splitlines()[-1])
    return None


class BuildLibraries(build_ext):
    """Plain shared libraries for `torch.ops.load_library`: no Python module, so no Python version in the name."""

    def get_ext_filename(self, name: str) -> str:
        return str(Path(*name.split(".")).with_suffix(".so"))

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []


class PlainWheel(bdist_wheel):
    """One wheel for every Python: the libraries use no Python symbol."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def cpu_library() -> list[Extension]:
    wanted = os.environ.get("VAE_KERNELS_BUILD_CPU", "auto")
    paths = find_torch() if wanted != "0" else None
    if paths is None:
        reason = "VAE_KERNELS_BUILD_CPU=0" if wanted == "0" else "no torch >= 2.10 to build against"
        if wanted == "1":
            raise SystemExit(f"vae_kernels: the CPU kernels cannot be built: {reason}")
        print(f"vae_kernels: leaving out the CPU kernels ({reason}); ops run in eager PyTorch", file=sys.stderr)
        return []
    include, library = paths
    return [
        Extension(
            "vae_kernels._cpp",
            ["csrc/ops_cpu.cpp", "csrc/cpu/categorical.cpp", "csrc/cpu/latent.cpp", "csrc/cpu/likelihood.cpp"],
            depends=[str(p) for p in Path("csrc").rglob("*.h")],
            include_dirs=include,
            library_dirs=library,
            libraries=["torch_cpu", "c10"],
            define_macros=[("TORCH_TARGET_VERSION", "0x020a000000000000")],
            extra_compile_args=COMPILE,
            language="c++",
            optional=wanted != "1",
        )
    ]


setup(ext_modules=cpu_library(), cmdclass={"build_ext": BuildLibraries, "bdist_wheel": PlainWheel})
