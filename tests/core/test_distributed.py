"""Two processes under torchrun, with gloo: the result of one at the same batch, and a run that outlives a process."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import two_processes
from safetensors.torch import load_file

from spikeport.core import SpikeportError, distributed, train
from spikeport.core.records import LAYERS_FILE, METRICS_FILE
from spikeport.core.runs import WEIGHTS_FILE

#: One image is left for the last batch of an epoch of 96: a process then has none.
SGD = {"optimizer": "sgd", "lr": 0.02, "patience": 0, "batch_size": 19, "epochs": 2}
TRAININGS = {
    "cnn": {"kind": "cnn", "augment": ("crop", "flip", "cutout")},
    "snn": {"kind": "snn", "label_smoothing": 0.1},
}
TERMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gradient-aware": {"loss": "gradient-aware", "gradient_eps": 0.1},
    "grad-cam": {"loss": "grad-cam"},
    "rates": {"rate_weight": 2.0},
    "temporal": {"loss": "temporal"},
}


def table(run: Path) -> list[dict[str, str]]:
    with (run / METRICS_FILE).open() as file:
        return list(csv.DictReader(file))


class Outcome(NamedTuple):
    """What the processes left: the status of the launch that lost one, and their folders."""

    killed: int
    kept: bytes
    folder: Path


def torchrun(work: dict[str, Any], folder: Path) -> int:
    (folder / "work.json").write_text(json.dumps(work))
    script = [two_processes.__file__, str(folder / "work.json")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *script]
    return subprocess.run(command, stderr=subprocess.DEVNULL, timeout=200).returncode


@pytest.fixture(scope="module")
def outcome(tiny, tmp_path_factory) -> Outcome:
    """One launch loses a process; the next resumes its run and does everything else."""
    folder = tmp_path_factory.mktemp("two")
    settings = {name: tiny(**SGD, **own).__dict__ for name, own in TRAININGS.items()}
    killed = torchrun({"train": [(settings["snn"], str(folder / "killed"), False)], "die": True}, folder)
    kept = (folder / "killed" / METRICS_FILE).read_bytes()
    trainings = [(settings[name], str(folder / name), False) for name in settings]
    trainings += [(settings["snn"], str(folder / "killed"), True)]
    gradients = {name: tiny(kind="snn", **own).__dict__ for name, own in TERMS.items()}
    assert torchrun({"train": trainings, "gradients": gradients, "out": str(folder)}, folder) == 0
    return Outcome(killed, kept, folder)


@pytest.mark.parametrize("name", TERMS)
def test_the_gradient_of_a_shared_batch_is_that_of_the_batch(tiny, outcome, name):
    """Every term of the loss, and BatchNorm, in float64: but for rounding there is no difference."""
    expected = two_processes.gradient(tiny(kind="snn", **TERMS[name]).__dict__)
    for rank in range(2):
        found = torch.load(outcome.folder / f"{name}-{rank}.pt", weights_only=True)
        assert set(found) == set(expected)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_train_to_the_result_of_one(tiny, tmp_path, outcome, name):
    """In float32, over two epochs: rounding differs, and grows a little."""
    one = train(tiny(**SGD, **TRAININGS[name]), tmp_path / "one")
    for alone, shared in zip(table(one.path), table(outcome.folder / name), strict=True):
        for column in alone:
            assert float(shared[column]) == pytest.approx(float(alone[column]), rel=1e-3), column
    weights, found = load_file(one.path / WEIGHTS_FILE), load_file(outcome.folder / name / WEIGHTS_FILE)
    for key, value in weights.items():
        torch.testing.assert_close(found[key], value, rtol=1e-2, atol=1e-3)


def test_a_run_that_lost_a_process_resumes_to_the_result_of_one_that_did_not(outcome):
    assert outcome.killed != 0
    assert len(outcome.kept.splitlines()) == 2  # the head and the first epoch
    for name in (WEIGHTS_FILE, METRICS_FILE, LAYERS_FILE, "model.json", "config.toml"):
        assert (outcome.folder / "killed" / name).read_bytes() == (outcome.folder / "snn" / name).read_bytes()


def test_shares_divide_every_batch(monkeypatch):
    for size in (1, 2, 3, 7):
        monkeypatch.setattr(distributed, "processes", lambda size=size: size)
        for count in range(12):
            parts = []
            for rank in range(size):
                monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
                parts += range(count)[distributed.share(count)]
            assert parts == list(range(count))


def test_a_rank_without_other_processes_is_the_first(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.first_process()


def test_processes_that_cannot_be_joined_are_one_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SpikeportError, match="WORLD_SIZE is 2, but the processes cannot be joined"):
        distributed.join(torch.device("cpu"))


def test_an_empty_environment_is_one_process(monkeypatch):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.setenv(name, "")
    assert distributed.first_process()
    distributed.join(torch.device("cpu"))
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK"])
def test_an_environment_of_other_text_is_one_error(monkeypatch, name):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, "two")
    with pytest.raises(SpikeportError, match=f"^{name} is 'two', no whole number; .* or unset {name}"):
        distributed.first_process()
    if name == "WORLD_SIZE":
        with pytest.raises(SpikeportError, match="WORLD_SIZE is 'two'"):
            distributed.join(torch.device("cpu"))


def test_a_single_value_of_all_processes_is_refused_as_torch_does(monkeypatch):
    monkeypatch.setattr(distributed, "processes", lambda: 2)
    monkeypatch.setattr(distributed, "summed", lambda own: own)
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    distributed.share_statistics(network)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network(torch.ones(1, 3, 1, 1))
    assert network(torch.rand(2, 3, 1, 1)).isfinite().all()
