"""The gradient of neurons that were run in integers, for training in them.

It goes backwards through the same neurons without truncation, whose spikes are those the integers gave; a spike has a
slope of its own. Compiled on a CPU, else the same in torch.
"""

import ctypes
from ctypes import c_float, c_int64, c_void_p
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spikeport.core.kernels.parameters import SURROGATE_CODES
from spikeport.core.surrogates import surrogate_named
from spikeport.targets.loihi import neurons
from spikeport.targets.loihi.arithmetic import DECAY_ONE, SHIFT
from spikeport.targets.loihi.program import Population

SILENT = 5  # in neurons.cpp


class Slope(NamedTuple):
    """The derivative of a spike by the voltage v: the surrogate's.

    Attributes:
        unit: the voltage that stands for 1.
        surrogate, threshold, alpha, detach_reset: as of the neuron that is trained.
    """

    surrogate: str
    unit: float
    threshold: float
    alpha: float
    detach_reset: bool = False

    def __call__(self, v: Tensor) -> Tensor:
        derivative, _ = surrogate_named(self.surrogate)
        return derivative(v / self.unit - self.threshold, self.alpha) / self.unit


class _Call(ctypes.Structure):
    """GradientCall in neurons.cpp."""

    _fields_ = (
        *((name, c_int64) for name in ("steps", "pixels", "channels", "current_step", "kind", "through_reset")),
        *((name, c_void_p) for name in ("current", "spikes", "grad_spikes", "grad_v", "kept_u", "kept_v", "bias")),
        *((name, c_float) for name in ("inverse_unit", "threshold", "alpha")),
        *((name, c_void_p) for name in ("grad_current", "grad_bias")),
    )


def gradient(
    population: Population,
    current: Tensor,
    spikes: Tensor,
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    slope: Slope | None,
) -> tuple[Tensor, Tensor]:
    """The gradients of the current, in its shape, and of the bias, float32 [C], or [C, H, W] where it is so.

    Args:
        current: integers in weight units, float32 [T, N, C, H, W], or [1, N, C, H, W] where it is held.
        spikes: what ``neurons.run`` gave for it, float32 [T, N, C, H, W].
        grad_spikes, grad_v: of the spikes, and of the voltages after the last step [N, C, H, W]; zero where None.
        slope: None for neurons that never fire.
    """
    channels = population.shape[0]
    kept_u, kept_v = (
        np.broadcast_to(1 - np.asarray(decay, np.float32) / DECAY_ONE, channels).astype(np.float32)
        for decay in (np.asarray(population.du) + 1, population.dv)
    )
    bias = population.bias.astype(np.float32)
    given = (current, spikes, grad_spikes, grad_v, kept_u, kept_v, bias, slope)
    by = _compiled if neurons.compiled(current) and population.bias_mant.ndim == 1 else _torch
    into_current, into_bias = by(*given)
    return into_current, into_bias.view(population.bias_mant.shape)


def _compiled(
    current: Tensor,
    spikes: Tensor,
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    kept_u: np.ndarray,
    kept_v: np.ndarray,
    bias: np.ndarray,
    slope: Slope | None,
) -> tuple[Tensor, Tensor]:
    given, fired, *grads = (None if t is None else _maps(t) for t in (current, spikes, grad_spikes, grad_v))
    assert given is not None
    grad_current, grad_bias = torch.empty_like(given), np.empty(len(bias))
    size = current[0].numel()
    call = _Call(
        len(spikes),
        size // len(bias),
        len(bias),
        size if len(current) > 1 else 0,
        SILENT if slope is None else SURROGATE_CODES[slope.surrogate],
        slope is not None and not slope.detach_reset,
        *(None if t is None else t.data_ptr() for t in (given, fired, *grads)),
        *(array.ctypes.data for array in (kept_u, kept_v, bias)),
        *((0, 0, 0) if slope is None else (1 / slope.unit, slope.threshold, slope.alpha)),
        grad_current.data_ptr(),
        grad_bias.ctypes.data,
    )
    neurons.loaded().spikeport_loihi_gradient(ctypes.byref(call), torch.get_num_threads())
    return grad_current.view_as(current), torch.from_numpy(grad_bias).float()


def _maps(tensor: Tensor) -> Tensor:
    """Steps and samples in one dimension, channels-last."""
    return tensor.flatten(0, -4).contiguous(memory_format=torch.channels_last)


def _torch(
    current: Tensor,
    spikes: Tensor,
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor, Tensor]:
    *constants, slope = arguments
    kept_u, kept_v, bias = (torch.from_numpy(array).to(current.device) for array in constants)
    kept_u, kept_v = kept_u.view(-1, 1, 1), kept_v.view(-1, 1, 1)
    u = v = torch.zeros_like(current[0])
    before_reset = []
    for t, fired in enumerate(spikes):
        u = u * kept_u + current[min(t, len(current) - 1)] * (1 << SHIFT)
        h = v * kept_v + u + bias
        v = h - h * fired
        before_reset.append(h)
    into_current, into_bias = torch.zeros_like(current), torch.zeros_like(bias)
    into_u, into_v = torch.zeros_like(u), torch.zeros_like(u) if grad_v is None else grad_v
    for t in reversed(range(len(spikes))):
        h = before_reset[t]
        into_h = into_v - into_v * spikes[t]
        if slope is not None:
            into_spikes = 0 if grad_spikes is None else grad_spikes[t]
            into_h = into_h + (into_spikes if slope.detach_reset else into_spikes - into_v * h) * slope(h)
        into_u = into_u * kept_u + into_h
        into_current[min(t, len(current) - 1)] += into_u * (1 << SHIFT)
        into_bias += into_h.sum(0).sum_to_size(bias.shape)
        into_v = into_h * kept_v
    return into_current, into_bias
