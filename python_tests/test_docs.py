"""What the pages under docs/ say is so."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_the_family_that_is_shown_can_be_added() -> None:
    """The page is a patch of this very source."""
    page = (ROOT / "docs/adding_a_family.md").read_text(encoding="utf-8")
    patch = "".join(re.findall(r"^```diff\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    applied = subprocess.run(["git", "apply", "--check", "-"], input=patch, cwd=ROOT, capture_output=True, text=True)
    assert applied.returncode == 0, applied.stderr
    changed = set(re.findall(r"^\+\+\+ b/(.*)$", patch, re.MULTILINE))
    assert {name for name in changed if not name.startswith("python_tests/")} == {
        "csrc/formulas/likelihood.h",
        "vae_kernels/triton/families.py",
        "vae_kernels/eager.py",
        "vae_kernels/families.py",
        "vae_kernels/likelihood.py",
        "vae_kernels/__init__.py",
    }
