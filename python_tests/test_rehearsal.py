"""What runs on a GPU as far as it runs without one: the libraries load, Triton launches into a stub of the driver.

`make gpu-rehearsal` runs this and the rest of the suite beside the torch and the Triton of a GPU machine.
"""

import shutil
import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("Triton is for Linux", allow_module_level=True)

import stubbed_driver
import triton_versions
from fresh_process import python
from pytest_process import TESTS, run

import vae_kernels as vk

LOAD = """
import sys, torch
from vae_kernels import ops
path, namespace, key = sys.argv[1:]
torch.ops.load_library(path)
library = ops.define(namespace)
has = torch._C._dispatch_has_kernel_for_dispatch_key
print(*(name for name in ops.SCHEMAS if not has(f"{namespace}::{name}", key)))
"""


@pytest.mark.parametrize("name", ["cpp", "cuda"])
def test_the_library_loads_and_has_every_op(name: str) -> None:
    path = Path(vk.__file__).with_name(f"_{name}.so")
    if not path.exists():
        pytest.skip(f"{path.name} was not built")
    assert python(LOAD, str(path), f"vae_kernels_{name}", {"cpp": "CPU", "cuda": "CUDA"}[name]) == ""


@pytest.mark.parametrize("version", [None, *triton_versions.OTHERS])
def test_launches(version: str | None, tmp_path: Path) -> None:
    """All calls with the oldest Triton, and a few with the others, for which test_triton_codegen.py compiles all kernels."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    environment = stubbed_driver.environment(stubbed_driver.build(tmp_path))
    if version is not None:
        environment = triton_versions.environment(version, environment)
    chosen = "launches" if version == triton_versions.OTHERS[0] else "tails or positions"
    run("stubbed_driver", "-k", chosen, TESTS / "triton_on_stub.py", environment=environment)
