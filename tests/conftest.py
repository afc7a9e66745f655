"""What all tests share: hypothesis profiles, and a network that trains in a second."""

import functools
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import small_digits
import torch
from hypothesis import settings

from spikeport.core import TrainConfig
from spikeport.core.data import DATASETS

settings.register_profile("default", deadline=None, derandomize=True, max_examples=25)
settings.register_profile("long", deadline=None, max_examples=250)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

#: Files of a minute or more go first: begun last, one of them lets the other processes wait for its end. test_errors.py
#: comes later, for it reads the runs that test_cli.py trains.
LONGEST = ("test_packaging.py", "test_whole_way.py", "test_cli.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Networks this small lose far more than they gain by waiting for a second thread."""
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """What a test draws does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _onnx_operators_once() -> Iterator[None]:
    """The ONNX exporter reads the source of its thousand operators at every export, for most of a second."""
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("onnxscript"):  # `make gpu` does without
            from onnxscript._framework_apis import torch_2_5 as exporter

            patch.setattr(exporter, "get_torchlib_ops", functools.cache(exporter.get_torchlib_ops))
        yield


@pytest.fixture(scope="session", autouse=True)
def _small_digits() -> Iterator[None]:
    small_digits.register()
    yield
    del DATASETS[small_digits.NAME]


def _tiny(**settings: Any) -> TrainConfig:
    small = {"dataset": small_digits.NAME, "keep": (4,), "width": 0.0625, "epochs": 2, "schedule": "constant"}
    return TrainConfig(**(small | settings))


@pytest.fixture(scope="session")
def tiny() -> Any:
    """Settings of a tiny network on a few of the digits; keyword arguments replace some."""
    return _tiny


@pytest.fixture(scope="session")
def lava() -> Path:
    """The Lava environment's Python; builds the environment where it is not ready."""
    from spikeport.targets.loihi.lava import environment  # the kernels are tested where its packages are not

    if not environment.status().ready:
        environment.setup()
    return environment.require()
