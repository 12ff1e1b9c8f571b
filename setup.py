"""Builds the kernel libraries that this machine can build, and installs in any case: the package works without them.

VAE_KERNELS_BUILD_CPU = auto | 0 | 1    1: fail if it cannot be built; 0: leave it out
VAE_KERNELS_BUILD_CUDA = auto | 0 | 1   auto: build it where nvcc is found, with or without a GPU or a CUDA torch
TORCH_CUDA_ARCH_LIST                    as torch reads it, in numbers; older ones than 8.0 are left out
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

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
ARCHITECTURES = "8.0;9.0;10.0;12.0+PTX"
HEADERS = [str(path) for path in Path("csrc").rglob("*.h")]
TARGET = ("TORCH_TARGET_VERSION", "0x020a000000000000")


def find_torch() -> tuple[list[str], list[str]] | None:
    """Where torch's headers and libraries are: of the environment that is installed into, also from an isolated build."""
    for command in ([sys.executable, "-c"], [sys.executable, "-I", "-c"]):
        found = subprocess.run([*command, FIND_TORCH], capture_output=True, text=True)
        if found.returncode == 0:
            return json.loads(found.stdout.splitlines()[-1])
    return None


class BuildLibraries(build_ext):
    """Plain shared libraries for `torch.ops.load_library`: no Python module, so no Python version in the name."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or True  # both libraries at once

    def get_ext_filename(self, name: str) -> str:
        return str(Path(*name.split(".")).with_suffix(".so"))

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []

    def build_extension(self, ext: Extension) -> None:
        """What is CUDA by one command: nvcc hands plain C++ to the host's compiler, and links."""
        path = Path(self.get_ext_fullpath(ext.name))
        if ext.language != "cuda":
            super().build_extension(ext)
        elif self.force or newer_group([*ext.sources, *ext.depends], path):
            path.parent.mkdir(parents=True, exist_ok=True)
            macros = [f"-D{name}={value}" for name, value in ext.define_macros]
            paths = [f"-I{path}" for path in ext.include_dirs] + [f"-L{path}" for path in ext.library_dirs]
            libraries = [f"-l{name}" for name in ext.libraries]
            self.spawn([*ext.extra_compile_args, *macros, *paths, *ext.sources, *libraries, "-o", str(path)])


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
            depends=HEADERS,
            include_dirs=include,
            library_dirs=library,
            libraries=["torch_cpu", "c10"],
            define_macros=[TARGET],
            extra_compile_args=COMPILE,
            language="c++",
            optional=wanted != "1",
        )
    ]


def find_nvcc() -> str | None:
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    places = [f"{home}/bin" for home in homes] + [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    return shutil.which("nvcc", path=os.pathsep.join(places))


def architectures(nvcc: str) -> list[str]:
    """What nvcc is told to make, or nothing. The front half of the compiler runs once, for the oldest architecture: its
    PTX becomes machine code for all, in 105 s of processor time instead of 185, and the kernels gain nothing from newer
    PTX (as many instructions and registers). They need 8.0 for its conversions to bfloat16."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST") or ARCHITECTURES
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
    named = sorted({int(major + minor) for major, minor in re.findall(r"(\d+)\.(\d)", listed)})
    numbers = [number for number in named if number >= 80 and f"sm_{number}" in known]
    kinds = [f"sm_{number}" for number in numbers] + [f"compute_{number}" for number in numbers[:1] if "+PTX" in listed]
    return [f"-gencode=arch=compute_{numbers[0]},code=[{','.join(kinds)}]"] if numbers else []


def cuda_library() -> list[Extension]:
    wanted = os.environ.get("VAE_KERNELS_BUILD_CUDA", "auto")
    nvcc = find_nvcc() if wanted != "0" else None
    generated = architectures(nvcc) if nvcc else []
    paths = find_torch() if generated else None
    if paths is None:
        lacking = "torch >= 2.10" if generated else "architecture that nvcc knows" if nvcc else "nvcc"
        if wanted == "1":
            raise SystemExit(f"vae_kernels: the CUDA kernels cannot be built: no {lacking}")
        if wanted != "0":
            print(f"vae_kernels: leaving out the CUDA kernels (no {lacking})", file=sys.stderr)
        return []
    include, library = paths
    # The runtime is torch's own, one for the whole process: linked as a shared library. Without contraction the same bits
    # come out of every kernel that computes a formula, as on the CPU; with it, none to 3 % fewer instructions.
    flags = ["-shared", "--cudart=shared", "-std=c++17", "-O3", "--fmad=false", "--threads=0"]
    return [
        Extension(
            "vae_kernels._cuda",
            [
                "csrc/ops_cuda.cpp",
                "csrc/cuda/categorical.cu",
                "csrc/cuda/latent.cu",
                "csrc/cuda/likelihood.cu",
                "csrc/cuda/sums.cu",
            ],
            depends=HEADERS,
            include_dirs=include,
            library_dirs=library,
            libraries=["torch_cpu", "c10"],
            define_macros=[TARGET],
            extra_compile_args=[nvcc, *flags, *generated, "-Xcompiler=-fPIC,-fvisibility=hidden"],
            language="cuda",
            optional=wanted != "1",
        )
    ]


setup(ext_modules=[*cpu_library(), *cuda_library()], cmdclass={"build_ext": BuildLibraries, "bdist_wheel": PlainWheel})
