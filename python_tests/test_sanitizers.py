"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, with every instruction set."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    path = tmp_path_factory.mktemp("sanitize") / "sanitize_kernels"
    sources = [ROOT / "python_tests" / "sanitize_kernels.cpp", *sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))]
    # What the kernels are built with, but for the sanitizers and, for time, the optimisation.
    flags = ["-std=c++17", "-O0", "-g1", "-fno-math-errno", "-ffp-contract=off", "-Wno-psabi"]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    objects = [path.with_name(f"{source.stem}.o") for source in sources]
    compilers = [
        subprocess.Popen([compiler, *flags, *sanitizers, "-c", source, "-o", made], cwd=ROOT)
        for source, made in zip(sources, objects, strict=True)
    ]
    assert not any([process.wait() for process in compilers])
    subprocess.run([compiler, *sanitizers, *objects, "-o", path], check=True)
    return path


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_clean(program, isa):
    result = subprocess.run([program], env={**os.environ, "VAE_KERNELS_ISA": isa}, capture_output=True, text=True)
    if "must name an instruction set of this processor" in result.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "clean\n"
