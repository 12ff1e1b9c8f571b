"""Which backend serves a call, what a process loads and when, and the ops that a kernel backend registers."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from fresh_process import python
from recorded_ops import RecordedOps
from samples import BACKENDS, BROADCAST, DEVICE, ELEMENTS, EMPTY, F32, LAID_OUT, SHAPED, VALUES, Sample, sample

import vae_kernels as vk
from vae_kernels.backends import NAMES, current_backend

pytestmark = pytest.mark.around

PACKAGE = Path(vk.__file__).parent


def unavailable() -> list[str]:
    tables = vk.backends().values()
    return [name for name in NAMES[1:] if all(table.get(name) != "available" for table in tables)]


def test_backends_says_what_is_there_and_why_another_is_not() -> None:
    table = vk.backends()
    assert {"cpu", "cuda"} <= set(table)
    for device, states in table.items():
        assert states["eager"] == "available"
        assert set(states) <= set(NAMES)
        for name, state in states.items():
            assert state == "available" or len(state.split()) > 3, (device, name, state)
    assert {"cpp", "triton"} <= set(table["cpu"])
    assert {"cuda", "triton"} <= set(table["cuda"])


def test_auto_takes_the_kernels_that_are_there() -> None:
    assert current_backend("meta") == "eager"
    if DEVICE == "cpu":
        assert current_backend("cpu") == ("cpp" if "cpp" in BACKENDS else "eager")


def test_use_backend_as_a_function_and_in_blocks() -> None:
    default = current_backend(DEVICE)
    with vk.use_backend("eager"):
        assert current_backend(DEVICE) == "eager"
        with vk.use_backend("auto"):
            assert current_backend(DEVICE) == default
        assert current_backend(DEVICE) == "eager"
        with pytest.raises(ZeroDivisionError), vk.use_backend("auto"):
            _ = 1 / 0
        assert current_backend(DEVICE) == "eager"
    assert current_backend(DEVICE) == default
    vk.use_backend("eager")
    assert current_backend(DEVICE) == "eager"
    vk.use_backend("auto")
    assert current_backend(DEVICE) == default


def test_a_backend_that_does_not_exist() -> None:
    default = current_backend(DEVICE)
    with pytest.raises(ValueError, match=r"name.*eager.*'numpy'"):
        vk.use_backend("numpy")
    assert current_backend(DEVICE) == default


@pytest.mark.parametrize("name", unavailable())
def test_a_backend_named_that_cannot_serve(name: str) -> None:
    default = current_backend(DEVICE)
    reasons = [table[name] for table in vk.backends().values() if name in table]
    with pytest.raises(RuntimeError, match=name) as caught:
        vk.use_backend(name)
    assert any(reason in str(caught.value) for reason in reasons)
    assert current_backend(DEVICE) == default


def test_a_backend_named_for_another_device() -> None:
    """No silent fallback: who names `cpp` and hands over tensors elsewhere is told."""
    for name in BACKENDS:
        meta = torch.zeros(2, 3, device="meta")
        with vk.use_backend(name):
            if name == "eager":
                assert vk.bernoulli_log_likelihood(meta, meta).device.type == "meta"
            else:
                with pytest.raises(RuntimeError, match=rf"{name}.*meta"):
                    vk.bernoulli_log_likelihood(meta, meta)


SERVE = """
import sys, torch, vae_kernels as vk
from vae_kernels.backends import current_backend
print(current_backend(sys.argv[1]))
zeros = torch.zeros(2, 3, device=sys.argv[1])
print(vk.reparameterize_kl(zeros, zeros, seed=0)[1].tolist())
"""


@pytest.mark.parametrize("name", BACKENDS)
def test_the_environment_chooses_the_default(name: str) -> None:
    assert python(SERVE, DEVICE, VAE_KERNELS_BACKEND=name).split("\n") == [name, "[0.0, 0.0]"]


FAIL = """
import torch, vae_kernels as vk
try:
    vk.bernoulli_log_likelihood(torch.zeros(2, 3), torch.zeros(2, 3))
except (ValueError, RuntimeError) as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["numpy", *unavailable()])
def test_the_environment_chooses_what_cannot_serve(name: str) -> None:
    message = python(FAIL, VAE_KERNELS_BACKEND=name)
    assert name in message
    assert name in NAMES or "VAE_KERNELS_BACKEND" in message


UNDER_OTHER_VERSIONS = """
import sys, triton, numpy
triton.__version__, numpy.__version__ = sys.argv[1:]
import vae_kernels as vk
print(vk.backends()["cpu"]["triton"])
"""


