"""The trained twins that ship: they load without their data set, read their images, and run on the chip as trained."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from spikeport.commands.demo import CARRIED_SAMPLES, PRETRAINED, find_pretrained, take
from spikeport.core import SpikeportError, load_run, train
from spikeport.export import to_nir
from spikeport.targets import compile, simulate
from spikeport.targets.loihi.chips import CHIPS
from spikeport.targets.loihi.mapping import map_program
from spikeport.targets.loihi.qat import prepare_run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def taken(tmp_path):
    take(ROOT / PRETRAINED, tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", ["cnn", "snn"])
def test_they_read_the_images_they_carry(taken, kind):
    run = load_run(taken / kind)
    assert run.kind == kind
    assert run.data.folder is None
    x, labels = run.samples(CARRIED_SAMPLES)
    model = run.model() if kind == "cnn" else prepare_run(run.model(), run.data).eval()
    with torch.no_grad():
        accuracy = float((model(torch.from_numpy(x)).argmax(1).numpy() == labels).mean())
    # Of 64 images, three standard deviations are 0.17 at an accuracy of 0.7.
    assert accuracy >= run.results["accuracy"] - 0.17


def test_the_snn_runs_on_the_chip_as_it_was_trained(taken):
    run = load_run(taken / "snn")
    to_nir(run, samples=run.samples(4)[0])  # few: to verify all that it carries would take a minute
    program = compile(taken / "snn")
    record = simulate(taken / "snn", samples=16)
    with torch.no_grad():
        trained = prepare_run(run.model(), run.data).eval()(torch.from_numpy(run.samples(16)[0]))
    np.testing.assert_array_equal(trained.numpy(), record.outputs.astype(np.float32))
    cores = {chip.name: len(map_program(program, chip).cores) for chip in CHIPS.values()}
    assert cores == {"loihi1": 713, "loihi2": 42}  # as in docs/targets.md


def test_they_are_found_in_a_checkout_only(monkeypatch, tmp_path):
    assert find_pretrained().resolve() == ROOT / PRETRAINED
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("spikeport.__file__", str(tmp_path / "site-packages/spikeport/__init__.py"))
    with pytest.raises(SpikeportError, match="not here; run this in a checkout of spikeport"):
        find_pretrained()


def test_a_run_is_packed_to_travel_without_its_data(tiny, tmp_path):
    specification = importlib.util.spec_from_file_location("pack", ROOT / "examples/pretrained/pack.py")
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    run = train(tiny(kind="cnn"), tmp_path / "run")
    script.pack(run.path, tmp_path / "packed", 5)
    packed = load_run(tmp_path / "packed")
    assert (packed.spec, packed.results["accuracy"]) == (run.spec, run.results["test_accuracy"])
    np.testing.assert_array_equal(packed.samples(5)[0], run.samples(5)[0])
    with pytest.raises(SpikeportError, match="carries 5 test images"):
        packed.samples(6)
