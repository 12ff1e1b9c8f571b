"""The stages of benchmarks/gpu_check.py, executed as far as a CPU can."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import vae_kernels as vk
from benchmarks import cases, checking, gpu_check, results, smoke
from benchmarks.suites import Plan, ops
from benchmarks.timing import Effort
from vae_kernels.backends import current_backend

ROOT = Path(__file__).parents[1]
KERNELS = [name for name, state in vk.backends()["cpu"].items() if name != "eager" and state == "available"]
needs_cpp = pytest.mark.skipif("cpp" not in KERNELS, reason="no CPU kernels")


def lines(folder: Path, name: str) -> list[str]:
    return (folder / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def run_stage(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **constants: object) -> int:
    for constant, value in constants.items():
        monkeypatch.setattr(gpu_check, constant, value)
    return gpu_check.main([name, "--device", "cpu", "--out", str(folder)])


@pytest.mark.parametrize("backend", KERNELS)
def test_smoke_calls_every_op(backend: str, capsys: pytest.CaptureFixture) -> None:
    assert smoke.main(backend, "cpu") == 0
    printed = capsys.readouterr().out
    assert printed.count(": ok, ") == len(smoke.CALLS)


@needs_cpp
def test_smoke_finds_a_wrong_result_and_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Of one call on one backend, and an op that nobody calls."""
    count, call = smoke.CALLS["bernoulli"]

    def wrong(logits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return call(logits, x) * (1 if current_backend("cpu") == "eager" else 1 + 1e-4)

    monkeypatch.setattr(smoke, "CALLS", {"bernoulli": (count, wrong), "categorical": smoke.CALLS["categorical"]})
    assert smoke.main("cpp", "cpu") == 1
    printed = capsys.readouterr().out
    assert "cpp bernoulli: FAILED ValueError" in printed
    assert "cpp categorical: ok" in printed
    assert re.search("never called: .*latent_forward", printed)


@needs_cpp
def test_stage_smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_stage("smoke", tmp_path, monkeypatch) == 0
    text = lines(tmp_path, "smoke")
    assert torch.__version__ in text[0]
    assert "cpp: available" in text
    assert text[-1].startswith("smoke: passed in ")


def test_a_stage_demands_what_it_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that was not built, as optional extensions are left out, is a failure."""
    monkeypatch.setattr(gpu_check.Stage, "_states", lambda stage: {"cpp": "_cpp.so was not built"})
    for name in ("smoke", "required", "cuda", "triton", "timings", "more-timings", "rest"):
        monkeypatch.setattr(gpu_check.Stage, "run", lambda *_, **__: True)
        assert run_stage(name, tmp_path, monkeypatch) == 1
        assert lines(tmp_path, name)[-1].startswith(f"{name}: FAILED")
    assert "cpp: _cpp.so was not built" in lines(tmp_path, "required")


def test_a_library_that_does_not_load_is_built_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter(
        [{"cuda": "_cuda.so does not load", "triton": "available"}, dict.fromkeys(("cuda", "triton"), "available")]
    )
    ran = []
    monkeypatch.setattr(gpu_check.Stage, "_states", lambda stage: next(states))
    monkeypatch.setattr(gpu_check.Stage, "run", lambda stage, *command, **env: not ran.append((command, env)))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert gpu_check.Stage("smoke", "cuda", tmp_path).demand("cuda", "triton")
    ((command, environment),) = ran
    assert {"setup.py", "build_ext", "--inplace", "--force"} <= set(command)
    assert environment["TORCH_CUDA_ARCH_LIST"] == "9.0"
    assert environment["VAE_KERNELS_BUILD_CUDA"] == "1"


def test_without_a_gpu_nothing_passes(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu_check.main(["smoke", "--out", str(tmp_path)]) == 1


def test_a_stage_that_takes_too_long_is_killed_and_keeps_what_it_wrote(tmp_path: Path) -> None:
    """The processes that it started too."""
    code = "import subprocess, time; print('begun'); subprocess.Popen(['sleep', '60']); time.sleep(60)"
    began = time.monotonic()
    stage = gpu_check.Stage("smoke", "cpu", tmp_path, limit=3)
    assert not stage.python("-c", code)
    assert time.monotonic() - began < 20
    assert "begun" in lines(tmp_path, "smoke")
    assert "FAILED: killed; the stage's time was over" in lines(tmp_path, "smoke")


def test_every_stage_has_a_command_in_the_docs() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert re.findall(r"benchmarks\.gpu_check ([a-z-]+) --out", page) == list(gpu_check.STAGES)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^GPU_STAGES := (.*)$", makefile, re.MULTILINE)[1].split() == list(gpu_check.STAGES)


BARE = """
import sys
for name in ("matplotlib", "tqdm"):
    sys.modules[name] = None
from benchmarks.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_timings_need_no_package_for_pictures_and_bars(tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--suite", "host", "--only", "latent 1×1", "--rounds", "1", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", BARE, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no pictures: there is no matplotlib" in done.stdout
    assert {row.op for row in results.read(tmp_path / "results.csv")} == {"latent"}


@needs_cpp
def test_stage_required(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small shape: rows are written, and what is required is reported."""
    assert run_stage("required", tmp_path, monkeypatch, REQUIRED=("latent 128×20",)) == 0
    rows = results.read(tmp_path / "required" / "results.csv")
    assert {row.shape for row in rows} == {"128×20"}
    assert {row.dtype for row in rows} == {"float32", "bfloat16"}
    assert any("latent | float32 |" in line for line in lines(tmp_path, "required"))


def test_shapes_are_chosen_by_words() -> None:
    """128×20 is not 128×2000, nor 128×20000."""
    chosen = Plan("cuda", False, gpu_check.REQUIRED, Effort())
    names = [cell.case.name for cell in ops(chosen) if chosen.wants(cell.case.name)]
    shapes = {name.split()[1] for name in names}
    assert shapes == {"4096×16384", "128×20"}
    assert len(names) == 2 * len(cases.LARGE_OPS) + 2


def test_required_cases_come_first_on_a_gpu() -> None:
    plan = Plan("cuda", False, (), Effort())
    first = [cell.case.name for cell in ops(plan)][: 2 * len(cases.LARGE_OPS) + 2]
    wanted = Plan("cuda", False, gpu_check.REQUIRED, Effort())
    assert all(wanted.wants(name) for name in first)


def test_all_timed_shapes_are_shapes_of_cases() -> None:
    known = {name for case in [*cases.cases("cuda", False), *cases.HOST_CASES] for name in case.name.split()}
    assert {*gpu_check.TIMED, *gpu_check.TIMED_NEXT} <= known


def test_checking_on_a_gpu_waits_for_it_a_few_times() -> None:
    assert 2**26 / checking._CHUNK["cuda"] <= 4


# Runs what follows the options, and tells what it was given.
FAKE_SANITIZER = """#!{python}
import json, os, subprocess, sys
command = sys.argv[sys.argv.index({python!r}):] if {python!r} in sys.argv else []
with open({record!r}, "a") as file:
    print(json.dumps([sys.argv[1:], dict(os.environ)]), file=file)
sys.exit(subprocess.run(command).returncode if command else 0)
"""


@needs_cpp
def test_stage_memcheck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program runs before, by several processes that share its calls, and then within the tool."""
    record, program = tmp_path / "record", tmp_path / "bin" / "compute-sanitizer"
    program.parent.mkdir()
    program.write_text(FAKE_SANITIZER.format(python=sys.executable, record=str(record)))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    assert run_stage("memcheck", tmp_path, monkeypatch, COMPILERS=2) == 0
    ((arguments, environment),) = map(json.loads, record.read_text().splitlines())
    assert arguments[:4] == ["--tool", "memcheck", "--error-exitcode", "9"]
    assert arguments[-3:] == [sys.executable, str(ROOT / "python_tests" / "short_gpu_run.py"), "cpu"]
    assert "PYTORCH_NO_CUDA_MEMORY_CACHING" in environment
    calls = [int(line.split()[1]) for line in lines(tmp_path, "memcheck") if re.fullmatch(r"cpp: \d+ calls", line)]
    assert calls == [22, 22, 44]


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck"])
def test_each_tool_checks_our_kernels(tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr(shutil, "which", lambda name, **_: name)
    monkeypatch.setattr(gpu_check.Stage, "demand", lambda *_: True)
    monkeypatch.setattr(gpu_check.Stage, "run", lambda stage, *command, **_: not ran.append(command))
    assert run_stage(tool, tmp_path, monkeypatch) == 0
    _, command = ran
    assert command[:3] == ("compute-sanitizer", "--tool", tool)
    assert {f"kns={name}" for name in gpu_check.KERNEL_NAMES} <= set(command)


def test_without_the_sanitizer_nothing_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, **_: None)
    assert run_stage("memcheck", tmp_path, monkeypatch) == 1
    assert "FAILED: there is no compute-sanitizer" in lines(tmp_path, "memcheck")


def test_the_sanitizer_knows_our_kernels_by_their_names() -> None:
    """Each is met by one of the filters."""
    cuda = [path.read_text() for path in (ROOT / "csrc" / "cuda").glob("*.*")]
    names = [name for text in cuda for name in re.findall(r"__global__ void[^;{]*?(\w+_kernel)\(", text)]
    assert len(names) == sum(text.count("__global__ void") for text in cuda)
    triton = [path.read_text() for path in (ROOT / "vae_kernels" / "triton").glob("*.py")]
    names += [name for text in triton for name in re.findall(r"^def (\w+_kernel)\(", text, re.MULTILINE)]
    assert len(names) > 10
    assert [n for n in names if not any(part in n for part in gpu_check.KERNEL_NAMES)] == []


@pytest.fixture
def few_tests(tmp_path: Path) -> Path:
    """Tests of a backend, of none, slow and around ones; the last one would end the run."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_few.py").write_text(
        "import os, pytest\n"
        "both = pytest.mark.parametrize('backend', ['cuda', 'triton', 'eager'])\n"
        "@both\ndef test_good(backend): pass\n"
        "@both\n@pytest.mark.around\ndef test_around(backend): pass\n"
        "@both\n@pytest.mark.slow\ndef test_slow(backend): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "def test_kill(): os._exit(9)\n"
    )
    (tmp_path / "tests" / "conftest.py").write_text(
        "def pytest_configure(config):\n    for name in ('slow', 'around'): config.addinivalue_line('markers', name)\n"
    )
    return tmp_path / "tests"


def run_part(part: str, tests: Path, out: Path, *options: str) -> tuple[int, str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "python_tests")])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "gpu_part", "-p", "no:cacheprovider", "--part", part]
    done = subprocess.run(
        [*command, "--outcomes", out, *options, "--rootdir", tests, tests], env=environment, capture_output=True
    )
    return done.returncode, (out / f"{part}-outcomes.txt").read_text()


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("cuda", ["test_good[cuda]", "test_around[cuda]"]),
        ("triton", ["test_good[triton]"]),
        ("slow", ["test_slow[cuda]", "test_slow[triton]", "test_slow[eager]"]),
    ],
)
def test_parts(part: str, names: list[str], few_tests: Path, tmp_path: Path) -> None:
    code, outcomes = run_part(part, few_tests, tmp_path)
    assert code == 0
    assert [line.rpartition("::")[2] for line in outcomes.splitlines()[:-1]] == names
    assert outcomes.splitlines()[-1] == f"{len(names)} passed"


def test_outcomes_outlive_the_process(few_tests: Path, tmp_path: Path) -> None:
    """What was known when it was killed is in the files."""
    code, outcomes = run_part("rest", few_tests, tmp_path)
    assert code == 9
    assert [line.split()[0] for line in outcomes.splitlines()] == ["passed", "passed", "failed"]
    assert "assert 1 == 2" in (tmp_path / "rest-failures.txt").read_text()


def test_a_worker_that_met_an_error_of_cuda_is_replaced(tmp_path: Path) -> None:
    """No other test fails for it."""
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_sticky.py").write_text(
        "import pytest\n"
        "broken = []\n"
        "@pytest.mark.parametrize('backend', ['cuda'] * 6)\n"
        "def test_one(backend, request):\n"
        "    if request.node.name == 'test_one[cuda1]': broken.append(1)\n"
        "    if broken: raise RuntimeError('CUDA error: an illegal memory access was encountered')\n"
    )
    pytest.importorskip("xdist")
    code, outcomes = run_part("cuda", tests, tmp_path, "--numprocesses", "1")
    assert code == 1
    found = {line.split()[2]: line.split()[0] for line in outcomes.splitlines()[:-1]}
    assert [name.rpartition("[")[2] for name, outcome in found.items() if outcome == "failed"] == ["cuda1]"]
    assert len(found) == 6


@needs_cpp
def test_a_correctness_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it runs for a backend, with a few of the tests."""
    monkeypatch.setattr(gpu_check, "TESTS", ROOT / "python_tests")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k float16_with_logvar python_tests/test_accuracy.py")
    assert run_stage("cuda", tmp_path, monkeypatch) == 0
    outcomes = (tmp_path / "cpp-outcomes.txt").read_text().splitlines()
    assert outcomes[0].split()[0] == "passed"
    assert "cpp" in outcomes[0]
    assert outcomes[-1] == "1 passed"
