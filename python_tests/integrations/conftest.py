"""Tests beside the published packages, which `make test-integrations` installs: where one is missing, its tests are not
collected."""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from vae_kernels.patch import counts, posterior

PACKAGES = {"test_diffusers.py": "diffusers", "test_pyro.py": "pyro", "test_scvi.py": "scvi"}

collect_ignore = [file for file, package in PACKAGES.items() if find_spec(package) is None]


@pytest.fixture(autouse=True)
def nothing_left_patched() -> Iterator[None]:
    yield
    assert not counts.PACKAGE.in_force
    assert not posterior.PACKAGE.in_force
