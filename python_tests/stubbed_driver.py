"""Triton without a GPU, up to the driver: it compiles for an H100 and launches through its own launcher into a libcuda
that does nothing but write down what it is given, `stub_driver.c`.

As a pytest plugin (`-p stubbed_driver`) it makes that the driver of the process, which `environment` must have started.
"""

import json
import os
import subprocess
from pathlib import Path

from triton.backends.nvidia.driver import CudaDriver
from triton.runtime import driver

HERE = Path(__file__).parent
LOG = "STUB_DRIVER_LOG"
STREAM = 0x1234


def build(folder: Path) -> Path:
    """The folder of the stub."""
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", HERE / "stub_driver.c", "-o", folder / "libcuda.so.1"], check=True)
    (folder / "libcuda.so").symlink_to("libcuda.so.1")
    return folder


def environment(folder: Path) -> dict[str, str]:
    """For a process that uses it. What Triton builds against the stub must not stay where it looks for its own."""
    return os.environ | {
        LOG: str(folder / "launches"),
        "LD_LIBRARY_PATH": str(folder),
        "TRITON_LIBCUDA_PATH": str(folder),
        "TRITON_CACHE_DIR": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
    }


def launches() -> list[dict[str, object]]:
    """Those since the last time."""
    path = Path(os.environ[LOG])
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [json.loads(line) for line in lines]


def pytest_configure() -> None:
    stubbed = CudaDriver()
    stubbed.get_current_device = lambda: 0
    stubbed.get_device_capability = lambda device=0: (9, 0)
    stubbed.get_current_stream = lambda device: STREAM
    driver.set_active(stubbed)
