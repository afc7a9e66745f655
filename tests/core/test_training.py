"""Training: what it computes, when it stops, what it keeps, and what it refuses."""

import csv
import math
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import small_digits
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from spikeport.core import SpikeportError, neurons, train, training
from spikeport.core.data import ImageData, split
from spikeport.core.evaluation import evaluate, warn_where_slow
from spikeport.core.locks import alone
from spikeport.core.records import METRICS_FILE
from spikeport.core.runs import CONFIG_FILE, SAMPLES_FILE, WEIGHTS_FILE
from spikeport.core.training import CHECKPOINT_FILE


def rows(run: Path) -> list[dict[str, float]]:
    with (run / METRICS_FILE).open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_run_folder_holds_what_is_promised(tiny, tmp_path):
    run = train(tiny(), tmp_path / "run")
    files = {"config.toml", "model.json", "weights.safetensors", "metrics.csv", "layers.csv", "checkpoint.pt"}
    assert {p.name for p in run.path.iterdir()} == files
    assert len(rows(run.path)) == 2
    assert run.results["epochs"] == 2


@pytest.mark.parametrize("kind", ["cnn", "snn"])
def test_same_seed_same_result(tiny, tmp_path, kind):
    train(tiny(kind=kind, seed=5), tmp_path / "a")
    train(tiny(kind=kind, seed=5), tmp_path / "b")
    for name in (WEIGHTS_FILE, METRICS_FILE, "model.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_another_seed_another_result(tiny, tmp_path):
    train(tiny(seed=5, epochs=1), tmp_path / "a")
    train(tiny(seed=6, epochs=1), tmp_path / "b")
    assert (tmp_path / "a" / METRICS_FILE).read_bytes() != (tmp_path / "b" / METRICS_FILE).read_bytes()


@pytest.mark.parametrize("settings", [{"kind": "cnn"}, {"kind": "snn"}, {"kind": "snn", "precision": "bf16"}])
def test_training_learns_and_keeps_float32_weights(tiny, tmp_path, settings):
    run = train(tiny(epochs=8, lr=0.01, batch_size=8, width=0.25, patience=0, **settings), tmp_path / "run")
    losses = [row["train_loss"] for row in rows(run.path)]
    assert losses[-1] < 0.85 * losses[0]
    weights = load_file(run.path / WEIGHTS_FILE)
    assert {w.dtype for w in weights.values() if w.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize(("loss", "in_one"), [("cross-entropy", True), ("gradient-aware", False)])
def test_batch_norm_and_lif_train_in_one_unless_the_loss_needs_second_derivatives(
    tiny, tmp_path, monkeypatch, loss, in_one
):
    ran = []
    run = neurons.batch_norm_lif
    monkeypatch.setattr(neurons, "batch_norm_lif", lambda *arguments: ran.append(1) or run(*arguments))
    train(tiny(epochs=1, loss=loss), tmp_path / "run")
    assert bool(ran) == in_one


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_first_step_of_an_optimiser_by_hand(tiny, tmp_path, optimizer):
    config = tiny(kind="cnn", optimizer=optimizer, lr=0.01, weight_decay=0.1, epochs=1, batch_size=1000, validation=0.3)
    run = train(config, tmp_path / "run")
    data = small_digits.load()
    chosen, _ = split(len(data.train_images), config.validation)
    model = config.spec(10, data.image_shape).build(config.seed)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    logits = model(data.normalise(data.train_images[chosen]))
    nn.functional.cross_entropy(logits, data.train_labels[chosen]).backward()
    after = load_file(run.path / WEIGHTS_FILE)
    for name, p in model.named_parameters():
        gradient = p.grad + 0.1 * before[name]
        if optimizer == "adam":  # bias correction makes the first step g / (|g| + eps)
            gradient = gradient / (gradient.abs() + 1e-8)
            gradient[p.grad.abs() < 1e-6] = torch.nan  # there rounding decides the sign
        expected = before[name] - 0.01 * gradient
        known = ~expected.isnan()
        torch.testing.assert_close(after[name][known], expected[known], rtol=1e-3, atol=1e-5)


def test_momentum_carries_the_first_step_into_the_second(tiny, tmp_path):
    config = tiny(kind="cnn", optimizer="sgd", lr=0.01, momentum=0.8, epochs=2, batch_size=1000)
    run = train(config, tmp_path / "run")
    data = small_digits.load()
    chosen, _ = split(len(data.train_images), config.validation)
    model = config.spec(10, data.image_shape).build(config.seed).to(memory_format=torch.channels_last)
    velocity = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for _ in range(2):
        model.zero_grad()
        logits = model(data.normalise(data.train_images[chosen]))
        nn.functional.cross_entropy(logits, data.train_labels[chosen]).backward()
        with torch.no_grad():
            for name, p in model.named_parameters():
                velocity[name] = 0.8 * velocity[name] + p.grad
                p -= 0.01 * velocity[name]
    after = torch.load(run.path / CHECKPOINT_FILE, weights_only=True)["model"]
    for name, p in model.named_parameters():
        torch.testing.assert_close(after[name], p.detach(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("precision", "supported", "warned"), [("bf16", False, 1), ("bf16", True, 0), ("fp32", False, 0)]
)
def test_a_precision_this_processor_is_slow_in_is_told(
    monkeypatch, recwarn, tiny, tmp_path, precision, supported, warned
):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    train(tiny(epochs=1, precision=precision), tmp_path / "run")
    told = [str(w.message) for w in recwarn if w.category is RuntimeWarning]
    assert len(told) == warned
    assert all("use --precision fp32" in message for message in told)


def test_bf16_computes_otherwise_and_nearly_the_same(tiny, tmp_path):
    fp32, bf16 = (train(tiny(epochs=1, precision=p), tmp_path / p) for p in ("fp32", "bf16"))
    exact, rounded = rows(fp32.path)[0]["train_loss"], rows(bf16.path)[0]["train_loss"]
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "constant"}, [0.004] * 4),
        ({"schedule": "step", "milestones": (1, 3), "gamma": 0.5}, [0.004, 0.002, 0.002, 0.001]),
        ({"schedule": "cosine"}, [0.002 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]),
    ],
)
def test_schedules_set_the_learning_rate_of_every_epoch(tiny, tmp_path, settings, expected):
    run = train(tiny(kind="cnn", lr=0.004, epochs=4, patience=0, **settings), tmp_path / "run")
    assert [row["lr"] for row in rows(run.path)] == pytest.approx(expected)


