"""Convolutions of integers in floating point, exact on every CPU path.

float32 sums of integers are exact below 2^24 whatever their order. What is not exact are algorithms that transform
(Winograd), and lower precision: so NNPACK and autocast are switched off, and each shape is probed once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spikeport.targets.loihi.program import INPUT, LoihiProgram, Synapse

#: float32 holds every integer up to this.
FLOAT32_EXACT = 1 << 24


@dataclass(frozen=True, eq=False)
class Convolution:
    """A synapse that takes integers [M, C, H, W] to integer currents in weight units; run it ``exactly``.

    Attributes:
        weight: in the type that computes it exactly.
        dtype: of the currents.
    """

    synapse: Synapse
    weight: Tensor
    dtype: torch.dtype

    def __call__(self, x: Tensor) -> Tensor:
        s = self.synapse
        rows = F.conv2d(x.to(self.weight.dtype), self.weight, None, s.stride, s.padding, s.dilation, s.groups)
        return rows.to(self.dtype)


def convolution(synapse: Synapse, shape: tuple[int, int, int], dtype: torch.dtype) -> Convolution:
    """The synapse from maps of ``shape``; ``dtype`` must hold its currents."""
    options = (synapse.stride, synapse.padding, synapse.dilation, synapse.groups)
    inner = torch.promote_types(dtype, exact_dtype(shape, synapse.weight.shape, *options))
    return Convolution(synapse, channels_last(torch.from_numpy(synapse.weight).to(inner)), dtype)


def worst_current(program: LoihiProgram, synapse: Synapse) -> int:
    """The largest |current| that inputs or spikes can cause, or a part of them, in weight units."""
    largest = program.input_max if synapse.pre == INPUT else 1
    return int(worst_currents(synapse.weight, -largest, largest)[0].max())


def worst_currents(weight: np.ndarray, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """How far inputs from ``low`` to ``high`` can drive each output channel up, and down: float64 [C] each.

    Args:
        weight: [C, ...], integers of any type.
    """
    rows = weight.reshape(len(weight), -1).astype(np.float64)  # exact, and 127 * 127 has room
    return np.maximum(low * rows, high * rows).sum(1), np.maximum(-low * rows, -high * rows).sum(1)


def channels_last(x: Tensor) -> Tensor:
    """The layout in which the CPU convolves fastest."""
    return x.contiguous(memory_format=torch.channels_last)


@contextmanager
def exactly() -> Iterator[None]:
    """Convolutions in here are computed as they are written."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.backends.nnpack.flags(enabled=False):
        yield


def exact_dtype(
    shape: tuple, weight_shape: tuple, stride: tuple, padding: tuple, dilation: tuple, groups: int
) -> torch.dtype:
    """float32 where it convolves integers of these shapes (x without N) exactly on this CPU, else float64."""
    threads = torch.get_num_threads()
    exact = _float32_is_exact(tuple(shape), tuple(weight_shape), stride, padding, dilation, groups, threads)
    return torch.float32 if exact else torch.float64


@cache
def _float32_is_exact(
    shape: tuple, weight_shape: tuple, stride: tuple, padding: tuple, dilation: tuple, groups: int, threads: int
) -> bool:
    """Whether float32 convolution of this shape equals float64 on a random probe (N = 16: small batches hide it), in
    either memory layout."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (16, *shape), generator=generator).double()
    weight = torch.randint(-127, 128, weight_shape, generator=generator).double()
    if float(weight.abs().flatten(1).sum(1).max()) * 127 >= FLOAT32_EXACT:  # keep the probe's own sums exact
        x = x.sign()
    options = (None, stride, padding, dilation, groups)
    with exactly():
        expected = F.conv2d(x, weight, *options)
        return all(
            torch.equal(F.conv2d(layout(x.float()), layout(weight.float()), *options).double(), expected)
            for layout in (Tensor.contiguous, channels_last)
        )
