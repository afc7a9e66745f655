"""A population's neurons over all steps: compiled on a CPU, else the same in int64 by ``arithmetic``."""

import ctypes
import functools
from collections.abc import Callable
from ctypes import c_int64, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikeport.core.kernels.dispatch import kernels_usable
from spikeport.core.native import native_library
from spikeport.targets.loihi import arithmetic
from spikeport.targets.loihi.arithmetic import DECAY_ONE, NO_CURRENT_MEMORY, SHIFT
from spikeport.targets.loihi.program import Population

#: Spikes [N, C, H, W] of a step to the current that recurrent synapses add to the next.
Feedback = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What neurons did over T steps.

    Attributes:
        spikes: 0 or 1, float32 [T, N, C, H, W], each step channels-last.
        v: the voltages after the last step, integers [N, C, H, W].
        wraps, saturations: how often u wrapped and v stood at its limit.
    """

    spikes: Tensor
    v: Tensor
    wraps: int
    saturations: int


class _Call(ctypes.Structure):
    """Call in neurons.cpp."""

    _fields_ = (
        *((name, c_int64) for name in ("steps", "pixels", "channels", "current_step", "every_bias")),
        *((name, c_void_p) for name in ("current", "kept_u", "kept_v", "vth", "bias", "spikes", "u", "v", "counts")),
    )


def run(population: Population, current: Tensor, steps: int, feedback: Feedback | None = None) -> Trajectory:
    """Runs from rest.

    Args:
        current: integers in weight units, float32 or float64 [T, N, C, H, W], or [1, N, C, H, W] where it is held.
    """
    _, n, *shape = current.shape
    how: Any = {"device": current.device, "dtype": torch.float32, "memory_format": torch.channels_last}
    maps = torch.empty(steps * n, *shape, **how)
    spikes = maps.unflatten(0, (steps, n))
    advance = (_Compiled if compiled(current) else _Integers)(population, current)
    if feedback is None:
        advance(current, spikes)
    else:
        for t, fired in enumerate(spikes.split(1)):
            arrived = current[min(t, len(current) - 1)]
            advance((arrived + feedback(spikes[t - 1]) if t else arrived)[None], fired)
    return Trajectory(spikes, advance.v, int(advance.counts[0]), int(advance.counts[1]))


def compiled(current: Tensor) -> bool:
    """Whether the compiled loops take such currents here."""
    fitting = current.dtype == torch.float32 and current.device.type == "cpu"
    return fitting and kernels_usable("cpu", torch.float32) and library() is not None


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled loops, or None where they were not built."""
    return native_library(__file__)


def loaded() -> ctypes.CDLL:
    """The compiled loops, where some are ``compiled``."""
    found = library()
    assert found is not None
    return found


class _Compiled:
    """The loops of neurons.cpp on float32 currents, with the state they leave behind."""

    def __init__(self, population: Population, current: Tensor) -> None:
        p, channels = population, population.shape[0]
        self.counts = np.zeros(2, np.int64)
        memory = bool((np.asarray(p.du) != NO_CURRENT_MEMORY).any())
        dtype = torch.int64 if memory else torch.int32
        self.v = torch.empty(current.shape[1:], dtype=dtype, memory_format=torch.channels_last).zero_()
        self.u = torch.zeros_like(self.v) if memory else self.v.new_empty(0)
        self.every_bias = p.bias_mant.ndim > 1  # of every neuron, as of [N, C, H, W] that a host writes
        bias = p.bias
        if self.every_bias:
            bias = np.broadcast_to(bias, current.shape[1:]).transpose(0, 2, 3, 1)
        self.constants = {
            "kept_v": _integers(DECAY_ONE - np.asarray(p.dv), channels),
            "vth": _integers(np.asarray(p.vth) << SHIFT, channels),
            "bias": np.ascontiguousarray(bias, np.int32),
        }
        if memory:
            self.constants["kept_u"] = _integers(DECAY_ONE - 1 - np.asarray(p.du), channels)

    def __call__(self, current: Tensor, spikes: Tensor) -> None:
        """Writes the spikes [T, N, C, H, W], each step channels-last, of as many further steps."""
        maps = current.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        size, channels = self.v.numel(), self.v.shape[1]
        call = _Call(
            len(spikes),
            size // channels,
            channels,
            size if len(current) > 1 else 0,
            self.every_bias,
            maps.data_ptr(),
            spikes=spikes.data_ptr(),
            u=self.u.data_ptr(),
            v=self.v.data_ptr(),
            counts=self.counts.ctypes.data,
            **{name: values.ctypes.data for name, values in self.constants.items()},
        )
        loaded().spikeport_loihi_neurons(ctypes.byref(call), torch.get_num_threads())


class _Integers:
    """The same by ``arithmetic``, for any device and type of current."""

    def __init__(self, population: Population, current: Tensor) -> None:
        p, device = population, current.device
        self.du, self.dv, self.vth = (_channels(x, device) for x in (p.du, p.dv, p.vth))
        self.bias = torch.from_numpy(p.bias).to(device)
        self.u = self.v = torch.zeros_like(current[0], dtype=torch.int64)
        self.counts = np.zeros(2, np.int64)

    def __call__(self, current: Tensor, spikes: Tensor) -> None:
        for t, fired in enumerate(spikes):
            a = current[min(t, len(current) - 1)].long()
            self.u, v, *counts = arithmetic.charge(self.u, self.v, a, self.du, self.dv, self.bias)
            now, self.v = arithmetic.fire(v, self.vth)
            fired.copy_(now)
            self.counts += counts


def _integers(values: Any, channels: int) -> np.ndarray:
    return np.ascontiguousarray(np.broadcast_to(values, channels), np.int32)


def _channels(values: Any, device: torch.device) -> Any:
    """One number, or int64 [C, 1, 1] where channels differ."""
    flat = np.ravel(values)
    if (flat == flat[0]).all():
        return int(flat[0])
    return torch.from_numpy(flat).to(device, torch.int64)[:, None, None]
