"""spikeport export pkg.module:factory: a network of the user's own, from the shell."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from spikeport import convert

MODULE = """
import torch
from torch import nn
from spikeport import convert
from spikingjelly.activation_based import layer, neuron

def vgg():
    torch.manual_seed(0)
    return nn.Sequential(
        layer.Conv2d(1, 4, 3, padding=1), layer.BatchNorm2d(4), neuron.LIFNode(), layer.MaxPool2d(2),
        layer.Flatten(), layer.Linear(4 * 16, 3),
    )

def cnn():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))

def twin():
    return convert(cnn(), time_steps=4, v_threshold=0.2)

def silent():
    return nn.Sequential(layer.Conv2d(1, 4, 3), neuron.LIFNode(v_threshold=9.0), layer.Flatten(), layer.Linear(144, 3))

def broken():
    raise RuntimeError("no such luck")

def number():
    return 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mynets.py").write_text(MODULE)
    x = np.random.default_rng(0).normal(size=(6, 1, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", np.zeros(6, np.int64))
    cnn = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    torch.save(cnn.state_dict(), tmp_path / "cnn.pt")
    torch.save(convert(cnn, time_steps=4, v_threshold=0.2).state_dict(), tmp_path / "twin.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # a factory's folder is put there
    yield tmp_path
    sys.modules.pop("mynets", None)


def test_a_factory_goes_to_loihi_and_onnx(folder, works):
    assert "mynets:vgg on Loihi 2" in works("check", "mynets:vgg", "--calibration", "x.npy", "--time-steps", "4")
    assert not (folder / "nir").exists()
    options = ("--calibration", "x.npy", "--time-steps", "4", "--input-shape", "1,8,8", "--out", "exported")
    command = [sys.executable, "-m", "spikeport", "export", "mynets:vgg", "--target", "loihi", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the model as spikingjelly runs it (float64): agrees" in done.stdout
    out = works("simulate", "exported/loihi/program.npz", "--input", "x.npy", "--labels", "y.npy")
    assert "6 samples, 4 steps" in out
    record = ("--input", "x.npy", "--labels", "y.npy", "--network", "mynets:vgg", "--overwrite")
    assert "accuracy float" in works("simulate", "exported/loihi/program.npz", *record)
    out = works("report", "exported", "--network", "mynets:vgg", "--input", "x.npy")
    assert "AC training" in out
    assert "SNN: " in out
    assert (folder / "exported/report/index.html").exists()
    works("export", "mynets:cnn", "--target", "onnx", "--calibration", "x.npy", "--out", "cnn")
    assert (folder / "cnn/onnx/model.onnx").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("mynets:vgg", "--time-steps", "4"), "Sequential: a model that is no run needs samples (--calibration X.npy)"),
        (("mynets:vgg", "--dt", "1e-3"), "--dt belongs to foreign NIR files"),
        (("other.nir", "--weights", "w.pt"), "--weights belongs to pkg.module:factory, not to other.nir"),
    ],
)
def test_what_a_check_of_a_factory_lacks_is_named(folder, refused, extra, message):
    assert message in refused("check", *extra)


def test_a_report_of_a_network_of_ones_own_with_its_cnn(folder, works, refused):
    options = ("--calibration", "x.npy", "--target", "loihi", "--out", "exported")
    works("export", "mynets:twin", *options, "--weights", "twin.pt")
    works("simulate", "exported/loihi/program.npz", "--input", "x.npy")
    command = ("report", "exported", "--network", "mynets:twin", "--input", "x.npy", "--against", "mynets:cnn")
    out = works(*command, "--weights", "twin.pt", "--against-weights", "cnn.pt")
    assert re.search(r"^CNN: [\d,.]+ nJ per image$", out, re.M)
    assert "compiled from another network" in refused(*command, "--overwrite")
    assert "--weights belongs to --network" in refused("report", "exported", "--weights", "twin.pt")
    assert "belong together" in refused("report", "exported", "--network", "mynets:twin")
    record = ("--input", "x.npy", "--overwrite")
    assert "--weights belongs to" in refused("simulate", "exported/loihi/program.npz", *record, "--weights", "twin.pt")
    assert "--against-weights belongs to" in refused("report", "exported", "--against-weights", "cnn.pt")


def test_layers_that_never_fired_are_named_and_what_lies_beside_is_not_replaced(folder, works, refused):
    command = ("export", "mynets:silent", "--target", "loihi", "--calibration", "x.npy", "--time-steps", "4", "--out")
    assert "fired on none of these samples, which says nothing of them: 1" in works(*command, "exported")
    for file in ("nir/certificate.json", "loihi/compatibility.json", "loihi/model.net"):
        beside = folder / "other" / file
        beside.parent.mkdir(parents=True)
        beside.write_text("of another network")
        assert f"{beside.name} already exists; it is of another export there" in refused(*command, "other")
        shutil.rmtree(folder / "other")


@pytest.mark.parametrize(
    ("source", "extra", "message"),
    [
        ("mynets:broken", (), "mynets:broken() failed: RuntimeError: no such luck"),
        ("mynets:number", (), "gave a int, not a torch.nn.Module"),
        ("mynets:nothing", (), "expected pkg.module:factory"),
        ("nowhere:vgg", (), "expected pkg.module:factory"),
        ("mynets:vgg", ("--weights", "other.pt"), "other.pt: not weights of Sequential"),
        ("mynets:vgg", ("--weights", "none.pt"), "none.pt: no such file"),
        ("mynets:vgg", ("--weights", "x.npy"), "); write model.state_dict() with torch.save or safetensors"),
        ("mynets:vgg", ("--input-shape", "3,32,32"), "--input-shape 3,32,32 is not the shape of the samples"),
        ("mynets:cnn", (), "no spiking neurons"),
    ],
)
def test_what_is_wrong_with_a_factory_is_named(folder, refused, source, extra, message):
    torch.save({"weight": torch.zeros(2)}, folder / "other.pt")
    options = ("--target", "nir", "--calibration", "x.npy", "--time-steps", "4", "--out", "exported")
    assert message in refused("export", source, *options, *extra)


@pytest.mark.parametrize(
    ("source", "extra", "message"),
    [
        ("mynets:vgg", ("--input", "foo"), "unknown input 'foo'; available: graded, host-current\n"),
        ("mynets:vgg", ("--input", "spikes"), "unknown input 'spikes'; available: graded, host-current\n"),
        ("mynets:vgg", ("--chip", "loihi9"), "unknown chip 'loihi9'"),
        ("mynets:vgg", ("--net", "--input", "host-current"), "no place for what the host computes"),
        ("mynets:vgg", ("--dt", "1e-3"), "--dt belongs to foreign NIR files"),
        (":vgg", (), "expected pkg.module:factory"),
    ],
)
def test_nothing_is_written_where_the_network_does_not_compile(folder, refused, source, extra, message):
    options = ("--target", "loihi", "--calibration", "x.npy", "--time-steps", "4", "--out", "exported")
    assert message in refused("export", source, *options, *extra)
