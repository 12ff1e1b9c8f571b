"""What setup.py does where a library cannot be built: an error where it was asked for, else a line that names it."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytest.importorskip("ninja")
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="without the sources")

ADD = """
int added(int a, int b);
int added(int a, int b) { return a + b SUM }
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The package with two short sources and a header in place of the kernels."""
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "vae_kernels", tmp_path / "vae_kernels", ignore=shutil.ignore_patterns("*.so"))
    for folder in ("bind", "cpu"):
        (tmp_path / "csrc" / folder).mkdir(parents=True)
    (tmp_path / "csrc" / "sum.h").write_text("#define SUM ;\n")
    (tmp_path / "csrc" / "bind" / "cpu.cpp").write_text('#include "../sum.h"\n' + ADD)
    (tmp_path / "csrc" / "cpu" / "other.cpp").write_text("int other;\n")
    return tmp_path


def build(tree: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    environment = {"VAE_KERNELS_BUILD_CUDA": "0", **environment}
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, cwd=tree)


def library(tree: Path) -> Path:
    return tree / "vae_kernels" / "_cpp.so"


def compiled(done: subprocess.CompletedProcess) -> set[str]:
    assert done.returncode == 0, done.stdout + done.stderr
    return set(re.findall(r"compile csrc/(\S+)", done.stdout))


def test_what_changed_is_compiled(tree: Path) -> None:
    """And what includes it."""
    assert compiled(build(tree)) == {"bind/cpu.cpp", "cpu/other.cpp"}
    assert library(tree).exists()
    assert compiled(build(tree)) == set()
    (tree / "csrc" / "sum.h").write_text("#define SUM +1;\n")
    assert compiled(build(tree)) == {"bind/cpu.cpp"}
    assert compiled(build(tree, CXX="c++ -DOTHER")) == {"bind/cpu.cpp", "cpu/other.cpp"}


def test_an_error_of_what_was_asked_for_ends_the_build(tree: Path) -> None:
    (tree / "csrc" / "sum.h").write_text("#define SUM \n")
    done = build(tree, VAE_KERNELS_BUILD_CPU="1")
    assert done.returncode != 0
    assert "expected" in done.stdout  # the compiler's own words
    assert "vae_kernels: the kernels for cpu cannot be built" in done.stderr


def test_what_was_not_asked_for_is_left_out_by_name(tree: Path) -> None:
    """With an old library gone: it would not be that of the sources."""
    assert build(tree).returncode == 0
    (tree / "csrc" / "sum.h").write_text("#define SUM \n")
    done = build(tree)
    assert done.returncode == 0
    assert "vae_kernels: leaving out the kernels for cpu: " in done.stderr
    assert not library(tree).exists()


def test_what_is_not_wanted_is_not_touched(tree: Path) -> None:
    library(tree).write_text("mine")
    assert compiled(build(tree, VAE_KERNELS_BUILD_CPU="0")) == set()
    assert library(tree).read_text() == "mine"


def test_pip_builds_apart_from_the_environment(tree: Path) -> None:
    """In an environment of its own, with the packages that pyproject.toml asks for; torch is that of the environment
    which is installed into."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "wheels", "."]
    environment = os.environ | {"VAE_KERNELS_BUILD_CPU": "1", "VAE_KERNELS_BUILD_CUDA": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tree)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tree / "wheels").iterdir()
    assert "-py3-none-" in wheel.name and not wheel.name.endswith("-any.whl")
    assert "vae_kernels/_cpp.so" in zipfile.ZipFile(wheel).namelist()


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"PATH": "", "CUDA_HOME": "/nowhere"}, "no nvcc"),
        ({"TORCH_CUDA_ARCH_LIST": "7.5"}, "nvcc knows none of the architectures 7.5"),
    ],
)
def test_why_there_are_no_kernels_for_a_gpu(tree: Path, environment: dict[str, str], reason: str) -> None:
    if reason == "no nvcc" and Path("/usr/local/cuda/bin/nvcc").exists():
        pytest.skip("nvcc lies where it is always looked for")
    if reason != "no nvcc" and not (shutil.which("nvcc") or Path("/usr/local/cuda/bin/nvcc").exists()):
        pytest.skip("no nvcc")
    environment = {"VAE_KERNELS_BUILD_CPU": "0", **environment}
    assert (
        f"leaving out the kernels for cuda: {reason}"
        in build(tree, VAE_KERNELS_BUILD_CUDA="auto", **environment).stderr
    )
    done = build(tree, VAE_KERNELS_BUILD_CUDA="1", **environment)
    assert done.returncode != 0
    assert f"the kernels for cuda cannot be built: {reason}" in done.stderr
