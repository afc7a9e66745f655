"""The settings of a run and their file."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikeport.core import SpikeportError, TrainConfig
from spikeport.core.config import OPTIMIZERS, PRECISIONS, SCHEDULES
from spikeport.core.data.augment import AUGMENTATIONS
from spikeport.core.models import FORMS, KINDS

positive = st.floats(1e-12, 1e6)
whole = st.integers(1, 10**6)
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)

configs = st.builds(
    TrainConfig,
    model=words,
    kind=st.sampled_from(KINDS),
    dataset=words,
    data=st.none() | words,
    epochs=whole,
    batch_size=whole,
    lr=positive,
    optimizer=st.sampled_from(OPTIMIZERS),
    schedule=st.sampled_from(SCHEDULES),
    milestones=st.lists(whole).map(tuple),
    gamma=positive,
    keep=st.none() | st.lists(st.integers(2, 9), unique=True).map(tuple),
    width=positive,
    spiking=st.sampled_from(FORMS),
    time_steps=whole,
    seed=st.integers(0, 2**32 - 1),
    precision=st.sampled_from(PRECISIONS),
    compile=st.booleans(),
    augment=st.lists(st.sampled_from(AUGMENTATIONS), unique=True).map(tuple),
    teacher=st.none() | words,
    label_smoothing=st.floats(0, 1),
)


@given(configs)
def test_settings_survive_their_file(tmp_path_factory, config):
    file = tmp_path_factory.getbasetemp() / "config.toml"
    config.save(file)
    assert TrainConfig(**TrainConfig.read(file)) == config


def test_a_setting_that_is_none_is_left_out_of_the_file(tmp_path):
    TrainConfig(data=None, surrogate="sigmoid").save(tmp_path / "config.toml")
    names = set(TrainConfig.read(tmp_path / "config.toml"))
    assert names == {f.name for f in dataclasses.fields(TrainConfig) if f.default is not None}


def test_an_unknown_setting_is_named_with_the_known_ones(tmp_path):
    (tmp_path / "config.toml").write_text("epoch = 3\n")
    with pytest.raises(SpikeportError, match="unknown setting 'epoch'; known: .*epochs"):
        TrainConfig.read(tmp_path / "config.toml")


@pytest.mark.parametrize(
    "content",
    [b"epochs = ", b"epochs == 3", b"\xff\xfe", b"[epochs", b"lr = 1" + b"0" * 5000, b"keep = " + b"[" * 20000],
    ids=["nothing", "equals", "bytes", "bracket", "digits", "depth"],
)
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "config.toml").write_bytes(content)
    with pytest.raises(SpikeportError, match="config.toml: not readable as TOML"):
        TrainConfig.read(tmp_path / "config.toml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SpikeportError, match="none.toml: no such file"):
        TrainConfig.read(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        ("optimizer 'lion' is not one of adam, sgd", {"optimizer": "lion"}),
        ("schedule 'linear' is not one of", {"schedule": "linear"}),
        ("precision 'fp8' is not one of", {"precision": "fp8"}),
        (
            "target 'loihi' trains with cross-entropy, a teacher and rate_weight; leave out another loss",
            {"target": "loihi", "loss": "grad-cam"},
        ),
        ("target 'onnx' is not one of loihi", {"target": "onnx"}),
        ("loss 'hinge' is not one of cross-entropy, temporal, gradient-aware, grad-cam", {"loss": "hinge"}),
        ("augment 'mixup' is not one of crop, flip, cutout", {"augment": ("crop", "mixup")}),
        ("train_images is 0; at least 1", {"train_images": 0}),
        ("validation is 0.0; it must lie between 0 and 1", {"validation": 0.0}),
        ("validation is 1; it must lie between", {"validation": 1}),
        ("ema is 1.5; it must lie within 0..1", {"ema": 1.5}),
        ("rate_goal is -1; it must lie within", {"rate_goal": -1}),
        ("clip is -1; it must not be negative", {"clip": -1}),
        ("warmup is 5 of 5 epochs, so lr is never reached; lower warmup", {"warmup": 5, "epochs": 5}),
        ("temperature is 0; it must be positive", {"temperature": 0}),
        ("leave out --compile", {"loss": "gradient-aware", "compile": True}),
        ("compile is 1; expected", {"compile": 1}),
        ("epochs is 0; at least 1", {"epochs": 0}),
        ("batch_size is 0; at least 1", {"batch_size": 0}),
        ("lr is 0; it must be positive", {"lr": 0}),
        ("lr is 1e.300; at most 3.4028234e.38", {"lr": 1e300}),
        ("batch_size is 100000000000000000000; at most 2147483647", {"batch_size": 10**20}),
        (r"milestones are \[5, -3\]; epochs are counted from 1 on", {"milestones": (5, -3)}),
        (r"data is '/tmp/x.udcff', which is no UTF-8", {"data": "/tmp/x\udcff"}),
        ("lr is nan; expected a finite number", {"lr": float("nan")}),
        ("lr is '0.1'; expected a finite number", {"lr": "0.1"}),
        ("gamma is -1", {"gamma": -1}),
        ("momentum is -0.1", {"momentum": -0.1}),
        ("weight_decay is -1", {"weight_decay": -1}),
        ("patience is -1", {"patience": -1}),
        ("seed is -1", {"seed": -1}),
        ("epochs is 1.5; expected a whole number", {"epochs": 1.5}),
        ("epochs is '3'; expected a whole number", {"epochs": "3"}),
        ("epochs is True; expected a whole number", {"epochs": True}),
        (r"keep is \('4', 6\); expected a list of a whole number", {"keep": ["4", 6]}),
        ("milestones is 50; expected a list", {"milestones": 50}),
        ("model is 3; expected text", {"model": 3}),
    ],
)
def test_a_bad_setting_is_named(message, settings):
    with pytest.raises(SpikeportError, match=message):
        TrainConfig(**settings)


def test_a_list_from_a_file_becomes_a_tuple():
    assert TrainConfig(keep=[4, 6], milestones=[1]) == TrainConfig(keep=(4, 6), milestones=(1,))


def test_a_number_no_float_can_hold_is_refused():
    with pytest.raises(SpikeportError, match="lr is 10*; expected a finite number"):
        TrainConfig(lr=10**400)


def test_paths_and_numpys_numbers_are_taken(tmp_path):
    config = TrainConfig(teacher=tmp_path, data=Path("x"), epochs=np.int64(3), lr=np.float32(0.5), keep=[4])
    assert (config.teacher, config.data, config.epochs, config.lr) == (str(tmp_path), "x", 3, 0.5)
    assert type(config.epochs) is int
    with pytest.raises(SpikeportError, match="lr is nan; expected a finite number"):
        TrainConfig(lr=np.float64("nan"))