@pytest.fixture
def judged(monkeypatch) -> Any:
    """Replaces the validation accuracies by those of a list; what is judged after that (the test set) is left."""

    def script(accuracies: list[float]) -> None:
        left = iter(accuracies)

        def judge(*args: Any) -> training.Evaluation:
            found = evaluate(*args)
            return replace(found, accuracy=next(left, found.accuracy))

        monkeypatch.setattr(training, "evaluate", judge)

    return script


def test_training_stops_after_patience_epochs_without_improvement(tiny, tmp_path, judged):
    judged([0.5, 0.7, 0.7, 0.6, 0.9])
    run = train(tiny(kind="cnn", epochs=9, patience=2), tmp_path / "run")
    assert run.results["epochs"] == 4
    assert run.results["best_epoch"] == 2


def test_patience_0_never_stops_early(tiny, tmp_path, judged):
    judged([0.9, 0.1, 0.1, 0.1, 0.1])
    assert train(tiny(kind="cnn", epochs=5, patience=0), tmp_path / "run").results["epochs"] == 5


def test_the_weights_are_those_of_the_earliest_best_epoch(tiny, tmp_path, judged):
    judged([0.5, 0.7, 0.7, 0.6])
    longer = train(tiny(kind="cnn", epochs=4), tmp_path / "longer")
    judged([0.5, 0.7])
    shorter = train(tiny(kind="cnn", epochs=2), tmp_path / "shorter")
    assert longer.results["best_epoch"] == 2
    assert longer.results["validation_accuracy"] == 0.7
    assert (longer.path / WEIGHTS_FILE).read_bytes() == (shorter.path / WEIGHTS_FILE).read_bytes()


def test_the_results_are_of_the_saved_weights_on_the_test_set(tiny, tmp_path, judged):
    judged([0.9] + [0.1] * 7)
    run = train(tiny(kind="cnn", epochs=8, lr=0.01, batch_size=8, width=0.25, patience=0), tmp_path / "run")
    data = small_digits.load()
    found = evaluate(run.model(), data, data.test_images, data.test_labels)
    assert run.results["best_epoch"] == 1
    assert run.results["test_accuracy"] == found.accuracy
    assert run.results["test_macro_f1"] == found.macro_f1
    last = run.spec.build()
    last.load_state_dict(torch.load(run.path / CHECKPOINT_FILE, weights_only=True)["model"])
    assert evaluate(last, data, data.test_images, data.test_labels).macro_f1 != found.macro_f1


