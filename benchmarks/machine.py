"""The device and the versions of a run, without host name and paths."""

import contextlib
import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch

import vae_kernels as vk

ROOT = Path(__file__).resolve().parent.parent


def device_name(device: str) -> str:
    """`AMD EPYC, 2 cores, AVX512`, or the name of the GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{_processor()}, {cores()} cores, {torch.backends.cpu.get_cpu_capability()}"


def folder_name(device: str) -> str:
    """The device's name as a folder: `amd-epyc-2-cores`."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{_processor()} {cores()} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> str:
    parts = [f"vae_kernels {vk.__version__}", f"torch {torch.__version__}"]
    with contextlib.suppress(metadata.PackageNotFoundError):
        parts.append(f"triton {metadata.version('triton')}")
    return ", ".join([*parts, f"python {platform.python_version()}"])


def date() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%MZ")


def commit() -> str:
    """The commit that is checked out, with a `+` if tracked files differ from it; empty outside a repository."""
    revision = _git("rev-parse", "--short=12", "HEAD")
    changed = revision and _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return revision + ("+" if changed else "")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()
