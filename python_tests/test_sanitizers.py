"""The CPU kernels alone: under AddressSanitizer and UndefinedBehaviorSanitizer with every instruction set, and on aarch64;
the same bits everywhere."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [ROOT / "python_tests" / "sanitize_kernels.cpp", *sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))]
FLAGS = ["-std=c++17", "-g1", "-fno-math-errno", "-ffp-contract=off", "-Wno-psabi"]


def build(program: Path, compiler: str, *flags: str) -> Path:
    objects = [program.with_name(f"{source.stem}.o") for source in SOURCES]
    compilers = [
        subprocess.Popen([compiler, *FLAGS, *flags, "-c", source, "-o", made], cwd=ROOT)
        for source, made in zip(SOURCES, objects, strict=True)
    ]
    assert not any([process.wait() for process in compilers])
    subprocess.run([compiler, *flags, *objects, "-o", program], check=True)
    return program


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    # For time without optimisation.
    sanitizers = ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    return build(tmp_path_factory.mktemp("sanitize") / "kernels", "g++", *sanitizers)


def digest(command: list[str | Path], isa: str) -> str:
    """Of all that the program read and wrote."""
    done = subprocess.run(command, env=os.environ | {"VAE_KERNELS_ISA": isa}, capture_output=True, text=True)
    if "must name an instruction set of this processor" in done.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert done.returncode == 0, done.stderr
    word, found = done.stdout.split()
    assert word == "clean"
    return found


@pytest.fixture(scope="module")
def baseline(program: Path) -> str:
    return digest([program], "baseline")


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_clean(program: Path, baseline: str, isa: str) -> None:
    assert digest([program], isa) == baseline


def test_aarch64_has_the_same_bits(baseline: str, tmp_path: Path) -> None:
    """Optimised as in setup.py, so that NEON is used, and emulated."""
    compiler, emulator = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
    if shutil.which(compiler) is None or shutil.which(emulator) is None:
        pytest.skip(f"no {compiler} or no {emulator}")
    other = build(tmp_path / "kernels", compiler, "-O3", "-fno-trapping-math", "-static")
    assert digest([emulator, other], "baseline") == baseline
