"""The C++ library: what it needs from torch, and that threads and instruction sets change no bit of a result."""

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import torch
from fresh_process import program, python
from samples import BACKENDS
from symbols import STABLE, symbols_of_torch, undefined_symbols

import vae_kernels as vk
from vae_kernels.families import INDEX
from vae_kernels.options import LatentOptions

LIBRARY = Path(vk.__file__).with_name("_cpp.so")

pytestmark = pytest.mark.skipif("cpp" not in BACKENDS, reason="the C++ library is not built for this device")

# The versions of the C++ runtime in the manylinux_2_28 images. A library that asks for no later ones loads beside them.
OLDEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}

built = pytest.mark.parametrize(
    "library", [path for path in (LIBRARY, LIBRARY.with_name("_cuda.so")) if path.exists()], ids=lambda path: path.name
)


@pytest.mark.skipif(not shutil.which("nm"), reason="nm of binutils is not installed")
@built
def test_needs_nothing_of_torch_outside_the_stable_abi(library: Path) -> None:
    of_torch = symbols_of_torch(library)
    assert "torch_library_impl" in of_torch
    assert {name for name in of_torch if not STABLE.match(name)} == set()


@pytest.mark.skipif(not shutil.which("nm"), reason="nm of binutils is not installed")
@built
def test_loads_beside_an_old_c_library(library: Path) -> None:
    versions = {version for version in undefined_symbols(library).values() if version.partition("_")[0] in OLDEST}
    assert versions
    for version in versions:
        name, _, number = version.partition("_")
        assert tuple(map(int, number.split("."))) <= OLDEST[name], version


@pytest.mark.skipif(not shutil.which("readelf"), reason="readelf of binutils is not installed")
@built
def test_links_to_nothing_unexpected(library: Path) -> None:
    listed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", listed))
    system = {"libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"}
    cudart = {name for name in needed if library.name == "_cuda.so" and name.startswith("libcudart.so.")}
    assert needed - system - cudart <= {"libtorch.so", "libtorch_cpu.so", "libc10.so"}
    assert not re.search(r"R(UN)?PATH.*(/home|/work|/root|/tmp|/build)", listed)


@cache
def digests(subject: str, isa: str) -> dict[str, str | dict[str, str]]:
    """Digests of all results of a process with that instruction set, for one thread and for two."""
    return json.loads(program("digests.py", subject, VAE_KERNELS_ISA=isa, OMP_NUM_THREADS="2"))


def supported() -> list[str]:
    """The instruction sets of this machine, best first."""
    of_torch = torch.backends.cpu.get_cpu_capability()
    return {"AVX512": ["avx512", "avx2", "baseline"], "AVX2": ["avx2", "baseline"]}.get(of_torch, ["baseline"])


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("isa", supported())
@pytest.mark.parametrize("subject", ["library", "categorical", "multinomial"])
def test_threads_and_instruction_sets_change_no_bit(subject: str, isa: str, threads: str) -> None:
    want, got = digests(subject, "baseline")["1"], digests(subject, isa)[threads]
    assert digests(subject, isa)["isa"] == isa
    assert want and set(got) == set(want)
    assert [name for name in got if got[name] != want[name]] == []


def test_the_best_instruction_set_is_the_default() -> None:
    code = "import torch, vae_kernels as vk; vk.use_backend('cpp'); print(torch.ops.vae_kernels_cpp.isa())"
    assert python(code) == supported()[0]


@pytest.mark.parametrize("bins", [torch.tensor(256.0), torch.full((2, 3), 256.0)], ids=["one", "elements"])
def test_bins_as_a_tensor_are_refused(bins: torch.Tensor) -> None:
    """The kernels read bins as one number, and would take the first of several."""
    inputs = (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(()))
    ops, family = torch.ops.vae_kernels_cpp, INDEX["discretized_logistic"]
    message = "discretized_logistic needs the last 1 of its parameters as numbers, got a tensor"
    with pytest.raises(RuntimeError, match=message):
        ops.likelihood_forward(*inputs, bins, family, None, None, 1, None)
    with pytest.raises(RuntimeError, match=message):
        ops.likelihood_backward(torch.ones(2), *inputs, bins, family, None, None, 1, None, 15)
    message = "discretized_logistic takes 2 parameters, each a tensor or a number"
    with pytest.raises(RuntimeError, match=message):
        ops.likelihood_forward(*inputs, bins, family, None, 256.0, 1, None)
    with pytest.raises(RuntimeError, match=message):
        ops.likelihood_forward(*inputs, None, family, None, None, 1, None)
    most = len(INDEX) - 1
    with pytest.raises(RuntimeError, match=f"family must be between 0 and {most}, got {most + 1}"):
        ops.likelihood_forward(*inputs, None, most + 1, None, 256.0, 1, None)


def test_what_no_kernel_can_do_is_refused_by_the_ops() -> None:
    """The ops check what the public functions check before them."""
    ops, z, seed = torch.ops.vae_kernels_cpp, torch.zeros(2, 3), torch.tensor([1])
    for message, options, *inputs in (
        ("scale must be between 0 and 4, got 5", LatentOptions(1, scale=5), z, z, None, None, seed),
        ("packed_dim is missing", LatentOptions(1), torch.zeros(2, 6), None, None, None, seed),
        ("num_samples must be at least 1, got 0", LatentOptions(1, num_samples=0), z, z, None, None, seed),
        ("logvar must have the shape of mu", LatentOptions(1), z, z[:1], None, None, seed),
        ("noise must be int64 seeds, or have the shape of z", LatentOptions(1), z, z, None, None, z[:1]),
        ("noise must be int64 seeds, or have the shape of z", LatentOptions(1), z, z, None, None, seed.int()),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.latent_forward(*inputs, *options)
    with pytest.raises(RuntimeError, match="prior_mu is missing"):
        ops.latent_backward(z, None, z, z, None, None, seed, *LatentOptions(1), 4)
    with pytest.raises(RuntimeError, match="must be the same for all samples or have the call's shape"):
        ops.likelihood_backward(z[:, 0], z, z, z[:, :1], None, INDEX["gaussian"], None, None, 1, None, 4)


def test_a_library_of_other_sources_is_refused(tmp_path: Path) -> None:
    """It would compute families by each other's formulas."""
    package = shutil.copytree(
        Path(vk.__file__).parent, tmp_path / "vae_kernels", ignore=shutil.ignore_patterns("_cuda.so")
    )
    families = (package / "families.py").read_text()
    (package / "families.py").write_text(families.replace('"laplace"', '"another"'))
    code = "import vae_kernels as vk; print(vk.backends()['cpu']['cpp'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "_cpp.so was built from other sources: reinstall\n", done.stderr


def test_calls_from_several_threads_at_once() -> None:
    """Each Python thread gets its own results."""

    def step(seed: int) -> list[torch.Tensor]:
        mu, logvar = (torch.full((64, 333), 0.1 * seed, requires_grad=True) for _ in range(2))
        with vk.use_backend("cpp"):
            z, kl = vk.reparameterize_kl(mu, logvar, seed=seed)
        return [z.detach(), kl.detach(), *torch.autograd.grad(z.sum() + kl.sum(), (mu, logvar))]

    want = [step(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(step, [*range(8)] * 8))
    for index, result in enumerate(got):
        assert all(torch.equal(a, b) for a, b in zip(result, want[index % 8], strict=True))
