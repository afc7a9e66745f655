"""The run folder: opening one, and every way in which one can be unusable."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_digits
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from spikeport.core import ModelSpec, SpikeportError, Twin, load_run
from spikeport.core.runs import MODEL_FILE, SAMPLES_FILE, WEIGHTS_FILE, DataInfo, save_model, save_weights

SPEC = ModelSpec(twin=Twin("cnn"), in_channels=1, image_size=16, width=0.0625, keep=(4,))


def info() -> DataInfo:
    data = small_digits.load()
    return DataInfo(data.name, data.image_shape, data.mean, data.std, data.class_names)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder as training leaves it, without the training."""
    save_model(tmp_path / "run", SPEC, info(), {"test_accuracy": 0.5, "test_macro_f1": 0.4, "epochs": 3})
    save_weights(SPEC.build(seed=7), tmp_path / "run" / WEIGHTS_FILE)
    return tmp_path / "run"


def test_what_was_saved_is_loaded(folder):
    run = load_run(folder)
    assert (run.path, run.spec, run.data) == (folder, SPEC, info())
    assert run.results == {"test_accuracy": 0.5, "test_macro_f1": 0.4, "epochs": 3}
    assert run.kind == "cnn"


def test_the_model_has_the_saved_weights_and_is_in_evaluation_mode(folder):
    model = load_run(folder).model()
    expected = SPEC.build(seed=7).state_dict()
    assert not model.training
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_samples_are_the_first_normalised_test_images(folder):
    x, labels = load_run(folder).samples(5)
    data = small_digits.load()
    assert x.dtype == np.float32
    assert np.array_equal(x, data.normalise(data.test_images[:5]).numpy())
    assert labels.tolist() == data.test_labels[:5].tolist()


def test_no_normalised_pixel_exceeds_the_input_bound(folder):
    run = load_run(folder)
    extremes = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    assert run.data.normalise(extremes).abs().max().item() == pytest.approx(run.data.input_bound)


@pytest.mark.parametrize("count", [0, -1])
def test_zero_samples_are_refused(folder, count):
    with pytest.raises(SpikeportError, match=f"{count} samples asked for; at least 1"):
        load_run(folder).samples(count)


def test_a_data_set_that_is_gone_is_refused(folder):
    value = json.loads((folder / MODEL_FILE).read_text())
    value["data"] |= {"name": "cifar10", "folder": str(folder / "gone"), "image_shape": [3, 32, 32]}
    value["data"] |= {"mean": [0.5] * 3, "std": [0.2] * 3}
    (folder / MODEL_FILE).write_text(json.dumps(value))
    with pytest.raises(SpikeportError, match="gone.*no such file"):
        load_run(folder).samples(1)


def test_a_missing_folder_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(SpikeportError, match="no such run folder; `spikeport train --out .*none` makes one"):
        load_run(tmp_path / "none")


def test_a_file_is_no_run_folder(folder):
    with pytest.raises(SpikeportError, match="model.json: a file, and no run folder"):
        load_run(folder / MODEL_FILE)


def test_a_folder_without_a_model_file_is_refused(folder):
    (folder / MODEL_FILE).unlink()
    with pytest.raises(SpikeportError, match="no model.json, so this is not a run folder"):
        load_run(folder)


@given(data=st.data())
def test_a_truncated_model_file_is_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("run")
    save_model(folder, SPEC, info(), {"test_accuracy": 0.5, "test_macro_f1": 0.4})
    whole = (folder / MODEL_FILE).read_text().rstrip()
    (folder / MODEL_FILE).write_text(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(SpikeportError, match=r"model.json: not readable as JSON"):
        load_run(folder)


def without(value: dict, *path: str) -> dict:
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return value


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: [],
        lambda value: "text",
        lambda value: None,
        lambda value: without(value, "model"),
        lambda value: without(value, "data"),
        lambda value: without(value, "results"),
        lambda value: without(value, "data", "mean"),
        lambda value: without(value, "model", "twin"),
        lambda value: value | {"model": "squeezenet"},
        lambda value: value | {"model": value["model"] | {"twin": {"kind": "rnn"}}},
        lambda value: value | {"model": value["model"] | {"width": "wide"}},
        lambda value: value | {"model": value["model"] | {"colour": "red"}},
        lambda value: value | {"data": [1, 2]},
        lambda value: value | {"data": value["data"] | {"mean": [0.1, 0.2]}},
        lambda value: value | {"data": value["data"] | {"std": [0.0]}},
        lambda value: value | {"data": value["data"] | {"image_shape": 16}},
        lambda value: value | {"results": 3},
        lambda value: value | {"results": {}},
        lambda value: value | {"results": value["results"] | {"test_accuracy": "high"}},
        lambda value: value | {"results": value["results"] | {"epochs": None}},
    ],
)
def test_a_model_file_with_other_content_is_refused(folder, damage):
    (folder / MODEL_FILE).write_text(json.dumps(damage(json.loads((folder / MODEL_FILE).read_text()))))
    with pytest.raises(SpikeportError, match=r"model.json: not the description of a run .*train again"):
        load_run(folder)


