"""The CUDA backend on the host: the kernels' own code, each thread of a block a fiber, under sanitizers.

As a pytest plugin (`-p emulated_cuda`) it lets the backend "cuda" serve CPU tensors. See csrc/cuda/emulated.h.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from vae_kernels import ops

ROOT = Path(__file__).parents[1]
LIBRARY = "VAE_KERNELS_EMULATED_CUDA"

SOURCES = ["csrc/bind/cuda.cpp", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "csrc" / "cuda").glob("*.cu")))]
FLAGS = ["-std=c++17", "-O1", "-g1", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-Wno-psabi"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def build(folder: Path) -> Path:
    """The library from the sources that nvcc compiles, compiled by g++."""
    macros = ["-DVK_EMULATED", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    include = [f"-I{path}" for path in cpp_extension.include_paths()]
    objects = [folder / f"{Path(source).name}.o" for source in SOURCES]
    compilers = [
        subprocess.Popen(
            ["g++", *FLAGS, *SANITIZERS, *macros, *include, "-x", "c++", "-c", source, "-o", str(path)], cwd=ROOT
        )
        for source, path in zip(SOURCES, objects, strict=True)
    ]
    assert not any([compiler.wait() for compiler in compilers])
    library = folder / "_cuda_emulated.so"
    paths = [f"-L{path}" for path in cpp_extension.library_paths()]
    subprocess.run(["g++", "-shared", *SANITIZERS, *objects, *paths, "-ltorch_cpu", "-lc10", "-o", library], check=True)
    return library


def environment(library: Path) -> dict[str, str]:
    """For a process that uses it. The sanitizers' libraries must come before all others."""
    names = ("libasan.so", "libubsan.so")
    preload = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in names
    ]
    return {
        **os.environ,
        LIBRARY: str(library),
        "LD_PRELOAD": " ".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "python_tests")]),
    }


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Before conftest.py asks which backends there are."""
    torch.ops.load_library(os.environ[LIBRARY])
    ops.define("vae_kernels_cuda")
    backends = sys.modules["vae_kernels.backends"]
    why_not = backends._why_not
    backends._DEVICES["cuda"] = ("cpu",)
    backends._why_not = lambda name, device: "" if name == "cuda" else why_not(name, device)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps every seventh sample of a test with hundreds, to save time. It meets every op, dtype and layout."""
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        groups.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept = [item for group in groups.values() for item in (group[::7] if len(group) > 300 else group)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
