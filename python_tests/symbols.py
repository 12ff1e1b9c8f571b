"""The symbols that a shared library needs from others."""

import re
import subprocess
from pathlib import Path

# What a library built for torch 2.10 may ask of a later torch: the C shims of the stable ABI.
STABLE = re.compile(r"^(aoti_torch_\w+|torch_\w+)$")

_SYSTEM = re.compile(r"^(GLIBC|GLIBCXX|CXXABI|GCC)_|^libcudart\.so\.")
_WEAK = {"__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"}
# Symbols of libstdc++ that libtorch exports too: they carry no version.
_STANDARD = re.compile(r"^_Z[A-Z]*St")


def undefined_symbols(library: Path) -> dict[str, str]:
    """Undefined dynamic symbols with the version tag of the library that serves them, empty where there is none."""
    listed = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    names = [line.split()[-1] for line in listed.stdout.splitlines()]
    return {name.partition("@")[0]: name.partition("@")[2].lstrip("@") for name in names}


def symbols_of_torch(library: Path) -> set[str]:
    """Undefined symbols that neither the system nor the C++ and CUDA runtimes serve."""
    needed = {name for name, version in undefined_symbols(library).items() if not _SYSTEM.match(version)}
    return {name for name in needed - _WEAK if not _STANDARD.match(name)}
