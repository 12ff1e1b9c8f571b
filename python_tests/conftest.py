"""Fixtures: the backends that serve `DEVICE` here, and memory that is NaN until someone writes it."""

import zlib
from collections.abc import Iterator

import pytest
import torch
from samples import BACKENDS, DEVICE, KERNELS

import vae_kernels as vk
from vae_kernels.training import report

# They test how the kernels are built, what compilers and interpreters make of them, or what no GPU takes part in.
if DEVICE != "cpu":
    collect_ignore = [
        "test_benchmarks.py",
        "test_build.py",
        "test_coarse.py",
        "test_cuda_codegen.py",
        "test_cuda_emulated.py",
        "test_data.py",
        "test_device_rehearsal.py",
        "test_docs.py",
        "test_estimators.py",
        "test_gpu_check.py",
        "test_grids.py",
        "test_library.py",
        "test_machine_code.py",
        "test_math.py",
        "test_models.py",
        "test_processes.py",
        "test_rehearsal.py",
        "test_sanitizers.py",
        "test_train.py",
        "test_triton.py",
        "test_triton_accuracy.py",
        "test_triton_codegen.py",
        "test_without_float64.py",
    ]

# Files that take minutes come first, so that no worker is left with one of them at the end.
LONG = [
    "test_cuda_emulated.py",
    "test_triton.py",
    "test_compile.py",
    "test_triton_accuracy.py",
    "test_device_rehearsal.py",
    "test_sanitizers.py",
    "test_rehearsal.py",
    "test_triton_codegen.py",
    "test_accuracy.py",
]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes gigabytes or many seconds")
    config.addinivalue_line("markers", "drawn: the pictures of training runs are drawn")
    config.addinivalue_line(
        "markers", "around: about what is around the kernels; no variant of a kernel is met here alone"
    )
    config.addinivalue_line("markers", "emulated: runs on the emulated CUDA device too, by test_cuda_emulated.py")
    config.addinivalue_line("markers", "interpreted: runs in Triton's interpreter too, by test_triton.py")
    config.addinivalue_line(
        "markers", "interpreted_accuracy: runs in Triton's interpreter too, by test_triton_accuracy.py"
    )
    if "cuda" in KERNELS:
        config.addinivalue_line("python_files", "cuda_grids.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_report_header() -> str:
    return f"vae_kernels backends on {DEVICE}: {', '.join(BACKENDS)}"


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend in turn, eager among them."""
    with vk.use_backend(request.param):
        yield request.param


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend with kernels in turn."""
    with vk.use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    """What a test draws from the global generator depends on its name alone, so that a failure can be repeated."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """`torch.empty` gives NaN, so that a test fails where nobody wrote an element."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training runs draw no pictures, which would take longer than most runs. Those of tests marked `drawn` do."""
    if "drawn" not in request.keywords:
        monkeypatch.setattr(report, "draw", lambda *_: [])
