"""Training end to end: the same numbers again, resumed or not, and on every backend."""

import json
import math
import signal

import numpy as np
import pytest
import safetensors.torch
import torch
from fresh_process import python
from PIL import Image

import vae_kernels as vk
from vae_kernels import extras, sweep, train
from vae_kernels.models import MLPVAE, ConvVAE
from vae_kernels.noise import normal_like
from vae_kernels.training import checkpoint, data, pictures, report
from vae_kernels.training.history import HISTORY, Row
from vae_kernels.training.settings import parse
from vae_kernels.training.trainer import Trainer

TINY = ["--hidden", "16", "--latent-dim", "3", "--batch-size", "300", "--device", "cpu"]
# What torch.testing.assert_close grants float32, of which the history's means are made.
FLOAT32 = {"rtol": 1.3e-6, "atol": 1e-5}
pytestmark = pytest.mark.usefixtures("undrawn")

KERNELS = [name for name, state in vk.backends()["cpu"].items() if name != "eager" and state == "available"]


def run(out, *arguments):
    """The exit status, and the history as text."""
    status = train.main([*TINY, "--out", str(out), *arguments])
    return status, (out / HISTORY).read_text()


def terms(history):
    return np.array([[float(field) for field in line.split(",")] for line in history.splitlines()[1:]])


def weights(out):
    return checkpoint.load_model(out).state_dict()


def same_weights(a, b):
    return all(torch.equal(value, weights(b)[name]) for name, value in weights(a).items())


@pytest.mark.drawn
def test_a_run_leaves_history_checkpoint_and_pictures(tmp_path, capsys):
    status, history = run(tmp_path, "--epochs", "3", "--latent-dim", "2")
    assert status == 0
    names = ["reconstructions", "samples", "learning_curve", "kl_per_dimension", "traversals", "manifold", "means"]
    printed = capsys.readouterr().out
    for name in names:
        path = tmp_path / f"{name}.png"
        assert str(path) in printed
        with Image.open(path) as picture:
            assert np.asarray(picture.convert("L")).std() > 10  # not blank
    assert history.splitlines()[0].split(",") == list(Row._fields)
    table = terms(history)
    assert table[:, 0].tolist() == [1, 2, 3]
    np.testing.assert_allclose(table[:, 1], table[:, 2] - table[:, 3], **FLOAT32)
    np.testing.assert_allclose(table[:, 4], table[:, 5] - table[:, 6], **FLOAT32)
    assert table[2, 4] > table[0, 4]
    settings = json.loads((tmp_path / checkpoint.SETTINGS).read_text())
    assert settings["training"]["latent_dim"] == settings["model"]["latent_dim"] == 2


def test_the_history_is_the_elbo_of_the_model(tmp_path):
    """Held out: from the saved model with plain torch.distributions. Training: from one step, before any change."""
    _, history = run(tmp_path, "--epochs", "1", "--lr", "0", "--batch-size", "2000", "--backend", "eager")
    model, source = checkpoint.load_model(tmp_path).double(), data.digits()

    def elbo(images, seed):
        x = images.double() / 16
        mu, logvar = model.encode(x)
        q = torch.distributions.Normal(mu, (logvar / 2).exp())
        z = mu + q.scale * normal_like(mu, seed, 1)
        (logits,) = model.decode(z)
        log_px = torch.distributions.Bernoulli(logits=logits, validate_args=False).log_prob(x).flatten(1).sum(1)
        kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1)
        return [term.mean().item() for term in (log_px - kl, log_px, kl)]

    trainer = Trainer(parse([*TINY, "--batch-size", "2000"])[0], source)
    expected = [*elbo(source.train[trainer.order], trainer.seeds), *elbo(source.held_out, torch.tensor([0]))]
    np.testing.assert_allclose(terms(history)[0, 1:], expected, **FLOAT32)


@pytest.mark.parametrize("extra", [["--model", "conv"], ["--dtype", "bfloat16"], ["--likelihood", "gaussian-learned"]])
def test_same_seed_same_numbers(tmp_path, extra):
    histories = [run(tmp_path / name, "--epochs", "2", *extra)[1] for name in "ab"]
    assert histories[0] == histories[1]
    assert same_weights(tmp_path / "a", tmp_path / "b")
    _, other = run(tmp_path / "c", "--epochs", "2", "--seed", "1", *extra)
    assert other != histories[0]


