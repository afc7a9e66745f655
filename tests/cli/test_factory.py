"""spikeport export pkg.module:factory: a network of the user's own, from the shell."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

MODULE = """
import torch
from torch import nn
from spikingjelly.activation_based import layer, neuron

def vgg():
    torch.manual_seed(0)
    return nn.Sequential(
        layer.Conv2d(1, 4, 3, padding=1), layer.BatchNorm2d(4), neuron.LIFNode(), layer.MaxPool2d(2),
        layer.Flatten(), layer.Linear(4 * 16, 3),
    )

def cnn():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))

def broken():
    raise RuntimeError("no such luck")

def number():
    return 3
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mynets.py").write_text(MODULE)
    x = np.random.default_rng(0).normal(size=(6, 1, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", np.zeros(6, np.int64))
    return tmp_path


def spikeport(folder, *arguments):
    command = [sys.executable, "-m", "spikeport", *arguments]
    return subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True)


def test_a_factory_goes_to_loihi_and_onnx(folder):
    options = ("--calibration", "x.npy", "--time-steps", "4", "--input-shape", "1,8,8", "--out", "exported")
    done = spikeport(folder, "export", "mynets:vgg", "--target", "loihi", *options)
    assert done.returncode == 0, done.stderr
    assert "the model as spikingjelly runs it (float64): agrees" in done.stdout
    run = ("simulate", "exported/loihi/program.npz", "--input", "x.npy", "--labels", "y.npy")
    done = spikeport(folder, *run)
    assert done.returncode == 0, done.stderr
    assert "6 samples, 4 steps" in done.stdout
    options = ("--target", "onnx", "--calibration", "x.npy", "--out", "cnn")
    done = spikeport(folder, "export", "mynets:cnn", *options)
    assert done.returncode == 0, done.stderr
    assert (folder / "cnn/onnx/model.onnx").exists()


def test_what_is_wrong_with_a_factory_is_named(folder):
    torch.save({"weight": torch.zeros(2)}, folder / "other.pt")
    options = ("--target", "nir", "--calibration", "x.npy", "--time-steps", "4", "--out", "exported")
    for source, extra, message in (
        ("mynets:broken", (), "mynets:broken() failed: RuntimeError: no such luck"),
        ("mynets:number", (), "gave a int, not a torch.nn.Module"),
        ("mynets:nothing", (), "expected pkg.module:factory"),
        ("nowhere:vgg", (), "expected pkg.module:factory"),
        ("mynets:vgg", ("--weights", "other.pt"), "other.pt: not weights of Sequential"),
        ("mynets:vgg", ("--weights", "none.pt"), "none.pt: no such file"),
        ("mynets:vgg", ("--weights", "x.npy"), "); write model.state_dict() with torch.save or safetensors"),
        ("mynets:vgg", ("--input-shape", "3,32,32"), "--input-shape 3,32,32 is not the shape of the samples"),
        ("mynets:cnn", (), "no spiking neurons"),
    ):
        done = spikeport(folder, "export", source, *options, *extra)
        assert done.returncode == 2, (source, done.stdout, done.stderr)
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert not (folder / "exported").exists()


def test_nothing_is_written_where_the_network_does_not_compile(folder):
    options = ("--target", "loihi", "--calibration", "x.npy", "--time-steps", "4", "--out", "exported")
    for source, extra, message in (
        ("mynets:vgg", ("--input", "foo"), "unknown input 'foo'; available: graded, host-current\n"),
        ("mynets:vgg", ("--input", "spikes"), "unknown input 'spikes'; available: graded, host-current\n"),
        ("mynets:vgg", ("--chip", "loihi9"), "unknown chip 'loihi9'"),
        ("mynets:vgg", ("--net", "--input", "host-current"), "no place for what the host computes"),
        ("mynets:vgg", ("--dt", "1e-3"), "--dt belongs to foreign NIR files"),
        (":vgg", (), "expected pkg.module:factory"),
    ):
        done = spikeport(folder, "export", source, *options, *extra)
        assert done.returncode == 2, (source, done.stdout, done.stderr)
        assert message in done.stderr
    assert not (folder / "exported").exists()