def test_a_model_of_another_version_is_refused_by_name(folder):
    value = json.loads((folder / MODEL_FILE).read_text())
    value["model"]["name"] = "squeezenet-q"
    (folder / MODEL_FILE).write_text(json.dumps(value))
    with pytest.raises(SpikeportError, match=f"{MODEL_FILE}: unknown model 'squeezenet-q'"):
        load_run(folder).model()


def test_a_model_too_large_to_build_is_refused_by_the_name_of_its_file(folder):
    value = json.loads((folder / MODEL_FILE).read_text())
    value["model"]["width"] = 1e6
    (folder / MODEL_FILE).write_text(json.dumps(value))
    with pytest.raises(SpikeportError, match=f"{MODEL_FILE}: squeezenet-p of width 1e\\+06 "):
        load_run(folder).model()


def test_missing_weights_are_named(folder):
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(SpikeportError, match=f"{WEIGHTS_FILE}: no such file"):
        load_run(folder).model()


@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights_are_refused(folder, part):
    file = folder / WEIGHTS_FILE
    whole = file.read_bytes()
    file.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(SpikeportError, match=f"{WEIGHTS_FILE}: damaged or truncated"):
        load_run(folder).model()


@pytest.mark.parametrize("other", [{"width": 0.125}, {"keep": (4, 6)}, {"num_classes": 3}])
def test_weights_of_another_model_are_refused(folder, other):
    settings: dict[str, Any] = SPEC.__dict__ | other
    save_weights(ModelSpec(**settings).build(), folder / WEIGHTS_FILE)
    with pytest.raises(SpikeportError, match="weights of another model: .* first"):
        load_run(folder).model()


def test_weights_with_one_tensor_too_many_are_refused(folder):
    weights = load_file(folder / WEIGHTS_FILE)
    save_file(weights | {"stem.extra": torch.zeros(1)}, folder / WEIGHTS_FILE)
    with pytest.raises(SpikeportError, match="1 tensors are missing, unknown or of another shape, stem.extra first"):
        load_run(folder).model()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["stem.conv.weight", "classifier.conv.bias", "stem.bn.running_var"])
def test_weights_that_are_not_finite_are_refused_by_name(folder, bad, name):
    weights = load_file(folder / WEIGHTS_FILE)
    weights[name].view(-1)[-1] = bad
    save_file(weights, folder / WEIGHTS_FILE)
    with pytest.raises(SpikeportError, match=f"{name} holds NaN or infinity; train again"):
        load_run(folder).model()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("stem.conv.weight", torch.int8),
        ("stem.conv.weight", torch.bool),
        ("stem.conv.weight", torch.complex64),
        ("stem.conv.weight", torch.float8_e4m3fn),
        ("stem.bn.num_batches_tracked", torch.float32),
    ],
)
def test_weights_of_another_kind_of_number_are_refused_by_name(folder, name, dtype):
    weights = load_file(folder / WEIGHTS_FILE)
    save_file(weights | {name: weights[name].to(dtype)}, folder / WEIGHTS_FILE)
    with pytest.raises(SpikeportError, match=f"{WEIGHTS_FILE}: {name} is {dtype}, the model's torch.*; take what"):
        load_run(folder).model()


def test_weights_of_the_same_kind_of_number_are_cast(folder):
    weights = load_file(folder / WEIGHTS_FILE)
    other = {name: tensor.double() if tensor.is_floating_point() else tensor.int() for name, tensor in weights.items()}
    save_file(other, folder / WEIGHTS_FILE)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_run(folder).model().state_dict().items())
    other["stem.conv.weight"][0] = 1e300
    save_file(other, folder / WEIGHTS_FILE)
    with pytest.raises(SpikeportError, match="stem.conv.weight holds NaN or infinity"):
        load_run(folder).model()


def test_a_negative_variance_is_refused_by_name(folder):
    weights = load_file(folder / WEIGHTS_FILE)
    weights["stem.bn.running_var"][-1] = -1e-3
    save_file(weights, folder / WEIGHTS_FILE)
    with pytest.raises(SpikeportError, match=f"{WEIGHTS_FILE}: stem.bn.running_var holds a negative variance"):
        load_run(folder).model()


def test_a_run_can_carry_its_test_images(folder, tmp_path):
    run = load_run(folder)
    wanted, labels = run.samples(5)
    data = small_digits.load()
    np.savez(folder / SAMPLES_FILE, images=data.test_images[:5].numpy(), labels=data.test_labels[:5].numpy())
    away = replace(run, data=replace(run.data, name="cifar10", folder=str(tmp_path / "nowhere")))
    found, classes = away.samples(5)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(classes, labels)
    with pytest.raises(SpikeportError, match="6 samples asked for; this run carries 5 test images"):
        away.samples(6)
    np.savez(folder / SAMPLES_FILE, images=np.zeros((5, 3, 4, 4), np.uint8), labels=np.zeros(5, np.int64))
    with pytest.raises(SpikeportError, match="the run takes"):
        away.samples(1)
    (folder / SAMPLES_FILE).write_bytes(b"no archive")
    with pytest.raises(SpikeportError, match="not test images of a run"):
        away.samples(1)
