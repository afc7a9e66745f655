"""What the training loop does beside its steps: precision, averages, schedules, records, and how it stops."""

import csv
import math
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import small_digits
import torch
from safetensors.torch import load_file
from torch import nn

from spikeport.core import LIF, SpikeportError, TimeMean, train
from spikeport.core.data import split
from spikeport.core.losses import distillation
from spikeport.core.models import MODELS, Entry
from spikeport.core.records import LAYERS_FILE, METRICS_FILE
from spikeport.core.runs import WEIGHTS_FILE
from spikeport.core.training import CHECKPOINT_FILE


def table(run: Path, name: str) -> list[dict[str, str]]:
    with (run / name).open() as file:
        return list(csv.DictReader(file))


def interrupt(row: dict[str, float]) -> None:
    raise KeyboardInterrupt


def losses(run: Path) -> list[float]:
    return [float(row["train_loss"]) for row in table(run, METRICS_FILE)]


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "gradient-aware", "gradient_eps": 0.1},
        {"loss": "grad-cam", "kind": "snn"},
        {"loss": "temporal"},
        {"rate_weight": 5.0, "rate_goal": 0.1},
        {"label_smoothing": 0.1, "clip": 0.5, "warmup": 1, "ema": 0.9},
        {"kind": "cnn", "loss": "grad-cam", "precision": "bf16"},
        {"kind": "cnn", "precision": "fp16", "loss": "gradient-aware"},
    ],
)
def test_every_setting_of_the_loop_resumes_to_the_same_result(tiny, tmp_path, settings):
    whole = train(tiny(epochs=2, patience=0, **settings), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tiny(epochs=2, patience=0, **settings), tmp_path / "parts", on_epoch=interrupt)
    parts = train(tiny(epochs=2, patience=0, **settings), tmp_path / "parts", resume=True)
    plain = train(tiny(epochs=1, kind=settings.get("kind", "snn")), tmp_path / "plain")
    assert losses(whole.path)[0] != losses(plain.path)[0]
    for name in (WEIGHTS_FILE, METRICS_FILE, LAYERS_FILE, "model.json"):
        assert (parts.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_a_rate_goal_pulls_the_firing_rate(tiny, tmp_path):
    rates = {}
    for goal in (0.05, 0.5):
        run = train(
            tiny(epochs=8, lr=0.01, batch_size=16, patience=0, rate_weight=50.0, rate_goal=goal), tmp_path / str(goal)
        )
        last = [row for row in table(run.path, LAYERS_FILE) if row["layer"] == "network"][-1]
        rates[goal] = float(last["firing_rate"])
    assert abs(rates[0.05] - 0.05) < 0.1 < abs(rates[0.5] - 0.05)


def test_a_student_takes_the_step_its_teacher_asks_for(tiny, tmp_path):
    """One step of SGD over the whole training part, with no share for the labels."""
    teacher = train(tiny(kind="cnn", epochs=1), tmp_path / "cnn")
    settings = {"optimizer": "sgd", "momentum": 0.0, "lr": 1.0, "epochs": 1, "batch_size": 1000}
    config = tiny(**settings, teacher=str(teacher.path), distill_weight=1.0, temperature=3.0)
    run = train(config, tmp_path / "snn")
    data = small_digits.load()
    chosen, _ = split(len(data.train_images), config.validation)
    images = data.normalise(data.train_images[chosen]).contiguous(memory_format=torch.channels_last)
    model = config.spec(10, data.image_shape).build(config.seed).to(memory_format=torch.channels_last)
    distillation(model(images), teacher.model()(images).detach(), 3.0).mean().backward()
    after = torch.load(run.path / CHECKPOINT_FILE, weights_only=True)["model"]
    for name, p in model.named_parameters():
        torch.testing.assert_close(after[name], (p - p.grad).detach(), rtol=1e-3, atol=1e-5)


def test_a_teacher_of_other_classes_is_refused(tiny, tmp_path):
    teacher = train(tiny(kind="cnn", epochs=1), tmp_path / "cnn")
    text = (teacher.path / "model.json").read_text()
    (teacher.path / "model.json").write_text(text.replace('"9"', '"nine"'))
    with pytest.raises(SpikeportError, match="the teacher's class_names are .*nine.*, the data set's"):
        train(tiny(teacher=str(teacher.path)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_warm_up_rises_to_the_learning_rate_and_the_cosine_falls_after_it(tiny, tmp_path):
    run = train(tiny(kind="cnn", epochs=5, warmup=2, lr=0.3, schedule="cosine", patience=0), tmp_path / "run")
    falling = [0.15 * (1 + math.cos(math.pi * k / 3)) for k in range(3)]
    assert [float(row["lr"]) for row in table(run.path, METRICS_FILE)] == pytest.approx([0.1, 0.2, *falling])


def one_step(tiny: Any, out: Path, **settings: Any) -> tuple[dict, dict, dict]:
    """Weights before, weights after one step of SGD over the whole training part, and its gradients."""
    config = tiny(kind="cnn", optimizer="sgd", momentum=0.0, lr=1.0, epochs=1, batch_size=1000, **settings)
    run = train(config, out)
    data = small_digits.load()
    chosen, _ = split(len(data.train_images), config.validation)
    model = config.spec(10, data.image_shape).build(config.seed).to(memory_format=torch.channels_last)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    logits = model(data.normalise(data.train_images[chosen]))
    nn.functional.cross_entropy(logits, data.train_labels[chosen]).backward()
    after = torch.load(run.path / CHECKPOINT_FILE, weights_only=True)["model"]
    return before, after, {name: p.grad for name, p in model.named_parameters()}


def test_a_clipped_gradient_keeps_its_direction_and_has_the_given_length(tiny, tmp_path):
    before, after, gradients = one_step(tiny, tmp_path / "run", clip=0.01)
    flat = torch.cat([gradients[name].flatten() for name in before])
    step = torch.cat([(before[name] - after[name]).flatten() for name in before])
    torch.testing.assert_close(step, 0.01 * flat / flat.norm(), rtol=1e-2, atol=1e-6)


def test_gradient_norms_are_of_each_layer_s_weight(tiny, tmp_path):
    _, _, gradients = one_step(tiny, tmp_path / "run")
    rows = table(tmp_path / "run", LAYERS_FILE)
    found = {row["layer"]: float(row["gradient_norm"]) for row in rows if row["gradient_norm"]}
    total = torch.cat([g.flatten() for g in gradients.values()]).norm().item()
    assert found.pop("network") == pytest.approx(total, rel=1e-4)
    assert set(found) == {n.removesuffix(".weight") for n, g in gradients.items() if g.dim() > 1}
    assert found == pytest.approx({name: gradients[f"{name}.weight"].norm().item() for name in found}, rel=1e-4)


@pytest.mark.parametrize(("ema", "kept"), [(0.75, 2 / 11), (0.1, 0.1)])
def test_the_saved_weights_are_the_moving_average(tiny, tmp_path, ema, kept):
    """Two steps: the average starts at the first step's weights, then keeps (1 + 1) / (10 + 1) of them at most."""
    settings = {"kind": "cnn", "batch_size": 1000, "patience": 0}
    first = train(tiny(epochs=1, **settings), tmp_path / "first")
    run = train(tiny(epochs=2, ema=ema, **settings), tmp_path / "run")
    state = torch.load(run.path / CHECKPOINT_FILE, weights_only=True)
    one = load_file(first.path / WEIGHTS_FILE)["classifier.conv.weight"]
    two = state["model"]["classifier.conv.weight"]
    expected = kept * one + (1 - kept) * two
    torch.testing.assert_close(state["average"]["module.classifier.conv.weight"], expected)
    torch.testing.assert_close(
        run.model().classifier.conv.weight.detach(), expected if run.results["best_epoch"] == 2 else one
    )


def test_a_compiled_network_trains_to_nearly_the_same(tiny, tmp_path, monkeypatch):
    build = lambda *_: nn.Sequential(  # noqa: E731
        nn.Flatten(), nn.Linear(256, 32), LIF(constant_input=True), nn.Linear(32, 10), TimeMean(4)
    )
    monkeypatch.setitem(MODELS, "short", Entry(build, {}, "for this test"))
    settings = {"model": "short", "keep": None, "optimizer": "sgd", "lr": 0.01, "rate_weight": 1.0}
    plain = train(tiny(**settings), tmp_path / "plain")
    # All of torch.compile but its code generator, which takes half a minute to start.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    compiled = train(tiny(compile=True, **settings), tmp_path / "compiled")
    assert losses(compiled.path) == pytest.approx(losses(plain.path), rel=1e-3)
    assert set(load_file(compiled.path / WEIGHTS_FILE)) == set(load_file(plain.path / WEIGHTS_FILE))


@pytest.mark.parametrize("augment", [("crop",), ("flip",), ("cutout",), ("crop", "flip", "cutout")])
def test_augmented_training_is_reproducible_and_resumes(tiny, tmp_path, augment):
    whole = train(tiny(kind="cnn", augment=augment, patience=0), tmp_path / "whole")
    train(tiny(kind="cnn", augment=augment, epochs=1), tmp_path / "parts")
    parts = train(tiny(kind="cnn", augment=augment, patience=0), tmp_path / "parts", resume=True)
    plain = train(tiny(kind="cnn", epochs=1), tmp_path / "plain")
    assert losses(whole.path)[0] != losses(plain.path)[0]
    assert (parts.path / METRICS_FILE).read_bytes() == (whole.path / METRICS_FILE).read_bytes()


class Board:
    """Stands in for torch.utils.tensorboard.SummaryWriter, which needs a package that the tests do without."""

    written: ClassVar[list[tuple[str, float, int]]] = []

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def add_scalar(self, name: str, value: float, epoch: int) -> None:
        self.written.append((name, value, epoch))


def test_tensorboard_is_told_every_epoch_where_it_is_installed(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Board))
    monkeypatch.setattr(Board, "written", [])
    run = train(tiny(), tmp_path / "run")
    expected = {("train_loss", value, epoch + 1) for epoch, value in enumerate(losses(run.path))}
    assert expected <= set(Board.written)
    layers = table(run.path, LAYERS_FILE)
    rates = {
        (f"firing_rate/{r['layer']}", float(r["firing_rate"]), int(float(r["epoch"])))
        for r in layers
        if r["firing_rate"]
    }
    assert len(rates) == 2 * 5  # three of the Fire module, the stem, the network
    assert rates <= set(Board.written)
    assert (run.path / "tensorboard").is_dir()
    monkeypatch.undo()
    train(tiny(), run.path, overwrite=True)
    assert not (run.path / "tensorboard").exists()


class Fuse(nn.Module):
    """Answers with infinity from its fifth training step on."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("burnt", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.burnt += 1
        return x / (self.burnt < 5)


def test_a_loss_that_is_not_finite_names_step_and_layer_and_keeps_the_checkpoint(tiny, tmp_path, monkeypatch):
    build = lambda *_: nn.Sequential(nn.Flatten(), nn.Linear(256, 8), Fuse(), nn.Linear(8, 10))  # noqa: E731
    monkeypatch.setitem(MODELS, "explosive", Entry(build, {}, "for this test"))
    out = tmp_path / "run"
    kept: list[bytes] = []
    told = r"loss became (nan|inf) at step 5 \(epoch 2, batch 2\), first in layer 2; lower --lr .*keeps epoch 1"
    with pytest.raises(SpikeportError, match=told):
        train(
            tiny(model="explosive", kind="cnn", keep=None, epochs=3),
            out,
            on_epoch=lambda row: kept.append((out / CHECKPOINT_FILE).read_bytes()),
        )
    assert [(out / CHECKPOINT_FILE).read_bytes()] == kept
    assert len(table(out, METRICS_FILE)) == 1


class Root(nn.Module):
    """sqrt(0) is finite; its derivative is not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (0 * x).sqrt()


def test_a_gradient_that_is_not_finite_is_named(tiny, tmp_path, monkeypatch):
    build = lambda *_: nn.Sequential(nn.Flatten(), nn.Linear(256, 8), Root(), nn.Linear(8, 10))  # noqa: E731
    monkeypatch.setitem(MODELS, "rooted", Entry(build, {}, "for this test"))
    with pytest.raises(SpikeportError, match=r"the gradient became nan at step 1 .*first in 1.bias; lower --lr"):
        train(tiny(model="rooted", kind="cnn", keep=None), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_first_training_images_of_every_class(tiny, tmp_path):
    run = train(tiny(kind="cnn", epochs=1, train_images=40, batch_size=8), tmp_path / "run")
    assert run.results["epochs"] == 1
    with pytest.raises(SpikeportError, match="train_images is 121; small-digits offers 1 to 120"):
        train(tiny(train_images=121), tmp_path / "more")