class Oracle(nn.Module):
    """Answers with the class that stands in the image's first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot((x[:, 0, 0, 0] * 255).round().long(), 3).float()


def test_accuracy_and_macro_f1_by_hand():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    answers = torch.tensor([0, 0, 0, 1, 1, 2, 2, 0])
    images = answers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    data = ImageData("toy", images, labels, images, labels, (0.0,), (1.0,), ("a", "b", "c"))
    found = evaluate(Oracle(), data, images, labels)
    assert found.predictions.tolist() == answers.tolist()
    assert found.accuracy == 5 / 8
    # F1 = 2 TP / (2 TP + FP + FN): class 0 has TP 3, FP 1, FN 1; class 1 has 1, 1, 1; class 2 has 1, 1, 1
    assert found.macro_f1 == pytest.approx((6 / 8 + 2 / 4 + 2 / 4) / 3)
    # the right class has logit 1 or 0 beside two others that sum to 1 or 2 ones and zeros
    right, wrong = math.log(math.e + 2) - 1, math.log(math.e + 2)
    assert found.loss == pytest.approx((5 * right + 3 * wrong) / 8, rel=1e-6)


@pytest.mark.parametrize("mode", [True, False])
def test_evaluation_restores_the_mode_of_the_model(mode):
    data = small_digits.load()
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 10)).train(mode)
    evaluate(model, data, data.test_images, data.test_labels)
    assert model.training is mode


def test_an_existing_run_is_not_replaced_unless_asked(tiny, tmp_path):
    run = train(tiny(kind="cnn", epochs=1), tmp_path / "run")
    before = content(run.path)
    with pytest.raises(SpikeportError, match="already exists; pass --resume to go on with it or --overwrite"):
        train(tiny(kind="cnn", epochs=1), run.path)
    assert content(run.path) == before


def test_overwriting_takes_away_what_was_exported_and_nothing_else(tiny, tmp_path):
    run = train(tiny(kind="cnn", epochs=1), tmp_path / "run")
    (run.path / "onnx").mkdir()
    (run.path / "onnx" / "model.onnx").write_text("of the old weights")
    (run.path / "notes.txt").write_text("mine")
    train(tiny(kind="cnn", epochs=1, seed=1), run.path, overwrite=True)
    assert not (run.path / "onnx").exists()
    assert (run.path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_run_is_never_cleared(tiny, tmp_path, overwrite):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(SpikeportError, match="already exists" if not overwrite else "not a run folder"):
        train(tiny(kind="cnn", epochs=1), tmp_path / "thesis", overwrite=overwrite)
    assert content(tmp_path) == {"thesis/chapter.tex": b"years of work"}


@pytest.mark.parametrize("out", ["file", "file/run"])
def test_a_file_where_a_folder_should_be_is_refused(tiny, tmp_path, out):
    (tmp_path / "file").write_text("text")
    with pytest.raises(SpikeportError, match="cannot be made: .*file is a file"):
        train(tiny(kind="cnn", epochs=1), tmp_path / out, overwrite=True)
    assert content(tmp_path) == {"file": b"text"}


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_folder_has_one_training_at_a_time(tiny, tmp_path, resume):
    def second(row):
        with pytest.raises(SpikeportError, match=r"run: another process trains into it \(.*run.lock\); wait, or name"):
            train(tiny(kind="cnn", epochs=1), tmp_path / "a/run", resume=resume, overwrite=True)

    train(tiny(kind="cnn", epochs=1), tmp_path / "a/run", on_epoch=second)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["run"]
    train(tiny(kind="cnn", epochs=1), tmp_path / "a/run", overwrite=True)


def test_a_run_folder_behind_a_link_is_the_same(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    refused = pytest.raises(SpikeportError, match="another process trains into it")
    with alone(tmp_path / "run"), refused, alone(tmp_path / "link"):
        pytest.fail("two trainings in one folder")


def test_a_run_folder_that_cannot_be_made_is_refused_before_training(tiny, tmp_path):
    with pytest.raises(SpikeportError, match=r"^/proc/run cannot be made \(.+\); name another folder"):
        train(tiny(), "/proc/run")


def test_the_root_of_the_file_system_is_no_run_folder(tiny):
    with pytest.raises(SpikeportError, match=r"^/ is the root of the file system, which is no run folder; name a"):
        train(tiny(), "/", overwrite=True)


@pytest.mark.parametrize("how", ["overwrite", "resume"])
def test_a_run_does_not_replace_its_teacher(tiny, tmp_path, how):
    teacher = train(tiny(kind="cnn", epochs=1), tmp_path / "run").path
    (tmp_path / "link").symlink_to(teacher)
    before = content(teacher)
    with pytest.raises(SpikeportError, match="run: the folder of the teacher, which must stay as it is; name another"):
        train(tiny(kind="cnn", epochs=1, teacher=str(tmp_path / "link")), teacher, **{how: True})
    assert content(teacher) == before


def test_only_a_cpu_in_half_precision_is_asked_for_fast_convolutions(monkeypatch):
    """A torch without oneDNN cannot be asked, and has none."""
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(_is_mkldnn_fp16_supported=lambda: True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for device, precision in (("cpu", "fp32"), ("cuda", "fp32"), ("cuda", "bf16"), ("cpu", "fp16")):
            warn_where_slow(torch.device(device), precision)
    with pytest.warns(RuntimeWarning, match="this CPU has no fast convolutions in bf16"):
        warn_where_slow(torch.device("cpu"), "bf16")


def test_infinite_statistics_are_refused_before_they_are_written(tiny, tmp_path, monkeypatch):
    def overflown(network: nn.Module, *arguments: Any) -> Any:
        network.get_buffer("stem.bn.running_var")[0] = math.inf  # normalises to 0: no loss and no gradient tells
        return evaluate(network, *arguments)

    monkeypatch.setattr(training, "evaluate", overflown)
    with pytest.raises(SpikeportError, match=r"stem.bn.running_var holds NaN or infinity in epoch 1; lower --lr"):
        train(tiny(kind="snn", epochs=1), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_ends_training_with_a_remedy(tiny, tmp_path):
    with pytest.raises(SpikeportError, match=r"loss became (nan|inf).*lower --lr"):
        train(tiny(kind="cnn", lr=1e25), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_overwritten_run_survives_the_failure_of_the_new_one(tiny, tmp_path):
    run = train(tiny(kind="cnn", epochs=1), tmp_path / "run")
    before = content(run.path)
    with pytest.raises(SpikeportError, match="lower --lr"):
        train(tiny(kind="cnn", lr=1e25), run.path, overwrite=True)
    assert content(run.path) == before


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        ("unknown model", {"model": "resnet"}),
        ("unknown data set", {"dataset": "mnist"}),
        ("unknown surrogate", {"surrogate": "none"}),
        ("keep=", {"keep": (1,)}),
        ("tau is 0.1", {"tau": 0.1}),
        ("device 'abacus'", {"device": "abacus"}),
        ("device 'meta'", {"device": "meta"}),
    ],
)
def test_a_bad_setting_is_refused_before_anything_is_written(tiny, tmp_path, message, settings):
    with pytest.raises(SpikeportError, match=message):
        train(tiny(**settings), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_progress_reaches_its_total_and_every_epoch_is_told(tiny, tmp_path):
    seen: list[tuple[int, int]] = []
    told: list[dict[str, float]] = []
    run = train(tiny(kind="cnn"), tmp_path / "run", progress=lambda *p: seen.append(p), on_epoch=told.append)
    assert seen[-1] == (6, 6)  # 96 training images in batches of 32, two epochs
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert told == rows(run.path)
    assert (run.path / CONFIG_FILE).exists()
    assert (run.path / CHECKPOINT_FILE).exists()


def test_a_run_that_is_replaced_leaves_no_samples(tiny, tmp_path):
    """Those that travel with a run are of its data, which the next one need not have."""
    run = train(tiny(epochs=1), tmp_path / "run")
    (run.path / SAMPLES_FILE).write_bytes(b"of another data set")
    train(tiny(epochs=1), tmp_path / "run", overwrite=True)
    assert not (run.path / SAMPLES_FILE).exists()


def test_an_image_left_over_does_not_end_an_epoch(tiny, tmp_path):
    """Maps of 1x1 before the last BatchNorm: a batch of one would give it a single value."""
    settings = tiny(model="shufflenetv2", kind="cnn", keep=None, epochs=1, width=0.25, train_images=21, batch_size=16)
    assert train(settings, tmp_path / "joined").results["epochs"] == 1
    with pytest.raises(SpikeportError, match="a batch of 1 .* gives BatchNorm a single value; raise --batch-size"):
        train(replace(settings, batch_size=1), tmp_path / "alone")


def test_a_width_too_small_for_mixed_kernels_is_named(tiny, tmp_path):
    with pytest.raises(SpikeportError, match="channels for 4 kernel sizes; a larger width is needed"):
        train(tiny(model="mixnet", keep=None, width=0.01), tmp_path / "run")
