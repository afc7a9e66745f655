"""The CNN in ONNX: equal in ONNX Runtime, at any batch size."""

import copy

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import layer
from torch import nn

from spikeport.core import LIF, CheckFailed, SpikeportError
from spikeport.core.models import ModelSpec, Twin
from spikeport.export import to_onnx
from spikeport.export.onnx_model import open_onnx, run_onnx, verify_onnx


@pytest.fixture(scope="module")
def model():
    return ModelSpec("squeezenet-p", Twin(kind="cnn"), width=0.125).build().eval()


@pytest.fixture(scope="module")
def x():
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)).numpy()


@pytest.fixture(scope="module")
def file(model, x, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    assert to_onnx(model, path, x).witnesses[0].status == "agrees"
    return path


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_logits_equal_torch_at_any_batch_size(model, x, file, batch):
    with torch.no_grad():
        expected = model(torch.from_numpy(x[:batch])).numpy()
    np.testing.assert_allclose(run_onnx(file, x[:batch]), expected, atol=1e-4)


def test_certificate_lies_beside_the_file(file):
    assert (file.parent / "certificate.json").exists()


def test_a_file_that_differs_is_an_error_and_leaves_nothing(model, x, tmp_path, monkeypatch):
    monkeypatch.setattr("spikeport.export.onnx_model.run_onnx", lambda path, x: np.ones((len(x), 10), np.float32))
    with pytest.raises(CheckFailed, match="onnxruntime .* differs from the model"):
        to_onnx(model, tmp_path / "model.onnx", x)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_any_precision_become_float32_in_the_file(x, tmp_path, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(196, 2)).to(dtype)
    assert to_onnx(model, tmp_path / "model.onnx", x).passed
    assert model[0].weight.dtype == dtype, "the user's model stays as it is"
    expected = copy.deepcopy(model).float()(torch.from_numpy(x)).detach()
    np.testing.assert_allclose(run_onnx(tmp_path / "model.onnx", x), expected, atol=1e-5)


def test_the_certificate_of_another_file_is_not_replaced(model, x, tmp_path):
    (tmp_path / "certificate.json").write_text("{}")
    with pytest.raises(SpikeportError, match="certificate.json already exists; it is of another export there"):
        to_onnx(model, tmp_path / "model.onnx", x)
    assert to_onnx(model, tmp_path / "model.onnx", x, overwrite=True).passed


@pytest.mark.parametrize(("error", "status"), [(0.9e-4, "agrees"), (1.1e-4, "differs")])
def test_logits_agree_within_1e_4(model, x, file, monkeypatch, error, status):
    with torch.no_grad():
        off = model(torch.from_numpy(np.resize(x, (2 * len(x) + 1, *x.shape[1:])))).double().numpy() + error
    monkeypatch.setattr("spikeport.export.onnx_model.run_onnx", lambda path, x: off[: len(x)])
    (witness,) = verify_onnx(file, "model.onnx", model, torch.from_numpy(x)).witnesses
    assert witness.status == status


class Louder(nn.Module):
    def forward(self, y):
        return 1e5 * y


def test_the_limit_grows_with_the_logits(model, x, file, monkeypatch):
    """A sum of large terms is rounded by more."""
    with torch.no_grad():
        off = model(torch.from_numpy(np.resize(x, (2 * len(x) + 1, *x.shape[1:])))).double().numpy() * (1 + 1e-5)
    monkeypatch.setattr("spikeport.export.onnx_model.run_onnx", lambda path, x: 1e5 * off[: len(x)])
    louder = nn.Sequential(model, Louder()).eval()
    (witness,) = verify_onnx(file, "model.onnx", louder, torch.from_numpy(x)).witnesses
    assert witness.output_error > 1e-2
    assert witness.status == "agrees"


def test_one_number_is_no_sample(model, tmp_path):
    with pytest.raises(SpikeportError, match="the samples are one number"):
        to_onnx(model, tmp_path / "model.onnx", 5.0)


def test_damaged_and_missing_files_are_named(file, tmp_path):
    (tmp_path / "cut.onnx").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(SpikeportError, match="damaged or not an ONNX model"):
        open_onnx(tmp_path / "cut.onnx")
    with pytest.raises(SpikeportError, match="no such file"):
        open_onnx(tmp_path / "none.onnx")


def test_existing_files_stay_unless_asked(file, model, x):
    with pytest.raises(SpikeportError, match="already exists"):
        to_onnx(model, file, x)


def test_a_forward_that_looks_at_the_number_of_samples_is_found_out(tmp_path):
    odd = Odd(lambda y: y * (2 if len(y) > 3 else 1)).eval()
    with pytest.raises((SpikeportError, CheckFailed), match="any number of samples|the data nor|differ"):
        to_onnx(odd, tmp_path / "model.onnx", torch.randn(2, 8))
    assert list(tmp_path.iterdir()) == []


class Odd(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.linear = function, nn.Linear(8, 2)

    def forward(self, x):
        return self.function(self.linear(x))


def test_what_has_no_onnx_form_is_named_in_one_error(tmp_path, capfd):
    broken = nn.Sequential(nn.Linear(8, 2))
    nn.init.constant_(broken[0].weight, float("nan"))
    for message, model in (
        ("1 .LIF.: a spiking network has no ONNX form", nn.Sequential(nn.Linear(8, 2), LIF(constant_input=True))),
        ("0 .Linear.: a spiking network has no ONNX form", nn.Sequential(layer.Linear(8, 2))),
        ("0.weight holds NaN", broken),
        ("gives a dict; only one tensor", Odd(lambda y: {"out": y})),
        ("must take any number of samples", Odd(lambda y: y.view(3, 2))),
        (r"gives a tensor of shape \[2, 2\]", Odd(lambda y: y[:2])),
        ("depend neither on the data", Odd(lambda y: y * 2 if y.sum() > 3 else y)),
    ):
        with pytest.raises(SpikeportError, match=message):
            to_onnx(model, tmp_path / "model.onnx", torch.ones(3, 8))
    assert capfd.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []


def test_the_users_model_stays_in_its_mode(tmp_path):
    model = nn.Sequential(nn.Linear(8, 2))
    to_onnx(model, tmp_path / "model.onnx", [[1.0] * 8])
    assert model.training
