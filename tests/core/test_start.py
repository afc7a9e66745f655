"""Starting from the weights of another run, and training through a module that wraps the model."""

import re
import warnings
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from spikeport.core import SpikeportError, train
from spikeport.core.records import METRICS_FILE
from spikeport.core.runs import CONFIG_FILE, WEIGHTS_FILE, DataInfo, warn_where_seen
from spikeport.core.training import CHECKPOINT_FILE


def require_same_weights(one, other):
    before, after = load_file(one.path / WEIGHTS_FILE), load_file(other.path / WEIGHTS_FILE)
    assert all(torch.equal(before[name], after[name]) for name in before if "running" not in name and "num" not in name)


def test_a_run_starts_from_the_weights_of_another(tiny, tmp_path):
    first = train(tiny(kind="cnn"), tmp_path / "first")
    second = train(tiny(kind="cnn", seed=3, lr=1e-30, epochs=1, start=str(first.path)), tmp_path / "second")
    require_same_weights(first, second)


@pytest.mark.parametrize(("name", "value"), [("kind", "cnn"), ("width", 0.125), ("keep", (4, 6)), ("model", "mnasnet")])
def test_a_start_of_another_model_names_what_differs(tiny, tmp_path, name, value):
    first = train(tiny(kind="snn", epochs=1), tmp_path / "first")
    settings = {"kind": "snn", "start": str(first.path), name: value}
    if name == "model":
        settings["keep"], name = None, "name"
    told = f"first: the run to start from has {name} = .*asked for {re.escape(repr(value))}; make them equal"
    with pytest.raises(SpikeportError, match=told):
        train(tiny(**settings), tmp_path / "second")
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("spiking", ["activations", "every-layer"])
def test_an_snn_starts_from_its_cnn_twin(tiny, tmp_path, spiking):
    cnn = train(tiny(kind="cnn", epochs=1), tmp_path / "cnn")
    settings = {"kind": "snn", "spiking": spiking, "tau": 1.5, "time_steps": 3}
    snn = train(tiny(**settings, lr=1e-30, epochs=1, start=str(cnn.path)), tmp_path / "snn")
    require_same_weights(cnn, snn)
    assert snn.spec.twin.tau == 1.5
    with pytest.raises(SpikeportError, match="width = .*asked for 0.125"):
        train(tiny(**settings, epochs=1, start=str(cnn.path), width=0.125), tmp_path / "other")


def test_an_snn_goes_on_with_other_neurons(tiny, tmp_path):
    """Fewer steps first and more later, another time constant: neurons have no weights."""
    first = train(tiny(kind="snn", epochs=1), tmp_path / "first")
    neurons = {"tau": 3.0, "v_threshold": 0.2, "time_steps": 5, "surrogate": "sigmoid", "alpha": 6.0}
    second = train(tiny(kind="snn", **neurons, lr=1e-30, epochs=1, start=str(first.path)), tmp_path / "second")
    require_same_weights(first, second)
    assert asdict(second.spec.twin).items() >= neurons.items()


def test_a_cnn_has_no_neurons_that_could_differ_and_an_empty_folder_is_no_run(tiny, tmp_path):
    first = train(tiny(kind="cnn", epochs=1), tmp_path / "first")
    (tmp_path / "second").mkdir()
    second = train(tiny(kind="cnn", epochs=1, time_steps=8, start=first.path), tmp_path / "second")
    assert second.kind == "cnn"


def test_a_start_that_is_no_run_is_refused(tiny, tmp_path):
    with pytest.raises(SpikeportError, match="none: no such run folder"):
        train(tiny(start=str(tmp_path / "none")), tmp_path / "run")


HELD_OUT = {"validation": 0.1, "train_images": 80}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"validation": 0.2},
            "held out 0.1 of 80 training images, this training 0.2 of 80: .*; take --validation 0.1$",
        ),
        ({"validation": 0.05, "train_images": None}, "0.05 of all: .*; take --validation 0.1 --train-images 80$"),
        ({"validation": 0.05}, None),
        ({}, None),
        ({"validation": 0.2, "dataset": "digits"}, None),
    ],
)
def test_images_the_start_was_trained_on_are_told_of_as_validation_images(tiny, tmp_path, settings, told):
    tiny(**HELD_OUT, lr=0.5).save(tmp_path / CONFIG_FILE)
    with warnings.catch_warnings(record=True) as caught:
        warn_where_seen(tmp_path, tiny(**HELD_OUT | settings))
    assert len(caught) == (told is not None)
    if told:
        assert re.search(f"^{re.escape(str(tmp_path))} .*{told}", str(caught[0].message))


def test_a_start_that_held_out_of_all_images_is_to_be_followed_in_that(tiny, tmp_path):
    tiny().save(tmp_path / CONFIG_FILE)
    with pytest.warns(
        RuntimeWarning, match="0.2 of all training images, this .*--validation 0.2 and no --train-images"
    ):
        warn_where_seen(tmp_path, tiny(train_images=80))


def test_training_warns_once_of_what_its_start_and_its_teacher_have_seen(tiny, tmp_path):
    cnn = str(train(tiny(kind="cnn", epochs=1, validation=0.1), tmp_path / "cnn").path)
    for role in ({"start": cnn}, {"teacher": cnn}, {"start": cnn, "teacher": cnn}):
        with pytest.warns(RuntimeWarning, match="images it was trained on; take --validation 0.1") as caught:
            train(tiny(kind="cnn", epochs=1, **role), tmp_path / "run", overwrite=True)
        assert len([w for w in caught if w.category is RuntimeWarning]) == 1
    (tmp_path / "cnn" / CONFIG_FILE).unlink()  # a run of weights alone
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        train(tiny(kind="cnn", epochs=1, start=cnn), tmp_path / "run", overwrite=True)


class Doubled(nn.Module):
    """Twice the model's answer, its first layer frozen."""

    def __init__(self, model: nn.Module, info: DataInfo) -> None:
        super().__init__()
        self.model = model
        model.stem.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.model(x)


def test_a_wrapped_model_is_trained_and_judged_through_its_wrapper_and_saved_without(tiny, tmp_path):
    config = tiny(kind="cnn", epochs=2, patience=0)
    plain = train(config, tmp_path / "plain")
    run = train(config, tmp_path / "run", prepare=Doubled)
    assert (run.path / METRICS_FILE).read_bytes() != (plain.path / METRICS_FILE).read_bytes()
    weights, start = load_file(run.path / WEIGHTS_FILE), run.spec.build(config.seed).state_dict()
    assert set(weights) == set(start) == set(torch.load(run.path / CHECKPOINT_FILE, weights_only=True)["model"])
    assert torch.equal(weights["stem.conv.weight"], start["stem.conv.weight"])
    assert not torch.equal(weights["classifier.conv.weight"], start["classifier.conv.weight"])


def test_a_wrapped_run_resumes_to_the_same_result(tiny, tmp_path):
    whole = train(tiny(patience=0), tmp_path / "whole", prepare=Doubled)
    train(tiny(epochs=1, patience=0), tmp_path / "parts", prepare=Doubled)
    parts = train(tiny(patience=0), tmp_path / "parts", prepare=Doubled, resume=True)
    for name in (WEIGHTS_FILE, METRICS_FILE):
        assert (whole.path / name).read_bytes() == (parts.path / name).read_bytes()


def test_a_target_without_its_wrapper_is_refused(tiny, tmp_path):
    with pytest.raises(SpikeportError, match="target 'loihi': train needs its prepare function"):
        train(tiny(target="loihi"), tmp_path / "run")