@pytest.mark.parametrize(
    ("triton", "numpy", "interpret", "reason"),
    [
        ("3.5.1", "2.3.5", "0", "triton 3.5.1 is installed, 3.6 or later is needed"),
        ("3.6.0", "2.4.0", "1", "the interpreter of triton 3.6.0 needs a numpy before 2.4"),
        ("3.6.0", "2.5.5", "0", "with TRITON_INTERPRET=1"),
        ("3.6.0", "2.3.5", "1", "available"),
        ("3.10.0", "2.5.5", "1", "available"),
    ],
)
def test_versions_of_triton(triton: str, numpy: str, interpret: str, reason: str) -> None:
    pytest.importorskip("triton")
    assert reason in python(UNDER_OTHER_VERSIONS, triton, numpy, TRITON_INTERPRET=interpret)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the package without any shared library."""
    shutil.copytree(PACKAGE, tmp_path / "vae_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return tmp_path


STATE = "print(vk.backends()['cpu']['cpp'])"


def test_without_the_library_eager_serves(copied: Path) -> None:
    assert python(SERVE, "cpu", path=copied).split("\n") == ["eager", "[0.0, 0.0]"]
    assert "compiler" in python(f"import vae_kernels as vk\n{STATE}", path=copied)


def test_with_a_broken_library_eager_serves_and_says_why(copied: Path) -> None:
    (copied / "vae_kernels" / "_cpp.so").write_bytes(b"not a library")
    assert python(SERVE, "cpu", path=copied).split("\n") == ["eager", "[0.0, 0.0]"]
    assert "load" in python(f"import vae_kernels as vk\n{STATE}", path=copied)


IMPORT = """
import sys
import torch
before = set(sys.modules)
import vae_kernels
print("\\n".join(sorted(set(sys.modules) - before)))
"""


def test_importing_imports_nothing_heavy() -> None:
    """Neither triton nor matplotlib, nor any other package, nor the parts of torch that are slow to import."""
    new = python(IMPORT).split("\n")
    assert "vae_kernels" in new
    top = {name.split(".")[0] for name in new}
    assert top - set(sys.stdlib_module_names) <= {"vae_kernels", "torch"}
    assert not [name for name in new if name.startswith(("torch._dynamo", "torch._inductor", "torch._functorch"))]
    assert not [name for name in new if name.startswith(("vae_kernels.triton", "vae_kernels.models"))]


def test_importing_loads_no_library() -> None:
    code = "import vae_kernels, pathlib; print('vae_kernels/_' in pathlib.Path('/proc/self/maps').read_text())"
    assert python(code) == "False"


def test_what_is_shipped() -> None:
    assert (PACKAGE / "py.typed").exists()
    assert {
        "backends",
        "bernoulli_log_likelihood",
        "check_values",
        "gaussian_log_likelihood",
        "reparameterize_kl",
        "use_backend",
    } <= set(vk.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+", vk.__version__)


def test_the_module_prints_what_is_in_use() -> None:
    code = "import runpy; runpy.run_module('vae_kernels', run_name='__main__')"
    printed = python(code)
    assert vk.__version__ in printed
    assert torch.__version__ in printed
    for states in vk.backends().values():
        for name, state in states.items():
            assert name in printed
            assert state == "available" or state in printed
    if "cpp" in BACKENDS:
        assert torch.ops.vae_kernels_cpp.isa() in printed


# opcheck takes half a second.
FEW = [
    *(s for s in VALUES if s.values == "random"),
    *(s for s in SHAPED if s.shapes[0] in ((), (9,), (7, 20)) and s.dtypes[0] == F32),
    *LAID_OUT[::9],
    *BROADCAST[::8],
    *EMPTY[::6],
    *ELEMENTS[::8],
]


@pytest.mark.parametrize("case", FEW, ids=str)
def test_opcheck(kernel: str, case: Sample) -> None:
    """The ops of a forward and a backward pass."""
    with RecordedOps(kernel) as ops:
        outputs = case.call(case.make())
        torch.autograd.backward(list(outputs.values()), list(case.upstream(outputs).values()))
    assert len(ops) == 2
    ops.check()


def test_opcheck_with_a_seed_and_absent_gradients(kernel: str) -> None:
    for case in (sample("latent", (3, 37)), sample("latent", (2, 3, 4, 5), layouts="channels_last")):
        mu, logvar, _ = case.make().values()
        for used in ((0,), (1,), (0, 1)):
            with RecordedOps(kernel) as ops:
                outputs = vk.reparameterize_kl(mu, logvar, seed=1)
                torch.autograd.backward([outputs[i] for i in used], [torch.randn_like(outputs[i]) for i in used])
            assert len(ops) == 2
            ops.check()
