"""A run that was killed and resumed is the run that was not."""

import json
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import small_digits
import torch
from torch import nn

from spikeport.core import SpikeportError, TrainConfig, Twin, train, training
from spikeport.core.data import DATASETS
from spikeport.core.data import Entry as DataEntry
from spikeport.core.evaluation import evaluate
from spikeport.core.models import MODELS, Entry
from spikeport.core.records import METRICS_FILE
from spikeport.core.runs import CONFIG_FILE, WEIGHTS_FILE, load_run
from spikeport.core.training import CHECKPOINT_FILE

#: Trains in a process of its own, which kills itself in the middle of epoch 3: while batches run, or between
#: writing the weights and writing the checkpoint.
VICTIM = """
import json, os, signal, sys
import small_digits, torch
from spikeport.core import TrainConfig, train, training

small_digits.register()
torch.set_num_threads(1)  # as in the tests: another number of threads rounds differently
settings, out, moment = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if moment == "checkpoint":
    save = training.save_checkpoint
    training.save_checkpoint = lambda path, *rest: die() if len(rest[-1]["metrics"]) == 3 else save(path, *rest)
train(TrainConfig(**settings), out, progress=lambda done, total: die() if moment == "batch" and done == 8 else None)
"""


def kill_in_epoch_3(config: TrainConfig, out: Path, moment: str) -> None:
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", VICTIM, json.dumps(asdict(config)), str(out), moment],
        env=os.environ | {"PYTHONPATH": tests},
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("moment", "settings"),
    [
        ("batch", {"kind": "snn", "schedule": "step", "milestones": (2, 3)}),
        ("batch", {"kind": "cnn", "optimizer": "sgd", "lr": 0.05, "schedule": "cosine"}),
        ("checkpoint", {"kind": "snn", "precision": "bf16"}),
    ],
)
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tiny, tmp_path, moment, settings):
    config = tiny(epochs=4, patience=0, **settings)
    whole = train(config, tmp_path / "whole")
    kill_in_epoch_3(config, tmp_path / "killed", moment)
    with pytest.raises(SpikeportError, match=r"not come to its end; `spikeport train .*--resume .*finishes"):
        load_run(tmp_path / "killed")
    resumed = train(config, tmp_path / "killed", resume=True)
    for name in (WEIGHTS_FILE, METRICS_FILE, "model.json", CONFIG_FILE):
        assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_resumed_before_its_first_checkpoint_it_starts_from_its_run_again(tiny, tmp_path, monkeypatch):
    first = train(tiny(epochs=2, patience=0), tmp_path / "first")
    config = tiny(epochs=2, patience=0, seed=1, start=str(first.path))
    whole = train(config, tmp_path / "whole")

    def full(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(training, "save_checkpoint", full)
        with pytest.raises(OSError, match="no space left"):
            train(config, tmp_path / "killed")
    assert (tmp_path / "killed" / CONFIG_FILE).exists()
    resumed = train(config, tmp_path / "killed", resume=True)
    assert (resumed.path / WEIGHTS_FILE).read_bytes() == (whole.path / WEIGHTS_FILE).read_bytes()


def test_more_epochs_resumed_equal_more_epochs_at_once(tiny, tmp_path):
    at_once = train(tiny(epochs=3, patience=0), tmp_path / "at_once")
    train(tiny(epochs=1, patience=0), tmp_path / "parts")
    parts = train(tiny(epochs=3, patience=0), tmp_path / "parts", resume=True)
    for name in (WEIGHTS_FILE, METRICS_FILE, CONFIG_FILE):
        assert (parts.path / name).read_bytes() == (at_once.path / name).read_bytes()


class Forgetful(nn.Sequential):
    """A model that draws random numbers while it trains."""

    def __init__(self, twin: Twin, classes: int, channels: int, width: float) -> None:
        super().__init__(nn.Dropout(0.5), nn.Flatten(), nn.Linear(256, classes))


def test_resuming_goes_on_with_the_random_numbers_of_dropout(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "forgetful", Entry(Forgetful, {}, "for this test"))
    settings = {"model": "forgetful", "kind": "cnn", "keep": None, "patience": 0}
    at_once = train(tiny(epochs=3, **settings), tmp_path / "at_once")
    train(tiny(epochs=1, **settings), tmp_path / "parts")
    torch.rand(7)  # whatever happens in between
    parts = train(tiny(epochs=3, **settings), tmp_path / "parts", resume=True)
    assert (parts.path / METRICS_FILE).read_bytes() == (at_once.path / METRICS_FILE).read_bytes()


def test_resuming_a_finished_run_changes_nothing(tiny, tmp_path):
    run = train(tiny(), tmp_path / "run")
    (run.path / "nir").mkdir()
    before = {p.name: p.read_bytes() for p in run.path.iterdir() if p.is_file()}
    again = train(tiny(), run.path, resume=True)
    assert again.results == run.results
    assert {p.name: p.read_bytes() for p in run.path.iterdir() if p.is_file()} == before
    assert (run.path / "nir").exists()


def test_better_weights_take_away_what_was_exported_from_the_worse(tiny, tmp_path):
    settings = {"kind": "cnn", "lr": 0.01, "batch_size": 8, "width": 0.25, "patience": 0}
    run = train(tiny(epochs=1, **settings), tmp_path / "run")
    (run.path / "onnx").mkdir()
    longer = train(tiny(epochs=8, **settings), run.path, resume=True)
    assert longer.results["best_epoch"] > 1
    assert not (run.path / "onnx").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("lr", 0.5), ("kind", "cnn"), ("seed", 1), ("width", 0.25), ("tau", 3.0), ("batch_size", 16)]
)
def test_resuming_with_other_settings_names_the_setting(tiny, tmp_path, name, value):
    run = train(tiny(epochs=1), tmp_path / "run")
    before = (run.path / CHECKPOINT_FILE).read_bytes()
    with pytest.raises(SpikeportError, match=f"trained with {name} = .*asked for {value!r}"):
        train(tiny(epochs=2, **{name: value}), run.path, resume=True)
    assert (run.path / CHECKPOINT_FILE).read_bytes() == before


