"""The CUDA library, built without a GPU: what its machine code needs and moves, and what it asks of torch."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from symbols import STABLE, symbols_of_torch

from benchmarks.cuda_codegen import LIBRARY, Kernel, kernels, why_not
from vae_kernels.families import FAMILIES

ROOT = Path(__file__).parents[1]
NVCC = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"

CATEGORICAL = ("gather_kernel", "normalize_kernel", "gradient_kernel", "part_gradient_kernel")
MULTINOMIAL = ("multinomial_log_prob_kernel", "multinomial_gradient_kernel")

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture(scope="module")
def found() -> list[Kernel]:
    return kernels()


@pytest.mark.skipif("TORCH_CUDA_ARCH_LIST" in os.environ, reason="built for the architectures asked for")
def test_machine_code_for_every_architecture(found: list[Kernel]) -> None:
    architectures = ["sm_80", "sm_90", "sm_100", "sm_120"]
    assert list(dict.fromkeys(kernel.architecture for kernel in found)) == architectures
    of_one = [{kernel.name for kernel in found if kernel.architecture == name} for name in architectures]
    assert all(names == of_one[0] for names in of_one)


def test_nothing_spills(found: list[Kernel]) -> None:
    assert [kernel for kernel in found if kernel.stack or kernel.local] == []


def test_a_block_fits_into_the_registers_of_a_multiprocessor(found: list[Kernel]) -> None:
    for kernel in found:
        threads = 128 if "8>" in kernel.name or "Float16>" in kernel.name else 256
        if kernel.name.startswith((*CATEGORICAL, *MULTINOMIAL)) and "double" not in kernel.name:
            threads *= 4
        assert kernel.registers * threads <= 65536, kernel


def test_packs_move_as_16_bytes_and_once(found: list[Kernel]) -> None:
    """A thread reads a pack of each tensor and writes a pack of each result: the bytes that an ideal kernel moves."""
    ideal = {}
    for clamped, prior in (("false", "false"), ("true", "false"), ("false", "true")):
        moments = 4 if prior == "true" else 2
        flags = f", {clamped}, {prior}"
        ideal |= {
            ("PlainForward", "latent", flags): (moments, 1),
            ("PlainBackward", "latent", flags): (1 + moments, moments),
        }
    for name, family in FAMILIES.items():
        count = len(family.arguments)
        ideal |= {("Forward", name, ", false"): (count, 0), ("RowBackward", name, ""): (count, count)}
        if count > 2:
            ideal[("ColumnBackward", name, "")] = (count, count)
    for name in ("gaussian", "laplace"):  # with a parameter that is one number
        ideal |= {("Forward", name, ", true"): (2, 0), ("SingleBackward", name, ""): (2, 2)}
    seen = set()
    for kernel in found:
        if kernel.packs and not kernel.name.startswith((*CATEGORICAL, *MULTINOMIAL)):
            pattern = r"\w+_kernel<(\w+)<(?:(\w+), )?Vectors<\w+>((?:, \w+)*)>>"
            body, family, flags = re.fullmatch(pattern, kernel.name).groups("Latent")
            seen.add(key := (body, re.sub(r"(?<!^)(?=[A-Z])", "_", family).lower(), flags))
            assert (kernel.loads_16, kernel.stores_16) == ideal[key], kernel
    assert seen == set(ideal)


def test_classes_move_as_16_bytes(found: list[Kernel]) -> None:
    """Four packs of a position are read before the first is used, two more for the gradients, and these written. What
    is smaller are x, one logit and numbers of a position."""
    ideal = {"gather_kernel": (4, 0), "normalize_kernel": (4, 0)}
    ideal |= {"gradient_kernel": (4 + 2, 2), "part_gradient_kernel": (2, 2)}
    moves = {
        (name := kernel.name.partition("<")[0], kernel.name): (kernel.loads_16, kernel.stores_16) == ideal[name]
        for kernel in found
        if kernel.packs and kernel.name.startswith(CATEGORICAL)
    }
    assert {name for name, _ in moves} == set(ideal)
    assert all(moves.values()), moves


# Instructions per element on sm_90, at most: in float32, in half types.
INSTRUCTIONS = {
    r"PlainForward<Vectors<\w+>, false, false>": (64, 49),
    r"PlainForward<Vectors<\w+>, true, false>": (70, 55),
    r"PlainForward<Vectors<\w+>, false, true>": (91, 77),
    r"PlainBackward<Vectors<\w+>, false, false>": (68, 39),
    r"PlainBackward<Vectors<\w+>, true, false>": (78, 49),
    r"PlainBackward<Vectors<\w+>, false, true>": (104, 61),
    r"\bForward<Bernoulli, ": (27, 27),
    r"RowBackward<Bernoulli, ": (26, 26),
    r"\bForward<(Gaussian|Laplace), Vectors<\w+>, false>": (34, 34),
    r"\bForward<(Gaussian|Laplace), Vectors<\w+>, true>": (12, 12),
    r"RowBackward<(Gaussian|Laplace), ": (47, 46),
    r"SingleBackward<": (21, 21),
    r"\bForward<NegativeBinomial, ": (256, 256),
    r"RowBackward<NegativeBinomial, ": (335, 335),
    r"(gather|normalize)_kernel<": (21, 21),
    r"\bgradient_kernel<": (39, 39),
}

# The fraction of a copy on an H200 that is predicted, in float32 and in half types, at least. Elsewhere arithmetic takes
# longer than memory by far: three logarithms and as many quotients an element, or more.
PREDICTED = 0.87, 0.58
BOUND_BY_ARITHMETIC = (
    "multinomial",
    "NegativeBinomial",
    "ContinuousBernoulli",
    "BernoulliProbs",
    "DiscretizedLogistic",
    "Poisson",
)


def test_instructions_per_element(found: list[Kernel]) -> None:
    """No kernel for whole packs has more instructions than it had."""
    counted = [kernel for kernel in found if kernel.packs and kernel.architecture == "sm_90"]
    if not counted:
        pytest.skip("not built for sm_90")
    assert all(kernel.instructions and kernel.predicted_h200 for kernel in counted)
    for pattern, limits in INSTRUCTIONS.items():
        matched = [kernel for kernel in counted if re.search(pattern, kernel.name)]
        assert matched, pattern
        for kernel in matched:
            assert kernel.instructions <= limits["<float>" not in kernel.name], kernel
    for kernel in counted:
        if not any(family in kernel.name for family in BOUND_BY_ARITHMETIC):
            assert kernel.predicted_h200 >= PREDICTED["<float>" not in kernel.name], kernel


@pytest.mark.skipif(not shutil.which("nm"), reason="nm of binutils is not installed")
def test_needs_nothing_of_torch_outside_the_stable_abi() -> None:
    of_torch = symbols_of_torch(LIBRARY)
    assert "torch_library_impl" in of_torch
    assert {name for name in of_torch if not STABLE.match(name)} == set()


@pytest.mark.skipif(not Path(NVCC).exists(), reason="no nvcc")
def test_loads_and_registers_its_ops() -> None:
    """Under a torch without CUDA only beside the runtime that a CUDA torch brings. CPU tensors it does not serve."""
    runtime = next(path for path in Path(NVCC).resolve().parents[1].rglob("libcudart.so") if path.exists())
    code = f"""
