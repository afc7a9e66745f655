"""The CPU kernels: a shared library without torch or Python in it, called through ctypes.

The library is an optional extension of the package: where no C++ compiler was found at installation, it is
absent and ``library`` says so with None.
"""

import ctypes
import functools
from ctypes import c_double, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from spikeport.core.kernels.parameters import DTYPE_CODES, Norm, Setting
from spikeport.core.native import native_library

MISSING = "the C++ extension was not built (no C++ compiler at installation); install g++ and reinstall spikeport"


class Shape(ctypes.Structure):
    """Shape in calls.h."""

    _fields_ = (
        *((name, c_int64) for name in ("steps", "neurons", "x_step")),
        *((name, c_double) for name in ("decay", "gain", "threshold", "reset", "alpha")),
        *((name, c_int32) for name in ("dtype", "surrogate", "constant", "detach_reset", "smooth", "threads")),
    )


class LifCall(ctypes.Structure):
    """LifCall in calls.h."""

    _fields_ = (
        ("shape", Shape),
        *((name, c_void_p) for name in ("x", "grad_spikes", "grad2_x", "state", "grad_membrane", "grad2_state")),
        *((name, c_void_p) for name in ("spikes", "grad_x", "grad2_spikes")),
        *((name, c_void_p) for name in ("membrane", "grad_state", "grad2_membrane")),
    )


class NormCall(ctypes.Structure):
    """NormCall in calls.h."""

    _fields_ = (
        ("shape", Shape),
        *((name, c_int64) for name in ("channels", "inner", "grad_step", "pair")),
        ("eps", c_double),
        ("batch_statistics", c_int32),
        *((name, c_void_p) for name in ("x", "grad_spikes", "weight", "bias", "mean", "variance")),
        *((name, c_void_p) for name in ("spikes", "grad_x", "grad_weight", "grad_bias")),
        *((name, c_void_p) for name in ("batch_mean", "batch_variance")),
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they were not built."""
    return native_library(__file__)


def shape_of(x: Tensor, setting: Setting) -> Shape:
    """Of an x with dense steps."""
    steps, constant = setting.steps, setting.constant
    neurons = x.numel() if constant else x.numel() // steps
    return Shape(
        steps,
        neurons,
        0 if constant else x.stride(0),
        *setting.neuron,
        DTYPE_CODES[x.dtype],
        setting.surrogate,
        constant,
        setting.detach_reset,
        setting.smooth,
        torch.get_num_threads(),
    )


def lif(code: int, x: Tensor, setting: Setting, **tensors: Tensor | None) -> None:
    """Runs pass ``code`` (0 forward, 1 backward, 2 double backward) on tensors named as in calls.h."""
    call = LifCall(shape_of(x, setting), x.data_ptr(), **_pointers(tensors))
    _loaded().spikeport_lif(ctypes.byref(call), c_int32(code))


def norm_moments(x: Tensor, setting: Setting, norm: Norm, mean: Tensor, variance: Tensor) -> None:
    """Writes mean and biased variance of every channel of x."""
    pointers = _pointers({"batch_mean": mean, "batch_variance": variance})
    call = NormCall(shape_of(x, setting), norm.channels, norm.inner, x=x.data_ptr(), **pointers)
    _loaded().spikeport_norm_moments(ctypes.byref(call))


def norm(code: int, x: Tensor, setting: Setting, norm: Norm, **tensors: Tensor | None) -> None:
    """Runs pass ``code`` (0 forward, 1 backward) of BatchNorm and LIF."""
    shape = shape_of(x, setting)
    numbers = (norm.channels, norm.inner, shape.neurons, norm.pair, norm.eps, norm.batch_statistics)
    call = NormCall(shape, *numbers, x.data_ptr(), **_pointers(tensors))
    _loaded().spikeport_norm(ctypes.byref(call), c_int32(code))


def sums(y: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of contiguous float32 maps [M, C, P] over C, [M, P], and over M, [C * P], in one pass over memory.

    Exact for whole numbers whose sums stay below 2^24.
    """
    images, channels, inner = y.shape
    over_channels, over_images = y.new_empty(images, inner), y.new_empty(channels * inner)
    _loaded().spikeport_sums(
        c_void_p(y.data_ptr()),
        *(c_int64(size) for size in y.shape),
        c_void_p(over_channels.data_ptr()),
        c_void_p(over_images.data_ptr()),
        c_int32(torch.get_num_threads()),
    )
    return over_channels, over_images


def _pointers(tensors: dict[str, Tensor | None]) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None}


def _loaded() -> ctypes.CDLL:
    loaded = library()
    if loaded is None:
        raise RuntimeError(MISSING)
    return loaded
