"""One LIF layer through the kernels and through the PyTorch reference, for the tests of this folder."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from spikeport.core import kernels, lif
from spikeport.core.kernels import cpu

Layer = Callable[..., tuple[Tensor, Tensor]]


def _reference(
    x: Tensor, state: Tensor | None = None, *, time_steps: int | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """``lif`` by ``lif_reference``."""
    steps = x.shape[0] if time_steps is None else time_steps
    return kernels.lif_reference(x, state, kernels.Neuron(**options), steps, time_steps is not None)


@pytest.fixture(autouse=True)
def _best_instruction_set() -> Iterator[None]:
    """Tests choose among the instruction sets; the next one starts from the best again."""
    yield
    library = cpu.library()
    if library is not None:
        any(library.spikeport_use(level) for level in (2, 1, 0))


@pytest.fixture(scope="session")
def reference() -> Layer:
    return _reference


@pytest.fixture(scope="session")
def kernel() -> Layer:
    """``lif``, which must not have fallen back to the reference."""
    assert kernels.kernels_usable("cpu", torch.float32), "the C++ extension is not built: pip install -e ."
    return lif


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Tensor, Tensor], None]:
    """Every bit alike (NaN equals NaN), and the dtype."""
    return lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, check_stride=False)


@pytest.fixture(scope="session")
def distance() -> Callable[[Tensor, Tensor], float]:
    """Largest difference, relative to the largest value of the second."""

    def relative(a: Tensor, b: Tensor) -> float:
        largest = float(b.detach().abs().max()) if b.numel() else 0.0
        difference = float((a - b).detach().abs().max()) if b.numel() else 0.0
        return difference / largest if largest else difference

    return relative
