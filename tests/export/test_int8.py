"""The 8-bit form of a CNN: QDQ, weights per channel, calibrated on real images, run by ONNX Runtime."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from spikeport import simulate, to_onnx, train
from spikeport.core import SpikeportError, load_run
from spikeport.export import Certificate
from spikeport.export.onnx_model import int8_path, quantise, run_onnx


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("int8") / "cnn"
    train(tiny(kind="cnn", width=0.25, epochs=4, lr=5e-3), folder)
    to_onnx(folder, int8=True)
    return load_run(folder)


def test_weights_are_signed_per_channel_and_activations_unsigned(run):
    graph = onnx.load(int8_path(run.path / "onnx/model.onnx")).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {n: v for n, v in values.items() if v.dtype == np.int8 and v.ndim == 4}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(weights) == len(convolutions) > 3
    scales = {node.input[0]: values[node.input[1]] for node in graph.node if node.op_type == "DequantizeLinear"}
    for name, weight in weights.items():
        assert scales[name].shape == weight.shape[:1]
    zeros = [values[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert zeros
    assert {zero.dtype for zero in zeros} == {np.dtype(np.uint8)}


def test_both_forms_read_the_same_images_alike(run):
    x = run.samples(40)[0]
    exact, rounded = (run_onnx(path, x) for path in both(run))
    assert 0 < np.abs(exact - rounded).max() < 0.5 * np.abs(exact).max()
    assert (exact.argmax(1) == rounded.argmax(1)).mean() >= 0.8


def test_the_certificate_says_how_many_classes_are_the_same(run, tmp_path):
    assert 0.9 <= Certificate.load(run.path / "onnx/model.onnx").int8_agreement <= 1

    class Scaled(nn.Module):
        """Of one channel alone, whose values are lost beside those of the other."""

        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 3, 3, bias=False)
            with torch.no_grad():
                self.first.weight.copy_(torch.tensor([[1000.0, 0.0], [0.0, 1.0]]).view(2, 2, 1, 1))
                self.second.weight[:, 0] = 0

        def forward(self, x):
            return self.second(self.first(x).relu()).mean((2, 3))

    x = torch.randn(64, 2, 6, 6)
    with pytest.warns(RuntimeWarning, match="gives another class than float32 to .*% of the images it was calibrated"):
        written = to_onnx(Scaled(), tmp_path / "model.onnx", x, int8=True)
    assert written.int8_agreement < 0.9
    assert Certificate.load(tmp_path / "model.onnx") == written


def both(run):
    path = run.path / "onnx/model.onnx"
    return path, int8_path(path)


def test_the_record_holds_both(run):
    record = simulate(run.path, "onnx", samples=40)
    x, labels = run.samples(40)
    exact, rounded = (run_onnx(path, x).argmax(1) for path in both(run))
    assert record.accuracy == pytest.approx((exact == labels).mean())
    assert record.int8["accuracy"] == pytest.approx((rounded == labels).mean())
    assert record.int8["agreement"] == pytest.approx((rounded == exact).mean())
    assert record.int8["latency_ms"] > 0


def test_a_new_export_without_it_leaves_no_old_one(run, tmp_path):
    int8_path(tmp_path / "model.onnx").write_bytes(b"of an earlier export")
    to_onnx(run, tmp_path / "model.onnx", samples=run.samples(2)[0])
    assert not int8_path(tmp_path / "model.onnx").exists()


def test_a_damaged_file_is_refused_and_leaves_nothing(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(SpikeportError, match="cannot be quantised to int8"):
        quantise(tmp_path / "model.onnx", np.zeros((2, 1, 4, 4)))
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
