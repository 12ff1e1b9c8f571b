"""No test mixes tensors of two devices: the tests of every backend on a second device that is none, see device_rehearsal.py."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import device_rehearsal
import pytest
import torch
from fresh_process import PROGRAMS
from pytest_process import TESTS, run

import vae_kernels as vk

pytestmark = [
    pytest.mark.skipif(torch.version.cuda is not None, reason="for a torch without CUDA"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++"),
    pytest.mark.skipif(vk.backends()["cpu"]["cpp"] != "available", reason="no CPU kernels"),
]

FILES = [
    "test_accuracy.py",
    "test_categorical.py",
    "test_distributions.py",
    "test_families.py",
    "test_gradients.py",
    "test_inputs.py",
    "test_latent.py",
    "test_multinomial.py",
    "test_noise.py",
    "test_objectives.py",
]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return device_rehearsal.environment(device_rehearsal.build(tmp_path_factory.mktemp("device_rehearsal")))


def rehearse(environment: dict[str, str], *tests: Path) -> str:
    return run("device_rehearsal", "-W", "ignore", "-m", "not slow", *tests, environment=environment)


def test_the_device_refuses_what_a_gpu_refuses(environment: dict[str, str]) -> None:
    assert re.match("7 passed", rehearse(environment, PROGRAMS / "two_devices.py"))


WITHOUT = """
import sys
for name in ("matplotlib", "PIL", "safetensors", "scipy", "sklearn", "tqdm"):
    sys.modules[name] = None
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


def test_all_files_are_collected_without_the_extras(environment: dict[str, str]) -> None:
    """A GPU machine may have torch, triton, numpy, pytest and hypothesis alone."""
    options = ["--collect-only", "-q", "-p", "device_rehearsal", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command = [sys.executable, "-c", WITHOUT, *options, TESTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    files = set(re.findall(r"^python_tests/(\w+\.py)", done.stdout, re.MULTILINE))
    assert files >= {"cuda_grids.py", "test_accuracy.py", "test_gpu.py", "test_latent.py"}
    assert "test_cuda_codegen.py" not in files


def test_passes(environment: dict[str, str]) -> None:
    rehearse(environment, *(TESTS / file for file in FILES))
