"""Builds the kernel libraries that this machine can build. The package is installed in any case, and works without
them.

VAE_KERNELS_BUILD_CPU = auto | 0 | 1    1: it is an error if the library cannot be built; 0: leave it out
VAE_KERNELS_BUILD_CUDA = auto | 0 | 1   auto: build it if nvcc is found, with or without a GPU or a CUDA torch
TORCH_CUDA_ARCH_LIST                    as for torch, in numbers; those below 8.0, without bfloat16, are left out
CXX, LDFLAGS                            the C++ compiler (c++), and additional options of the linker
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from ninja import BIN_DIR, ninja_syntax
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FIND_TORCH = "import json, torch.utils.cpp_extension as c; print(json.dumps([c.include_paths(), c.library_paths()]))"
STANDARD = "-std=c++17 -DTORCH_TARGET_VERSION=0x020a000000000000"
# Without contraction, all instruction sets, and all kernels with the same formula, give the same bits.
CPU = "-O3 -fno-math-errno -fno-trapping-math -ffp-contract=off --param=vect-epilogues-nomask=0 -fvisibility=hidden"
CUDA = "-O3 --fmad=false --threads=0 -Xcompiler=-fPIC,-fvisibility=hidden"  # contraction: at most 3 % less code


def find_torch() -> tuple[str, str]:
    """Compiler options for torch's headers and libraries. An isolated build finds them in the outer environment."""
    for command in ([sys.executable, "-c"], [sys.executable, "-I", "-c"]):
        found = subprocess.run([*command, FIND_TORCH], capture_output=True, text=True)
        if found.returncode == 0:
            include, library = json.loads(found.stdout.splitlines()[-1])
            return "".join(f" -I{path}" for path in include), "".join(f" -L{path}" for path in library)
    raise RuntimeError("no torch >= 2.10 to build against")


def commands(kind: str) -> tuple[str, str]:
    """The commands to compile and to link."""
    if kind == "cpu":
        cxx, (include, library) = os.environ.get("CXX", "c++"), find_torch()
        pic = "" if os.name == "nt" else "-fPIC"
        return f"{cxx} {pic} {STANDARD} {CPU} {include}", f"{cxx} -shared {library} {os.environ.get('LDFLAGS', '')}"
    homes = [f"{os.environ[name]}/bin" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    nvcc = shutil.which("nvcc", path=os.pathsep.join([*homes, os.environ.get("PATH", ""), "/usr/local/cuda/bin"]))
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST") or "8.0;9.0;10.0;12.0+PTX"
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout.split() if nvcc else []
    named = {int(a + b) for a, b in re.findall(r"(\d+)\.(\d)", listed) if int(a) >= 8}
    numbers = sorted(number for number in named if f"sm_{number}" in known)
    if not numbers:
        raise RuntimeError(f"nvcc knows none of the architectures {listed}" if nvcc else "no nvcc")
    # PTX for the oldest architecture is compiled to machine code for all. This takes 57 % of the time, and newer PTX
    # does not make the kernels faster.
    kinds = [f"sm_{number}" for number in numbers] + [f"compute_{number}" for number in numbers[:1] if "+PTX" in listed]
    (include, library), code = find_torch(), f"-gencode=arch=compute_{numbers[0]},code=[{','.join(kinds)}]"
    return f"{nvcc} {STANDARD} {CUDA} {code} {include}", f"{nvcc} --shared --cudart=shared {library}"  # torch's runtime


def run_ninja(kind: str, folder: Path, library: Path) -> None:
    """Compile what changed, and link, without make's job server, which is not handed down to this process."""
    compiler, linker = commands(kind)
    sources = [Path(f"csrc/bind/{kind}.cpp"), *sorted(Path("csrc", kind).glob("*.c*"))]
    folder.mkdir(parents=True, exist_ok=True)
    with open(script := folder / "build.ninja", "w") as file:
        rules = ninja_syntax.Writer(file)
        rules.variable("builddir", folder)
        rules.rule("compile", f"{compiler} -MMD -MF $out.d -c $in -o $out", "compile $in", depfile="$out.d", deps="gcc")
        rules.rule("link", f"{linker} $in -ltorch_cpu -lc10 -o $out", "link $out")
        objects = [rules.build(f"{folder / source.name}.o", "compile", str(source))[0] for source in sources]
        rules.build(str(library), "link", objects)
    subprocess.run([Path(BIN_DIR, "ninja"), "-f", script], check=True, env=os.environ | {"MAKEFLAGS": ""})


class BuildLibraries(build_ext):
    def get_ext_filename(self, name: str) -> str:
        return str(Path(*name.split(".")).with_suffix(".so"))  # for torch.ops.load_library, not for `import`

    def build_extension(self, ext: Extension) -> None:
        kind, library = KINDS[ext.name], Path(self.get_ext_fullpath(ext.name))
        try:
            run_ninja(kind, Path("build", f"{self.plat_name}-{kind}"), library)
        except (RuntimeError, subprocess.CalledProcessError) as reason:
            if WANTED[kind] == "1":
                raise SystemExit(f"vae_kernels: the kernels for {kind} cannot be built: {reason}") from None
            print(f"vae_kernels: leaving out the kernels for {kind}: {reason}", file=sys.stderr)
            for path in (library, Path(self.get_ext_filename(ext.name))):  # rather no library than an old one
                path.unlink(missing_ok=True)


class AnyPythonWheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]  # the libraries use no symbol of Python


KINDS = {"vae_kernels._cpp": "cpu", "vae_kernels._cuda": "cuda"}
WANTED = {kind: os.environ.get(f"VAE_KERNELS_BUILD_{kind.upper()}", "auto") for kind in KINDS.values()}
wanted = [Extension(name, [], optional=WANTED[kind] != "1") for name, kind in KINDS.items() if WANTED[kind] != "0"]
setup(ext_modules=wanted, cmdclass={"build_ext": BuildLibraries, "bdist_wheel": AnyPythonWheel})
