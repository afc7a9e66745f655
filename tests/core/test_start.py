"""Starting from the weights of another run, and training through a module that wraps the model."""

import re

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from spikeport.core import SpikeportError, train
from spikeport.core.records import METRICS_FILE
from spikeport.core.runs import WEIGHTS_FILE, DataInfo
from spikeport.core.training import CHECKPOINT_FILE


def test_a_run_starts_from_the_weights_of_another(tiny, tmp_path):
    first = train(tiny(kind="cnn"), tmp_path / "first")
    second = train(tiny(kind="cnn", seed=3, lr=1e-30, epochs=1, start=str(first.path)), tmp_path / "second")
    before, after = load_file(first.path / WEIGHTS_FILE), load_file(second.path / WEIGHTS_FILE)
    assert all(torch.equal(before[name], after[name]) for name in before if "running" not in name and "num" not in name)


@pytest.mark.parametrize(
    ("name", "value"), [("kind", "cnn"), ("width", 0.125), ("keep", (4, 6)), ("model", "mnasnet"), ("tau", 3.0)]
)
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
    before, after = load_file(cnn.path / WEIGHTS_FILE), load_file(snn.path / WEIGHTS_FILE)
    assert all(torch.equal(before[name], after[name]) for name in before if "running" not in name and "num" not in name)
    assert snn.spec.twin.tau == 1.5
    with pytest.raises(SpikeportError, match="width = .*asked for 0.125"):
        train(tiny(**settings, epochs=1, start=str(cnn.path), width=0.125), tmp_path / "other")


def test_a_start_that_is_no_run_is_refused(tiny, tmp_path):
    with pytest.raises(SpikeportError, match="none: no such run folder"):
        train(tiny(start=str(tmp_path / "none")), tmp_path / "run")


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