def test_the_global_random_state_has_no_part_in_it(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    _, a = run(tmp_path / "a", "--epochs", "1")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert run(tmp_path / "b", "--epochs", "1")[1] == a


@pytest.mark.parametrize("steps", [1, 5, 7, 13])
def test_interrupted_and_resumed_is_as_if_nothing_had_happened(tmp_path, capsys, monkeypatch, steps):
    """Ctrl-C after some steps of five an epoch: within the first, at the end of one, within a later one."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _, expected = run(whole, "--epochs", "3")
    done, train_step = [], Trainer.train_step

    def interrupting(trainer):
        train_step(trainer)
        done.append(1)
        if len(done) == steps:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupting)
        status, history = run(parts, "--epochs", "3")
    assert status == 130 and len(done) == steps and len(terms(history)) == steps // 5
    assert "--resume" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=f"stopped after {steps // 5} of 3 epochs: continue it with --resume"):
        run(parts, "--epochs", "3")
    status, history = run(parts, "--resume")
    assert status == 0 and history == expected and same_weights(whole, parts)


@pytest.fixture
def interruptible():
    """What a shell runs in the background ignores Ctrl-C, and Python has no handler for it then."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_interrupts(interruptible):
    with pytest.raises(KeyboardInterrupt), train.Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.asked
        signal.raise_signal(signal.SIGINT)


def test_resume_may_add_epochs_but_not_change_the_model(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _, expected = run(whole, "--epochs", "3", "--lr", "0.002")
    run(parts, "--epochs", "1", "--lr", "0.002")
    for change, was in (("--latent-dim=4", "latent_dim was 3"), ("--hidden=8", r"hidden was \(16,\)")):
        with pytest.raises(SystemExit, match=f"{was} when this run began"):
            run(parts, "--resume", change)
    _, history = run(parts, "--epochs", "3", "--resume")
    assert history == expected and same_weights(whole, parts)


def test_what_rises_over_the_run_fixes_its_epochs(tmp_path):
    run(tmp_path, "--epochs", "1", "--beta-schedule", "linear")
    with pytest.raises(SystemExit, match="epochs was 1 when this run began, and beta or the capacity rises with them"):
        run(tmp_path, "--resume", "--epochs", "2")


def test_a_crash_while_saving_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    run(tmp_path, "--epochs", "1")
    before = (tmp_path / checkpoint.TENSORS).read_bytes()
    monkeypatch.setattr(extras.require("safetensors.torch"), "save_file", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, "--epochs", "2", "--resume")
    assert (tmp_path / checkpoint.TENSORS).read_bytes() == before
    monkeypatch.undo()
    _, resumed = run(tmp_path, "--resume", "--epochs", "2")
    assert resumed == run(tmp_path / "whole", "--epochs", "2")[1]


def _without(*keys: str):
    """A change of a JSON file: what lies at the end of the keys is gone."""

    def change(content: bytes) -> bytes:
        settings = json.loads(content)
        inner = settings
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        return json.dumps(settings).encode()

    return change


def _with_tensors(change):
    """A change of a dict of tensors."""

    def rewritten(content: bytes) -> bytes:
        tensors = safetensors.torch.load(content)
        return safetensors.torch.save(change(tensors))

    return rewritten


DAMAGES = {
    "cut off": (checkpoint.TENSORS, lambda content: content[: len(content) // 2]),
    "header cut off": (checkpoint.TENSORS, lambda content: content[:5]),
    "empty": (checkpoint.TENSORS, lambda content: b""),
    "overwritten": (checkpoint.TENSORS, lambda content: b"\xff" * len(content)),
    "without progress": (
        checkpoint.TENSORS,
        _with_tensors(lambda tensors: {k: v for k, v in tensors.items() if not k.startswith("progress.")}),
    ),
    "without weights": (
        checkpoint.TENSORS,
        _with_tensors(lambda tensors: {k: v for k, v in tensors.items() if not k.startswith("model.")}),
    ),
    "weights of another shape": (
        checkpoint.TENSORS,
        _with_tensors(lambda tensors: {k: v[:1] if k.startswith("model.") else v for k, v in tensors.items()}),
    ),
    "JSON cut off": (checkpoint.SETTINGS, lambda content: content[:-20]),
    "JSON empty": (checkpoint.SETTINGS, lambda content: b""),
    "not JSON": (checkpoint.SETTINGS, lambda content: b"\xff\x00"),
    "a list": (checkpoint.SETTINGS, lambda content: b"[1, 2]"),
    "without training": (checkpoint.SETTINGS, _without("training")),
    "of another version": (checkpoint.SETTINGS, lambda content: content.replace(b'"lr"', b'"learning_rate"')),
    "a word for a number": (checkpoint.SETTINGS, lambda content: content.replace(b'"epochs": 1', b'"epochs": "many"')),
    "history": (HISTORY, lambda content: content[:-5] + b"\nx,y"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_in_one_line(tmp_path, damage):
    run(tmp_path, "--epochs", "1")
    name, change = DAMAGES[damage]
    changed = change((tmp_path / name).read_bytes())
    assert changed != (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(changed)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, "--epochs", "2", "--resume")
    assert str(stopped.value).startswith(f"vae_kernels.train: {tmp_path / name} is damaged, or of another version")
    assert "\n" not in str(stopped.value)


@pytest.mark.parametrize("damage", ["cut off", "overwritten", "without weights", "JSON cut off", "a list"])
def test_a_damaged_model_is_named(tmp_path, damage):
    run(tmp_path, "--epochs", "1")
    name, change = DAMAGES[damage]
    (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    with pytest.raises(ValueError, match=f"{name} is damaged, or of another version"):
        checkpoint.load_model(tmp_path)


@pytest.mark.parametrize("backend", KERNELS)
def test_kernels_train_as_eager_does(tmp_path, backend):
    """The full model with the trainer's default settings: held-out ELBOs 1e-3 nats apart at most, in every epoch.

    Measured over 100 epochs (2300 steps) for cpp: 3e-6. Other noise gives another ELBO by far.
    """

    def held_out(name, *arguments):
        status = train.main(["--device", "cpu", "--epochs", "20", "--out", str(tmp_path / name), *arguments])
        assert status == 0
        return terms((tmp_path / name / HISTORY).read_text())[:, 4]

    expected = held_out("eager", "--backend", "eager")
    np.testing.assert_allclose(held_out("kernel", "--backend", backend), expected, rtol=0, atol=1e-3)
    assert abs(held_out("noise", "--backend", backend, "--seed", "1") - expected).max() > 1e-2


def test_beta_weighs_the_kl(tmp_path):
    kl = [terms(run(tmp_path / beta, "--epochs", "4", "--beta", beta)[1])[-1, 6] for beta in ("0", "1", "20")]
    assert kl[0] > kl[1] > kl[2]


def test_compiled_is_eager(tmp_path, monkeypatch):
    """`--compile` compiles the loss that is trained on; aot_eager stands in for inductor, which takes half a minute."""
    compile_, compiled = torch.compile, []

    def fast(function):
        compiled.append(function)
        return compile_(function, backend="aot_eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", fast)
    _, expected = run(tmp_path / "eager", "--epochs", "2")
    assert not compiled
    _, history = run(tmp_path / "compiled", "--epochs", "2", "--compile")
    assert len(compiled) == 1
    np.testing.assert_allclose(terms(history), terms(expected), rtol=0, atol=1e-3)


def test_float64_weights(tmp_path):
    run(tmp_path, "--epochs", "1", "--dtype", "float64")
    assert all(value.dtype == torch.float64 for value in weights(tmp_path).values())


@pytest.mark.drawn
def test_images_train_the_convolutional_model(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    status, history = run(
        tmp_path / "out",
        *("--data", "images", "--data-dir", str(tmp_path), "--image-size", "16"),
        *("--epochs", "1", "--latent-dim", "2", "--likelihood", "gaussian-per-element"),
    )
    assert status == 0 and np.isfinite(terms(history)).all()
    model = checkpoint.load_model(tmp_path / "out")
    assert isinstance(model, ConvVAE) and model.settings.input_shape == (3, 16, 16)
    assert (tmp_path / "out" / "means.png").exists()  # without labels


SMALL = ["--device", "cpu", "--hidden", "64", "--latent-dim", "10", "--lr", "0.003", "--epochs", "20"]


def evaluated(out, *arguments):
    """The figures of a run at its end, log p(x) with 200 samples, and its KL."""
    assert train.main([*SMALL, "--out", str(out), "--evaluate", "200", *arguments]) == 0
    kl = terms((out / HISTORY).read_text())[-1, 6]
    return json.loads((out / report.EVALUATION).read_text()) | {"kl": kl}


@pytest.fixture(scope="module")
def of_the_elbo(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw", lambda *_: [])
        return evaluated(tmp_path_factory.mktemp("elbo"))


def gain(a, b):
    """By how many of their standard errors the first run's log p(x) is above the second's."""
    return (a["log p(x)"] - b["log p(x)"]) / math.hypot(a["standard error"], b["standard error"])


def test_log_px_rises_with_the_samples_trained_on(tmp_path, of_the_elbo):
    """Burda et al. 2016, table 1: IWAE beats the VAE, and more samples fewer ones. Here 0.3 and 0.15 nats."""
    of_5, of_20 = (evaluated(tmp_path / k, "--objective", "iwae", "--num-samples", k) for k in ("5", "20"))
    assert gain(of_5, of_the_elbo) > 5 and gain(of_20, of_5) > 5


@pytest.mark.parametrize(
    "arguments",
    [
        ["--objective", "dreg"],
        ["--objective", "elbo-monte-carlo"],
        ["--objective", "elbo-path", "--num-samples", "2"],
        ["--objective", "score-function"],
        ["--beta-schedule", "linear"],
        ["--beta-schedule", "cyclical", "--beta", "0.8"],
    ],
    ids=lambda arguments: "-".join(arguments[1::2]),
)
def test_every_objective_learns(tmp_path, of_the_elbo, arguments):
    """As well as the ELBO does, within half a nat; untrained it is −44."""
    figures = evaluated(tmp_path, *arguments)
    assert figures["log p(x)"] > of_the_elbo["log p(x)"] - 0.5
    assert 0 < figures["standard error"] < 0.05


def test_free_bits_are_used(tmp_path, of_the_elbo):
    """Each dimension may cost λ for nothing: all come near that, where without they cost less together."""
    trainer = Trainer(parse([*SMALL, "--free-bits", "0.4"])[0], data.digits())
    for _ in range(20 * trainer.steps):
        trainer.train_step()
        if trainer.step == trainer.steps:
            trainer.end_epoch()
    kl = vk.kl_per_dimension(report.latents(trainer).kl)
    assert (kl > 0.3).all() and of_the_elbo["kl"] < 0.3 * 10


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_the_kl_goes_to_the_capacity(tmp_path, per):
    """Burgess et al. 2018: with a large gamma the KL is C at the end, wherever it was before."""
    _, history = run(
        tmp_path, "--epochs", "40", "--lr", "0.01", "--beta", "100", "--capacity", "3", "--capacity-per", per
    )
    kl = terms(history)[:, 3]
    assert abs(kl[-1] - 3) < 0.3 and abs(kl[19] - 1.5) < 0.3


def test_the_evaluation_is_that_of_the_model(tmp_path):
    """The saved model, asked again with other noise: log p(x) within its standard errors; bits from nats."""
    run(tmp_path, "--epochs", "3", "--likelihood", "gaussian-learned", "--evaluate", "300")
    figures = json.loads((tmp_path / report.EVALUATION).read_text())
    model, source = checkpoint.load_model(tmp_path), data.digits()
    x = source.held_out.float() / 16
    value, error = vk.log_marginal_likelihood(
        model, x, num_samples=300, chunk=100, generator=torch.Generator().manual_seed(77)
    )
    spread = math.hypot(figures["standard error"], error.square().sum().sqrt().item() / len(x))
    assert abs(value.mean().item() - figures["log p(x)"]) < 5 * spread
    assert figures["bits per dimension"] == pytest.approx(math.log2(16) - figures["log p(x)"] / 64 / math.log(2))
    mu, _ = model.encode(x)
    assert figures["active dimensions"] == (mu.var(0) > 0.01).sum()


@pytest.mark.drawn
def test_sweep_draws_rate_and_distortion(tmp_path):
    """The larger beta, the smaller the rate and the larger the distortion."""
    assert (
        sweep.main([*TINY, "--out", str(tmp_path), "--betas", "4", "0.25", "1", "--epochs", "6", "--lr", "0.01"]) == 0
    )
    lines = (tmp_path / "rate_distortion.csv").read_text().splitlines()
    assert lines[0] == "beta,rate,distortion"
    beta, rate, distortion = np.array([[float(field) for field in line.split(",")] for line in lines[1:]]).T
    assert beta.tolist() == [0.25, 1, 4]
    assert (np.diff(rate) < 0).all() and (np.diff(distortion) > 0).all()
    assert terms((tmp_path / "beta-4" / HISTORY).read_text())[-1, 6] == pytest.approx(rate[2])
    with Image.open(tmp_path / "rate_distortion.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10


def test_traversals_change_one_dimension():
    """A decoder that gives z back: rows by KL, columns from −3 to 3."""
    model = MLPVAE(3, latent_dim=3, likelihood="gaussian").double()
    model.decoder = torch.nn.Unflatten(1, (1, 3))
    mu = torch.tensor([10.0, 20.0, 30.0]).double()
    z, dimensions, values = report.traversals(model, mu, torch.tensor([0.1, 3.0, 0.2]), dimensions=2, columns=5)
    assert dimensions == [1, 2] and values == [-3, -1.5, 0, 1.5, 3]
    assert z.view(2, 5, 3)[0].tolist() == [[10, v, 30] for v in values]
    assert z.view(2, 5, 3)[1].tolist() == [[10, 20, v] for v in values]


def test_diverging_ends_with_advice(tmp_path):
    with pytest.raises(SystemExit, match=r"ELBO became .* try a lower --lr than 1000000\.0"):
        run(tmp_path, "--epochs", "3", "--lr", "1e6")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "epochs must be at least 1, got 0"),
        (["--beta", "-1"], "beta must be finite and not negative, got -1.0"),
        (["--lr", "nan"], "lr must be finite and not negative, got nan"),
        (["--num-samples", "0"], "num_samples must be at least 1, got 0"),
        (["--evaluate", "-1"], "evaluate must be at least 0, got -1"),
        (["--free-bits", "inf"], "free_bits must be finite and not negative, got inf"),
        (["--free-bits", "1", "--capacity", "1"], "at most one of free_bits and capacity"),
        (["--objective", "iwae", "--beta", "2"], "beta and beta_schedule have no meaning for the objective iwae"),
        (["--objective", "elbo-path", "--capacity", "1"], "objective must be elbo, got elbo-path"),
        (["--data", "mnist"], "'mnist' is read from a folder: name it with --data-dir"),
        (["--resume"], "no checkpoint in .*: checkpoint.json is missing"),
        (["--model", "conv", "--hidden", "4", "4", "4", "4"], "halved 4 times"),
        (["--device", "nonsense"], "nonsense"),
    ],
)
def test_refused(tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=f"vae_kernels.train: .*{message}"):
        run(tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named():
    with pytest.raises(ImportError, match=r"no_such_package is needed: pip install 'vae_kernels\[train\]'"):
        extras.require("no_such_package")


def test_importing_the_trainer_imports_nothing_heavy():
    heavy = ["triton", "matplotlib", "sklearn", "PIL", "safetensors"]
    code = f"import sys, vae_kernels.train; print([m for m in {heavy} if m in sys.modules])"
    assert python(code) == "[]"


def test_picture_grid():
    """Seven pictures of 2×3: all there, each in its place, white between and where none is."""
    images = torch.arange(7.0).view(7, 1, 1, 1).expand(7, 1, 2, 3) / 10
    grid = pictures.picture_grid(images)
    assert grid.shape == (1, 4 * 3 - 1, 2 * 4 - 1)
    for i in range(7):
        top, left = 3 * (i // 2), 4 * (i % 2)
        assert (grid[0, top : top + 2, left : left + 3] == i / 10).all()
    assert (grid[0, 2::3] == 1).all() and (grid[0, :, 3::4] == 1).all() and (grid[0, 9:, 4:] == 1).all()


def test_manifold_covers_the_prior():
    """Rows from the top are z₂ from large to small, columns z₁ from small to large, equal mass between lines."""

    model = MLPVAE(2, latent_dim=2, likelihood="gaussian").double()
    model.decoder = torch.nn.Unflatten(1, (1, 2))  # decodes z to itself
    z = report.manifold(model, per_side=5).unflatten(0, (5, 5))
    mass = torch.tensor([(1 + math.erf(v / math.sqrt(2))) / 2 for v in z[0, :, 0].tolist()])
    torch.testing.assert_close(mass, torch.linspace(0.02, 0.98, 5))
    torch.testing.assert_close(z[:, 0, 1], z[0, :, 0].flip(0))
    assert (z[..., 0] == z[0, :, 0]).all() and (z[..., 1] == z[:, :1, 1]).all()
