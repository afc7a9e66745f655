"""The whole way once, as a user goes it: train both twins, export, simulate in Lava, report; then break things."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from spikeport import compile, report, simulate, to_nir, to_onnx, train
from spikeport.core import SpikeportError, TrainConfig, load_run
from spikeport.core.data import load_dataset
from spikeport.targets import check, differences
from spikeport.targets.loihi.qat import prepare_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory, lava):
    """Twins of half width that read digits, the SNN trained from its CNN and then in integers; exported, simulated."""
    folder = tmp_path_factory.mktemp("runs")
    common = {"width": 0.5, "schedule": "cosine", "patience": 0}
    train(TrainConfig(kind="cnn", epochs=3, lr=2e-3, **common), folder / "cnn")
    common |= {"kind": "snn", "tau": 1.25, "v_threshold": 0.5}
    train(TrainConfig(epochs=3, lr=2e-3, start=str(folder / "cnn"), **common), folder / "float")
    onwards = {"start": str(folder / "float"), "target": "loihi"}
    train(TrainConfig(epochs=1, lr=2e-4, **common, **onwards), folder / "snn", prepare=prepare_run)
    to_onnx(folder / "cnn")
    to_nir(folder / "snn")
    compile(folder / "snn")
    simulate(folder / "cnn", "onnx", samples=360)
    simulate(folder / "snn", samples=360, rasters=1)
    simulate(folder / "snn", engine="lava", samples=32)
    return folder


def test_both_twins_read_digits(runs):
    assert load_run(runs / "cnn").results["test_accuracy"] >= 0.95
    for run in ("float", "snn"):
        assert load_run(runs / run).results["test_accuracy"] >= 0.9


def test_fixed_engine_has_the_accuracy_of_quantisation_aware_training(runs):
    from spikeport.targets import SpikeRecord

    record = SpikeRecord.load(runs / "snn/loihi/fixed.npz")
    assert record.samples == 360
    assert record.accuracy == load_run(runs / "snn").results["test_accuracy"]
    assert sum(record.wraps.values()) == sum(record.saturations.values()) == 0


def test_fixed_engine_keeps_the_accuracy_of_the_float_network(runs):
    run = load_run(runs / "float")
    data = load_dataset("digits")
    images = torch.cat([data.train_images, data.test_images])
    labels = torch.cat([data.train_labels, data.test_labels])
    with torch.no_grad():
        outputs = torch.cat([run.model()(x) for x in run.data.normalise(images).split(128)])
    accuracy = float((outputs.argmax(1) == labels).double().mean())
    compile(runs / "float")
    record = simulate(runs / "float", x=run.data.normalise(images).numpy(), labels=labels.numpy())
    assert record.samples == 1797
    assert abs(record.accuracy - accuracy) <= 0.02
    assert sum(record.wraps.values()) == sum(record.saturations.values()) == 0


def test_lava_equals_the_fixed_engine_in_every_layer_sample_and_step(runs):
    from spikeport.targets import SpikeRecord

    fixed, lava = (SpikeRecord.load(runs / f"snn/loihi/{engine}.npz") for engine in ("fixed", "lava"))
    assert lava.samples == 32
    assert differences(fixed, lava) == []
    assert sum(int(s.sum()) for s in lava.spikes.values()) > 0


def test_stock_lava_convolutions_give_the_same(runs, tmp_path):
    from spikeport.targets import SpikeRecord

    out = tmp_path / "stock.npz"
    record = simulate(runs / "snn", engine="lava", samples=1, convolution="stock", out=out)
    assert record.details["convolution"] == "stock"
    assert differences(SpikeRecord.load(runs / "snn/loihi/fixed.npz"), record) == []


def test_the_report_sets_the_three_witnesses_side_by_side(runs, tmp_path):
    written = report(runs / "snn", runs / "cnn", tmp_path / "report")
    content = json.loads((tmp_path / "report/report.json").read_text())
    assert set(content["totals"]) == {"training", "fixed", "lava"}
    assert content["engines"]["agreement"]["differences"] == []
    assert content["summary"]["mean_rate"] < content["summary"]["rate_goal"]
    assert content["fit"]["fits"] is True
    for row in content["rows"]:
        assert set(row["acs"]) >= {"fixed", "lava"}
    # Training and target count the same network: their sums are close, and their difference is spikes.
    assert content["totals"]["fixed"]["acs"] == pytest.approx(content["totals"]["training"]["acs"], rel=0.1)
    page = written.page.read_text()
    assert "agree integer for integer" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert "src=" not in page


def test_one_record_alone_makes_a_report(runs, tmp_path):
    written = report(runs / "snn/loihi/fixed.npz", out=tmp_path / "report")
    assert "training" not in written.content["totals"]
    assert written.content["totals"]["fixed"]["acs"] > 0


def test_check_says_what_each_chip_lacks(runs):
    assert check(runs / "snn").fits
    assert not check(runs / "snn", chip="loihi1").fits


def test_a_record_of_other_samples_or_of_another_program_is_refused(runs, tmp_path):
    from dataclasses import replace

    from spikeport.targets import SpikeRecord

    folder = tmp_path / "snn"
    (folder / "loihi").mkdir(parents=True)
    for name in ("model.json", "weights.safetensors", "config.toml", "loihi/program.npz"):
        (folder / name).write_bytes((runs / "snn" / name).read_bytes())
    record = SpikeRecord.load(runs / "snn/loihi/fixed.npz")
    replace(record, labels=np.roll(record.labels, 1)).save(folder / "loihi/fixed.npz")
    with pytest.raises(SpikeportError, match="record is of other samples"):
        report(folder)
    replace(record, program="0" * 64).save(folder / "loihi/fixed.npz")
    with pytest.raises(SpikeportError, match="another program"):
        report(folder)
    assert not (folder / "report").exists()


def test_without_lava_the_remedy_is_named(runs, tmp_path):
    env = os.environ | {"SPIKEPORT_LAVA_HOME": str(tmp_path / "nothing")}
    command = [sys.executable, "-m", "spikeport", "simulate", str(runs / "snn"), "--engine", "lava", "--overwrite"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "spikeport lava setup" in done.stderr
    assert "Traceback" not in done.stderr