def test_resuming_a_cosine_schedule_with_other_epochs_is_refused(tiny, tmp_path):
    run = train(tiny(epochs=1, schedule="cosine"), tmp_path / "run")
    with pytest.raises(SpikeportError, match="trained with epochs = 1, asked for 2"):
        train(tiny(epochs=2, schedule="cosine"), run.path, resume=True)


def test_resuming_with_data_of_other_classes_is_refused(tiny, tmp_path, monkeypatch):
    run = train(tiny(kind="cnn", epochs=1), tmp_path / "run")
    data = small_digits.load()
    fewer = replace(
        data, train_labels=data.train_labels % 9, test_labels=data.test_labels % 9, class_names=tuple("abcdefghi")
    )
    monkeypatch.setitem(DATASETS, small_digits.NAME, DataEntry(lambda folder: fewer, "nine classes"))
    with pytest.raises(SpikeportError, match="checkpoint.pt: trained with num_classes = 10, asked for 9"):
        train(tiny(kind="cnn", epochs=2), run.path, resume=True)
    with pytest.raises(SpikeportError, match="the run to start from has num_classes = 10, asked for 9"):
        train(tiny(kind="cnn", start=str(run.path)), tmp_path / "new")
    with pytest.raises(SpikeportError, match="trained with class_names .*now has .*'i'"):
        run.samples(1)


def test_resuming_with_other_images_is_refused(tiny, tmp_path, monkeypatch):
    run = train(tiny(kind="cnn", epochs=1), tmp_path / "run")
    data = small_digits.load()
    fewer = replace(data, train_images=data.train_images[:-10], train_labels=data.train_labels[:-10])
    for changed, name in ((fewer, "images"), (replace(data, mean=(0.25,)), "mean")):
        monkeypatch.setitem(DATASETS, small_digits.NAME, DataEntry(lambda folder, changed=changed: changed, "others"))
        with pytest.raises(SpikeportError, match=f"trained with the data's {name} = .*, asked for"):
            train(tiny(kind="cnn", epochs=2), run.path, resume=True)


def test_results_of_weights_that_are_gone_go_too(tiny, tmp_path, monkeypatch):
    """A finished run that is resumed and cut short holds better weights, and what they give is not known yet."""
    better = iter(range(1, 100))
    monkeypatch.setattr(training, "evaluate", lambda *a: replace(evaluate(*a), accuracy=next(better) / 100))
    config = tiny(kind="cnn", epochs=1)
    run = train(config, tmp_path / "run")

    def stop(row):
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(replace(config, epochs=9, patience=0), run.path, resume=True, on_epoch=stop)
    with pytest.raises(SpikeportError, match="its training has not come to its end"):
        load_run(run.path)


