"""A second device on a machine without one: as a pytest plugin (`-p device_rehearsal`), with VAE_KERNELS_TEST_DEVICE=cuda,
tensors "on CUDA" hold their numbers on the CPU, and what a GPU refuses raises.

An op refuses tensors of two devices as torch does: but for numbers (tensors without dims) on the CPU, copies, and
indices on the CPU into a tensor elsewhere. The ops of `vae_kernels_cuda` are those of the CPU library, for tensors "on
CUDA" alone. Under TRITON_INTERPRET=1 the Triton kernels serve them too.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils import cpp_extension
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from vae_kernels import ops

ROOT = Path(__file__).parents[1]
DEVICE = torch.device("cuda", 0)
aten = torch.ops.aten

# Words in the names of tests that need what torch does not do with such tensors, or crashes over: compile and check ops,
# map over them, differentiate forward or twice, run a forward pass again, autocast, zeros without memory.
UNFIT = {
    "compile",
    "compiled",
    "compiles",
    "dynamic",
    "forward",
    "functorch",
    "gradgradcheck",
    "inductor",
    "memory",
    "opcheck",
}
UNFIT |= {"autocast", "checkpointing", "conjugated", "traced", "transform", "transforms"}

COPIES = {aten._to_copy, aten.copy_, aten._copy_from}
INDEXED = {aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_, aten._unsafe_index}
# They make a tensor without dims on the CPU, or are asked about one, wherever the other arguments are.
ANYWHERE = {aten.lift_fresh, aten.lift}


def build(folder: Path) -> Path:
    """The library of device_rehearsal.cpp, which must be loaded before torch looks whether there is CUDA."""
    library = folder / "device_rehearsal.so"
    include = [f"-I{path}" for path in cpp_extension.include_paths()]
    paths = [option for path in cpp_extension.library_paths() for option in (f"-L{path}", f"-Wl,-rpath,{path}")]
    source = str(ROOT / "python_tests" / "device_rehearsal.cpp")
    command = ["g++", "-std=c++20", "-fPIC", "-shared", *include, source, *paths, "-ltorch_cpu", "-lc10", "-o"]
    subprocess.run([*command, library], check=True)
    return library


def environment(library: Path) -> dict[str, str]:
    """For a process that uses it."""
    return {
        **os.environ,
        "LD_PRELOAD": str(library),
        "VAE_KERNELS_TEST_DEVICE": "cuda",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "python_tests")]),
    }


class OnDevice(Tensor):
    """A tensor that says it is on the device; `held` has the numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnDevice":
        strided = held.layout is torch.strided
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride() if strided else None,
            storage_offset=held.storage_offset() if strided else None,
            dtype=held.dtype,
            layout=held.layout,
            device=DEVICE,
        )
        if held.is_neg():
            torch._C._set_neg(made, True)
        made.held = held
        return made

    def __repr__(self, **_: object) -> str:
        return f"on {DEVICE}: {self.held!r}"

    def tolist(self) -> object:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return run(op, args, kwargs or {})


class OnlyCuda(TorchDispatchMode):
    """Makes what is asked for "on CUDA"."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        return run(op, args, kwargs or {})


def run(op: torch._ops.OpOverload, args: tuple, kwargs: dict) -> object:
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    here = [t for t in tensors if isinstance(t, OnDevice)]
    asked = kwargs.get("device")
    made_here = torch.device(asked).type == "cuda" if asked is not None else bool(here)
    if not here and not made_here:
        return op(*args, **kwargs)
    if here and (others := [t for t in tensors if not isinstance(t, OnDevice)]):
        _refuse_two_devices(op, args, others)
    held = tree_map_only(OnDevice, lambda t: t.held, (args, kwargs))
    inner_args, inner_kwargs = held
    if made_here and asked is not None:
        inner_kwargs = inner_kwargs | {"device": torch.device("cpu")}
    generator = kwargs.get("generator")
    if generator is not None:
        if made_here != (generator.device.type == "cuda"):
            raise RuntimeError(f"{op} got a generator of {generator.device.type} for another device")
        inner_kwargs = inner_kwargs | {"generator": torch.Generator().set_state(generator.get_state())}
    result = op(*inner_args, **inner_kwargs)
    if generator is not None:
        generator.set_state(inner_kwargs["generator"].get_state())
    if not made_here and op.overloadpacket not in (aten.copy_,):
        return result
    same = {id(t.held): t for t in here}
    return tree_map_only(
        Tensor, lambda t: same[id(t)] if id(t) in same else t if isinstance(t, OnDevice) else OnDevice(t), result
    )


def _refuse_two_devices(op: torch._ops.OpOverload, args: tuple, others: list[Tensor]) -> None:
    packet = op.overloadpacket
    if packet in COPIES or packet in ANYWHERE:
        return
    if packet in INDEXED and isinstance(args[0], OnDevice) and all(t.device.type == "cpu" for t in others):
        values = args[2:3] if packet is not aten.index else ()
        if all(isinstance(v, OnDevice) or v.dim() == 0 for v in values):
            return
    numbers = not op.namespace.startswith("vae_kernels") and all(t.dim() == 0 for t in others)
    if not numbers or any(t.device.type != "cpu" for t in others):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {op} got {DEVICE} and {others[0].device}"
        )


def _serve() -> None:
    """The backends of CUDA tensors."""
    backends = sys.modules["vae_kernels.backends"]
    assert not backends._why_not("cpp", "cpu")
    library = ops.define("vae_kernels_cuda")
    for name in ops.SCHEMAS:
        library.impl(name, getattr(torch.ops.vae_kernels_cpp, name), "CPU")
    why_not = backends._why_not
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"

    def patched(name: str, device: str) -> str:
        if device == "cuda":
            return (
                ""
                if name == "cuda" or (name == "triton" and interpreted and not why_not(name, "cpu"))
                else "rehearsal: not there"
            )
        return why_not(name, device)

    backends._why_not = patched


_kept: list[object] = []


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Before conftest.py asks which backends there are."""
    torch._C._set_only_lift_cpu_tensors(True)
    torch.cuda._lazy_init = lambda: None

    _serve()
    gradcheck = torch.autograd.gradcheck  # torch crashes over dual numbers of such tensors
    torch.autograd.gradcheck = lambda *args, check_forward_ad=False, **kwargs: gradcheck(*args, **kwargs)
    mode = OnlyCuda()
    mode.__enter__()
    _kept.append(mode)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps a handful of the samples of each test, to save time: all of them make their tensors in the same lines."""
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        if UNFIT.isdisjoint(re.split(r"[\W_]+", item.name)):
            groups.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept = {item for group in groups.values() for item in group[:: len(group) // 4 | 1]}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]