import ctypes, torch
ctypes.CDLL({str(runtime)!r}, ctypes.RTLD_GLOBAL)
torch.ops.load_library({str(LIBRARY)!r})
from vae_kernels import ops
library = ops.define("vae_kernels_cuda")
has = torch._C._dispatch_has_kernel_for_dispatch_key
print(*(name for name in ops.SCHEMAS if not has("vae_kernels_cuda::" + name, "CUDA")))
zeros = torch.zeros(2, 3)
try:
    torch.ops.vae_kernels_cuda.likelihood_forward(zeros, zeros, None, None, 0, None, None, 1, None)
except NotImplementedError as error:
    print("CUDA" in str(error))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "\nTrue\n", done.stderr


FAILS_TO_LAUNCH = """
#include <cstdio>
#include "csrc/cuda/sums.h"
int main() {
  const vk::cuda::Queue queue{nullptr, [](size_t) { return nullptr; }};
  for (int i = 0; i < 2; ++i) {
    try {
      vk::cuda::sum_axis<float>("the op", nullptr, 1, 2, 3, nullptr, vk::Type::kFloat32, queue);
    } catch (const std::runtime_error& error) {
      std::puts(error.what());
    }
  }
  return int(cudaPeekAtLastError());
}
"""


@pytest.mark.skipif(not Path(NVCC).exists(), reason="no nvcc")
def test_a_failed_launch_names_the_op(tmp_path: Path) -> None:
    """Without a device, or with all of them hidden, no launch succeeds; none leaves its error for others to report."""
    source, program = tmp_path / "fails.cu", tmp_path / "fails"
    source.write_text(FAILS_TO_LAUNCH)
    command = [NVCC, "-std=c++17", "-O0", "-arch=sm_90", f"-I{ROOT}", source, "csrc/cuda/sums.cu", "-o", program]
    subprocess.run(command, cwd=ROOT, check=True)
    done = subprocess.run([program], env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all(line.startswith("the op: ") and len(line) > 10 for line in lines), done