def test_resuming_with_images_of_another_size_is_refused(tiny, tmp_path, monkeypatch):
    run = train(tiny(kind="cnn", epochs=1), tmp_path / "run")
    data = small_digits.load()
    larger = replace(
        data, train_images=data.train_images.repeat(1, 1, 2, 2), test_images=data.test_images.repeat(1, 1, 2, 2)
    )
    monkeypatch.setitem(DATASETS, small_digits.NAME, DataEntry(lambda folder: larger, "32x32"))
    with pytest.raises(SpikeportError, match="trained with image_size = 16, asked for 32"):
        train(tiny(kind="cnn", epochs=2), run.path, resume=True)
    with pytest.raises(SpikeportError, match=r"trained with image_shape \(1, 16, 16\); .* now has \(1, 32, 32\)"):
        run.samples(1)


def test_resuming_without_a_checkpoint_is_refused(tiny, tmp_path):
    with pytest.raises(SpikeportError, match="no checkpoint to resume from"):
        train(tiny(), tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_a_training_that_ended_before_its_first_checkpoint_is_resumed_from_the_beginning(tiny, tmp_path):
    whole = train(tiny(kind="cnn"), tmp_path / "whole")
    cut = train(tiny(kind="cnn"), tmp_path / "cut")
    for name in (CHECKPOINT_FILE, "model.json"):
        (cut.path / name).unlink()
    again = train(tiny(kind="cnn"), cut.path, resume=True)
    assert (again.path / "weights.safetensors").read_bytes() == (whole.path / "weights.safetensors").read_bytes()


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "hostile", "other"])
def test_a_damaged_checkpoint_is_refused_and_runs_nothing(tiny, tmp_path, damage):
    run = train(tiny(kind="cnn", epochs=1), tmp_path / "run")
    file = run.path / CHECKPOINT_FILE
    whole = file.read_bytes()
    file.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "empty": b"",
            "text": b"no checkpoint",
            "hostile": pickle.dumps(Touch(tmp_path / "touched"), protocol=2),
            "other": pickle.dumps([1, 2], protocol=2),
        }[damage]
    )
    with pytest.raises(SpikeportError, match=r"checkpoint.pt: (damaged|not a checkpoint)") as caught:
        train(tiny(kind="cnn", epochs=2), run.path, resume=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "damage", [{"told": {"metrics": [1]}}, {"told": {"epochs": 3}}, {"model": {}}, {"optimizer": 3}]
)
def test_a_checkpoint_of_another_training_is_refused(tiny, tmp_path, damage):
    run = train(tiny(epochs=1), tmp_path / "run")
    state = torch.load(run.path / CHECKPOINT_FILE, weights_only=True)
    torch.save(state | damage, run.path / CHECKPOINT_FILE)
    with pytest.raises(SpikeportError, match=r"checkpoint\.pt: not a checkpoint of this training"):
        train(tiny(epochs=2), tmp_path / "run", resume=True)


def test_resuming_with_fewer_epochs_than_there_are_is_refused_and_changes_nothing(tiny, tmp_path):
    run = train(tiny(epochs=2), tmp_path / "run")
    before = (run.path / "config.toml").read_text()
    with pytest.raises(SpikeportError, match="has 2 epochs, more than the 1 asked for"):
        train(tiny(epochs=1), run.path, resume=True)
    assert (run.path / "config.toml").read_text() == before


def test_resuming_with_a_moving_average_there_was_not_names_the_setting(tiny, tmp_path):
    train(tiny(epochs=1), tmp_path / "run")
    with pytest.raises(SpikeportError, match="trained with ema = 0.0, asked for 0.9"):
        train(tiny(epochs=2, ema=0.9), tmp_path / "run", resume=True)


@pytest.mark.parametrize("earlier", [True, False])
def test_a_training_killed_as_its_first_settings_are_written_can_be_started_again(tiny, tmp_path, earlier, monkeypatch):
    """The temporary file stays, as it does after SIGKILL, and goes with the next training."""
    if earlier:
        train(tiny(epochs=1), tmp_path / "run")

    def killed(self, path):
        path.parent.mkdir(exist_ok=True)
        (path.parent / ".config-abcdefgh.toml").write_text("epochs")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(TrainConfig, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(epochs=1, seed=1), tmp_path / "run", overwrite=True)
    run = train(tiny(epochs=1, seed=1), tmp_path / "run", overwrite=True)
    assert not list(run.path.glob(".config*"))
    assert run.results["epochs"] == 1
