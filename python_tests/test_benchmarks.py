"""The benchmarks measure what they say: stated bytes, right values before times, one table, noise told from change."""

import csv
import math
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import (
    compare,
    gradient_variance,
    machine,
    markdown,
    memory,
    profile,
    required,
    results,
    suites,
    timing,
    training,
)
from benchmarks.cases import MODES, OPS, Case, cases
from benchmarks.contenders import Calls, Contender, calls, contenders, copy_calls, named
from benchmarks.results import Row

ROOT = Path(__file__).resolve().parent.parent

COLUMNS = (
    "suite,op,contender,mode,dtype,shape,threads,status,samples,p20_us,median_us,p80_us,ideal_bytes,gb_per_s,"
    "fraction_of_copy,host_us,saved_bytes,peak_bytes,first_call_ms,device,versions,date,commit"
)

# A run of the command with neither triton nor a C++ compiler.
BARE_RUN = """
import sys
sys.modules["triton"] = None
from benchmarks.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def bare_run(tmp_path_factory) -> tuple[str, Path]:
    """What a small run without triton and compiler printed, and its folder."""
    folder = tmp_path_factory.mktemp("run")
    environment = os.environ | {"CXX": "/nonexistent", "TORCHINDUCTOR_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    arguments = [
        "--device",
        "cpu",
        "--suite",
        "ops",
        "host",
        "training",
        "--only",
        "latent 128×20 float32",
        "1×1",
        "mlp",
    ]
    command = [sys.executable, "-c", BARE_RUN, *arguments, "--rounds", "2", "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, folder


# Multiples of N: (forward, backward), from the table of the ideal traffic of each op.
@pytest.mark.parametrize(
    ("op", "forward", "backward"),
    [
        ("latent", 3, 5),
        ("latent-packed", 3, 5),
        ("latent-prior", 5, 9),
        ("bernoulli", 2, 3),
        ("gaussian", 3, 5),
        ("gaussian-fixed", 2, 3),
    ],
)
def test_ideal_bytes(op: str, forward: int, backward: int) -> None:
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        case = Case(op, (4, 6, 5), dtype, "")
        assert [case.ideal_bytes(mode) / (120 * size) for mode in MODES] == [forward, backward, forward + backward]


@pytest.mark.parametrize(
    ("op", "parameters"), [("gaussian-scalar", 1), ("gaussian-column", 30), ("negative-binomial", 30)]
)
def test_ideal_bytes_with_a_shared_parameter(op: str, parameters: int) -> None:
    """The parameter is float32 beside bfloat16; it is read forward, read and its gradient written backward."""
    case = Case(op, (4, 6, 5), "bfloat16", "")
    assert case.ideal_bytes("forward") == 2 * 120 * 2 + parameters * 4
    assert case.ideal_bytes("backward") == 3 * 120 * 2 + 2 * parameters * 4


def test_ideal_bytes_of_classes() -> None:
    """An int64 for each position."""
    case = Case("categorical", (4, 6, 5), "bfloat16", "")
    assert [case.ideal_bytes(mode) for mode in MODES] == [120 * 2 + 24 * 8, 2 * 120 * 2 + 24 * 8, 3 * 240 + 2 * 192]


def small_case(op: str, shape: tuple[int, ...], dtype: str) -> Case:
    """Of a shape that the op can have."""
    shape = (2, 3, 32, 32) if op == "latent-hierarchy" else (OPS[op].num_samples or shape[0], *shape[1:])
    return Case(op, shape, dtype, "")


@pytest.mark.parametrize("op", OPS)
def test_stated_tensors_are_those_of_the_call(op: str) -> None:
    """The sizes that are stated are those of the tensors that eager reads and returns."""
    case = small_case(op, (4, 6, 5), "bfloat16")
    tensors = case.inputs("cpu")
    passes = calls(named("eager").build(op), case, tensors)
    outputs = passes.forward()
    gradients = passes.backward(outputs)
    [(reads, _)], [(_, grads)] = case.moves("forward"), case.moves("backward")
    assert reads == [t.nbytes for t in tensors.values()]
    assert grads == [t.nbytes for t in gradients]
    written = [t.nbytes for name, t in zip(OPS[op].outputs, outputs, strict=True) if name[0] == "z"]
    assert case.moves("forward")[0][1] == written


def test_copy_moves_the_stated_bytes() -> None:
    case = Case("latent", (16, 64), "float32", "")
    passes = copy_calls(case, "cpu")
    n = 16 * 64 * 4
    written = [t.nbytes for t in passes.forward()[:-1]], [t.nbytes for t in passes.backward(())[:-1]]
    assert written == ([n], [n, n])
    assert passes.forward()[-1].item() == n // 8  # the sum of the ones in the N words read beyond those copied


@pytest.mark.parametrize(("op", "dtype"), [(op, dtype) for op in OPS for dtype in OPS[op].dtypes])
def test_right_contenders_pass(op: str, dtype: str) -> None:
    case = small_case(op, (37, 6, 50), dtype)
    competing = [c for c in contenders("cpu")[0] if c.name != "compile"]
    assert {"eager", "distributions"} <= {c.name for c in competing}
    functions = {c.name: c.build(op) for c in competing}
    _, status = suites.prepare(competing, functions, case, case.inputs("cpu"))
    assert set(status.values()) == {"ok"}, status


def _log_std_for_logvar(mu, logvar):
    return named("eager").build("latent")(mu, 2 * logvar)


def _noise_too_small(mu, logvar):
    z, kl = named("eager").build("latent")(mu, logvar)
    return mu + 0.9 * (z - mu), kl


def _half_a_gradient(mu, logvar):
    z, kl = named("eager").build("latent")(mu, logvar)
    return z, kl.detach() + 0.5 * (kl - kl.detach())


def _mean_for_sum(mu, logvar):
    z, kl = named("eager").build("latent")(mu, logvar)
    return z, kl / mu.shape[1]


def _one_nan(mu, logvar):
    z, kl = named("eager").build("latent")(mu, logvar)
    return z, torch.where(torch.arange(len(kl)) == 7, math.nan, kl)


def _float16_inside(mu, logvar):
    z, kl = named("eager").build("latent")(mu.half(), logvar.half())
    return z.float(), kl.float()


@pytest.mark.parametrize(
    "wrong", [_log_std_for_logvar, _noise_too_small, _half_a_gradient, _mean_for_sum, _one_nan, _float16_inside]
)
def test_wrong_results_are_reported_and_not_timed(wrong) -> None:
    case = Case("latent", (64, 100), "float32", "")
    competing = [Contender("wrong", lambda op: wrong), named("eager")]
    functions = {c.name: c.build("latent") for c in competing}
    entrants, status = suites.prepare(competing, functions, case, case.inputs("cpu"))
    assert status["wrong"].startswith("wrong ")
    assert status["eager"] == "ok"
    assert set(entrants) == {"eager"}


def test_kernels_are_held_to_eager() -> None:
    """An error that a baseline may make, a kernel may not: 1e-5 in one gradient."""
    case = Case("gaussian-fixed", (64, 100), "float32", "")

    def slightly_off(mean, x):
        (log_px,) = named("eager").build("gaussian-fixed")(mean, x)
        return (log_px + 1e-5 * (mean - mean.detach()).flatten(1).sum(1),)

    competing = [named("eager"), Contender("cpp", lambda op: None, backend="eager"), Contender("base", lambda op: None)]
    functions = {"eager": named("eager").build("gaussian-fixed"), "cpp": slightly_off, "base": slightly_off}
    _, status = suites.prepare(competing, functions, case, case.inputs("cpu"))
    assert status["cpp"].startswith("wrong grad_mean")
    assert status["base"] == "ok"


def test_contender_that_raises_is_reported() -> None:
    def broken(mu, logvar):
        raise RuntimeError("no such kernel")

    case = Case("latent", (4, 5), "float32", "")
    competing = [named("eager"), Contender("broken", lambda op: broken)]
    functions = {"eager": named("eager").build("latent"), "broken": broken}
    _, status = suites.prepare(competing, functions, case, case.inputs("cpu"))
    assert status == {"eager": "ok", "broken": "failed RuntimeError: no such kernel"}


def test_backward_is_timed_without_forward() -> None:
    passes = Calls(lambda: time.sleep(0.1), lambda outputs: time.sleep(0.01))
    assert 0.01 <= min(timing.sampler(passes, "backward", "cpu", 1)()) < 0.1
    assert min(timing.sampler(passes, "both", "cpu", 1)()) >= 0.11


def test_percentiles() -> None:
    assert timing.percentiles([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == pytest.approx((2.0, 3.5, 5.0, 6))


def test_contenders_alternate() -> None:
    order = []
    samplers = {name: lambda name=name: order.append(name) or [1.0] for name in "abc"}
    found = timing.alternate(samplers, timing.Effort(rounds=4, at_least=4, seconds=0))
    assert all(set(order[k : k + 3]) == set("abc") for k in range(0, 12, 3))
    assert {name: p.samples for name, p in found.items()} == dict.fromkeys("abc", 4)


def test_saved_and_peak_bytes() -> None:
    n = 32 * 100 * 4
    x = torch.zeros(32, 100, requires_grad=True)
    # y = exp(x) is an intermediate that its own gradient and the one of sin keep; cos(y) and the product are transient.
    passes = Calls(lambda: (x.exp().sin().sum(),), lambda outputs: torch.autograd.grad(outputs, x, torch.ones(())))
    assert memory.saved_bytes(passes, [x]) == n
    assert 2 * n <= memory.peak_bytes(passes, "cpu") < 5 * n


@pytest.mark.parametrize("backend", [c.name for c in contenders("cpu")[0] if c.backend])
def test_kernels_save_the_seed_only(backend: str) -> None:
    case = Case("latent", (32, 100), "float32", "")
    tensors = case.inputs("cpu")
    with named(backend).chosen():
        assert memory.saved_bytes(calls(named(backend).build("latent"), case, tensors), list(tensors.values())) == 8


def test_csv_keeps_what_is_written(tmp_path: Path) -> None:
    rows = [
        _row("cpp", 12.5, ideal_bytes=123456789012, fraction_of_copy=0.75),
        Row("ops", "latent", "eager", "both", "float32", "128×20", 2, status='wrong kl: 3 ulp off, "4", allowed'),
    ]
    with results.Table(tmp_path / "a.csv") as table:
        table.add(rows)
        assert results.read(tmp_path / "a.csv") == rows  # before the run ends
    assert (tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()[0] == COLUMNS
    assert results.read(tmp_path / "a.csv") == rows
    (tmp_path / "b.csv").write_text("op,time\nlatent,3\n")
    with pytest.raises(ValueError, match="no table of results"):
        results.read(tmp_path / "b.csv")


def _row(contender: str, median: float, shape: str = "128×20", spread: float = 0.02, **other) -> Row:
    low, high = median * (1 - spread / 2), median * (1 + spread / 2)
    figures = {"samples": 9, "p20_us": low, "median_us": median, "p80_us": high} | other
    return Row("ops", "latent", contender, "both", "float32", shape, 2, device="a CPU", versions="torch 2", **figures)


def _runs(*, kernel: float, spread: float = 0.02) -> tuple[list[Row], list[Row]]:
    """Two runs of 40 cells of eager, that moved by -4 … 4 %, and one of a kernel, that moved by the factor `kernel`."""
    old = [_row("eager", 100.0, f"{k}×20") for k in range(40)]
    new = [_row("eager", 100.0 * (1 + 0.002 * (k - 20)), f"{k}×20") for k in range(40)]
    return [*old, _row("cpp", 10.0, spread=spread)], [*new, _row("cpp", 10.0 * kernel, spread=spread)]


@pytest.mark.parametrize(
    ("kernel", "spread", "changed"),
    [
        (1.03, 0.02, False),  # within what the baselines moved
        (1.10, 0.02, True),
        (0.90, 0.02, True),
        (1.10, 0.20, False),  # within its own spread
    ],
)
def test_compare_tells_change_from_noise(kernel: float, spread: float, changed: bool) -> None:
    old, new = _runs(kernel=kernel, spread=spread)
    comparison = compare.compare(old, new)
    assert 0.03 < comparison.drift < 0.045
    assert [move.new.contender for move in comparison.changed] == ["cpp"] * changed
    assert f"{int(changed)} of 1 other cells moved" in compare.report(old, new)


def test_compare_reports_what_is_missing_or_wrong() -> None:
    old, new = _runs(kernel=1.0)
    new[-1] = Row("ops", "latent", "cpp", "both", "float32", "128×20", 2, "wrong kl: …", device="a CPU")
    assert any("ok → wrong kl" in text for text in compare.compare(old, new).other)
    assert any("only in the old run" in text for text in compare.compare(old, new[:-1]).other)


def test_compare_refuses_other_devices() -> None:
    old, new = _runs(kernel=1.0)
    new[0].device = "another CPU"
    with pytest.raises(ValueError, match="one device"):
        compare.compare(old, new)


def test_other_versions_are_no_controls() -> None:
    """Baselines under another torch may have changed themselves."""
    old, new = _runs(kernel=1.03)
    for row in new:
        row.versions = "torch 3"
    comparison = compare.compare(old, new)
    assert (comparison.drift, len(comparison.moves)) == (0, 41)


def test_required_ratios_are_judged() -> None:
    rows = [_row("cpp", 10.0), _row("eager", 26.0), _row("compile", 24.0)]
    found = {(r.op, r.dtype, r.shape, r.over): r for r in required.requirements(rows)}
    assert found["latent", "float32", (128, 20), "eager"].verdict == "met"
    assert found["latent", "float32", (128, 20), "compile"].verdict == "missed"
    assert found["gaussian", "float32", (128, 784), "eager"].verdict == "not measured"
    assert "1 met, 1 missed, 42 not measured" in required.report(rows)


def test_profile_tells_whose_the_samples_are() -> None:
    report = """# Overhead  Shared Object  Symbol
 40.00% \t_cpp.so              \t[.] vk::cpu::Avx512::noise<float>
 10.00% \t_cpp.so              \t[.] void vk::cpu::Avx512::run<vk::cpu::(anonymous namespace)::PlainForward<float> >
 15.50% \tlibtorch_cpu.so      \t[.] at::detail::empty_generic(c10::ArrayRef<long>)
 4.50%  \tlibtorch_python.so   \t[.] THPVariable_clear
 12.00% \tlibpython3.11.so.1.0 \t[.] _PyEval_EvalFrameDefault
 8.00%  \t[kernel.kallsyms]    \t[k] clear_page_erms
 5.00%  \tlibgomp.so.1         \t[.] 0x000000000001de62
 5.00%  \tlibc.so.6            \t[.] malloc
