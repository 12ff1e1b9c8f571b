"""The launches of the Triton kernels without a GPU, as far as the driver: see `stubbed_driver.py`."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("Triton is for Linux", allow_module_level=True)

import stubbed_driver
import triton_versions

TESTS = Path(__file__).parent


@pytest.mark.parametrize("version", [None, *triton_versions.OTHERS])
def test_launches(version: str | None, tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    environment = stubbed_driver.environment(stubbed_driver.build(tmp_path))
    if version is not None:
        environment = triton_versions.environment(version, environment)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "stubbed_driver", "-p", "no:xdist", "-p", "no:cacheprovider"),
            TESTS / "triton_on_stub.py",
        ],
        env=environment,
        capture_output=True,
        text=True,
        cwd=TESTS.parent,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