"""
    parts, functions = profile.shares(report)
    expected = {"kernels": 50, "torch": 20, "Python": 12, "system": 8, "waiting": 5, "C library": 5}
    assert parts == expected
    assert functions == {"noise": 40, "PlainForward": 10}
    cells = profile.line("a case", 2.25, 91.4, report).split(" | ")
    assert cells == ["| a case", "91", "2.2", "50", "5", "8", "20", "12", "5", "noise 40, PlainForward 10 |"]


def test_cases_far_from_their_floor() -> None:
    rows = [_row("cpp", 10, "4×4", fraction_of_copy=0.5), _row("cpp", 10, "5×5", fraction_of_copy=0.8)]
    assert profile.far([*rows, _row("eager", 10, "4×4", fraction_of_copy=0.1)]) == {"latent 4×4 float32": 2.0}


def test_required_ratios_on_a_gpu() -> None:
    rows = [
        _row("cuda", 100.0, "4096×16384", fraction_of_copy=0.9, host_us=8.0),
        _row("compile", 115.0, "4096×16384", host_us=20.0),
        _row("copy", 90.0, "4096×16384", host_us=9.0),
        _row("cuda", 5.0, "128×20", host_us=8.0),
        _row("eager", 50.0, "128×20", host_us=28.0),
    ]
    found = {(r.shape, r.over): r for r in required.requirements(rows) if r.op == "latent" and r.dtype == "float32"}
    assert found[(4096, 16384), "copy"].verdict == "met"
    assert found[(4096, 16384), "compile"].verdict == "missed"
    assert found[(128, 20), "eager, host time"].verdict == "met"


def test_default_run_has_every_required_case() -> None:
    default = {(case.op, case.dtype, case.shape) for case in cases("cpu", everything=False)}
    assert default >= {(*key, shape) for key, shapes in required.CPU.items() for shape in shapes}
    on_gpu = {(case.op, case.dtype, case.shape) for case in cases("cuda", everything=False)}
    assert on_gpu >= default | {(op, "bfloat16", required.GPU_SHAPE) for op in required.GPU_COMPILE}


def test_scaling_spans_six_decades() -> None:
    sizes = [math.prod(case.shape) for case in suites.SCALING_CASES if case.op == "latent"]
    assert math.log10(max(sizes) / min(sizes)) > 6


def test_runs_without_triton_and_compiler(bare_run: tuple[str, Path]) -> None:
    printed, folder = bare_run
    assert re.search(r"^left out: triton: ", printed, re.MULTILINE)
    assert re.search(r"^left out: compile: .*[Cc]ompiler", printed, re.MULTILINE)
    rows = results.read(folder / "results.csv")
    assert {row.suite for row in rows} == {"ops", "host", "training"}
    assert all(row.status == "ok" and 0 < row.p20_us <= row.median_us <= row.p80_us for row in rows)
    assert {row.contender for row in rows} >= {"copy", "eager", "distributions"}
    assert not {row.contender for row in rows} & {"triton", "compile"}
    assert (folder / "bars-float32.png").read_bytes().startswith(b"\x89PNG")


def test_figures_of_a_run_fit_together(bare_run: tuple[str, Path]) -> None:
    rows = [row for row in results.read(bare_run[1] / "results.csv") if row.suite == "ops"]
    copies = {row.mode: row for row in rows if row.contender == "copy"}
    for row in rows:
        assert row.ideal_bytes == {"forward": 3, "backward": 5, "both": 8}[row.mode] * 128 * 20 * 4
        assert row.gb_per_s == pytest.approx(row.ideal_bytes / row.median_us * 1e-3, rel=1e-4)
        assert row.fraction_of_copy == pytest.approx(copies[row.mode].median_us / row.median_us, rel=1e-4)
    saved = {row.contender: row.saved_bytes for row in rows if row.mode == "both"}
    assert saved["eager"] >= 2 * 128 * 20 * 4


def test_tables_of_a_run(bare_run: tuple[str, Path]) -> None:
    rows = results.read(bare_run[1] / "results.csv")
    text = markdown.report(rows, ["ops", "host", "training", "memory"])
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert any(line.startswith("| latent | 128×20 | float32 | ") for line in tables)
    widths = [[line.count("|") for line in block.splitlines() if line.startswith("|")] for block in text.split("\n\n")]
    assert all(len(set(width)) <= 1 for width in widths)


def test_names_of_the_machine_hold_no_host_name() -> None:
    name = machine.folder_name("cpu")
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*-cores", name)
    assert socket.gethostname() not in (name + machine.device_name("cpu"))


@pytest.mark.parametrize("case", [t for t in training.TRAININGS if t.shape in ((128, 784), (128, 2000))], ids=str)
def test_training_terms_are_the_same_model(case: training.Training) -> None:
    """The kernels' terms and eager's differ by noise alone; a different model is found out."""
    model, x = case.inputs("cpu")
    expected = training._terms64(case, "cpu")
    assert training._wrong(case.kernel_terms(model, x), expected) == ""
    assert training._wrong(case.eager_terms(model, x), expected) == ""
    log_px, kl = case.eager_terms(model, x)
    assert training._wrong((log_px, 1.01 * kl), expected).startswith("wrong kl")
    assert training._wrong((1.01 * log_px, kl), expected).startswith("wrong log_px")


def test_gradient_variance(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """All estimates are of one gradient; the score function's is noisier, and more samples help each."""
    torch.set_num_threads(1)
    gradient_variance.main(["--epochs", "1", "--samples", "2", "8", "--repeats", "40", "--out", str(tmp_path)])
    with (tmp_path / "gradient_variance.csv").open() as file:
        lines = {(line["estimator"], int(line["samples"])): line for line in csv.DictReader(file)}
    variance = {key: float(line["variance"]) for key, line in lines.items()}
    for name in gradient_variance.ESTIMATORS:
        assert variance[name, 8] < variance[name, 2]
    plain, baseline, ours = (
        variance[name, 8] for name in ("score function", "score function with baseline", "reparameterised")
    )
    assert plain > baseline > ours
    distances = [float(number) for number in re.findall(r"by ([0-9.]+) of what", capsys.readouterr().out)]
    assert len(distances) == 2
    assert max(distances) < 1.5
    assert (tmp_path / "gradient_variance.png").read_bytes().startswith(b"\x89PNG")
