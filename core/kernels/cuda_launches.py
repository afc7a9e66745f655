"""Which CUDA kernels to launch, and how: arithmetic on shapes and addresses, which needs no GPU."""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from spikeport.core.errors import SpikeportError
from spikeport.core.kernels.parameters import Norm, Setting, neuron_constants, state_dtype

# Of a block; THREADS in norm_lif.cu. Small blocks fill a multiprocessor's registers better: a thread of the passes over
# BatchNorm and LIF takes up to 200.
THREADS = 128
LANES = 32  # LANES in norm_lif.cu
FINISH = 512  # FINISH in norm_lif.cu
CHUNK = 8  # CHUNK in lif.cu
UNROLLED = 16  # steps at most that are known at compile time
FORWARD_VALUES = 64  # steps times neurons of a thread at most
# In the backward passes. In float32 80 registers (126 where spikes are pooled), three times the threads at work that 32
# and 140 registers leave; in 16 bits at T = 16 up to 200, for a thread reads 4 bytes at least (ptxas -v).
VALUES = 16
# Of a sum over channels, at most: several times as many as the largest GPUs run at once, so that the last to begin keep
# few others waiting. Beyond ENOUGH, four for each of their multiprocessors, a thread has SHARE items or more, for every
# block writes sums of its own.
BLOCKS = 4096
ENOUGH = 528
SHARE = 4
NAMES = {
    torch.float64: "double",
    torch.float32: "float",
    torch.float16: "__half",
    torch.bfloat16: "__nv_bfloat16",
}

#: An integer stands for itself or for an address, and is passed in 64 bits.
Argument = int | ctypes.c_int | ctypes.c_float | ctypes.c_double


class Launch(NamedTuple):
    """A kernel, its grid of blocks and its arguments.

    ``scratch`` holds the tensors that only this sequence of launches uses: they must live until it is queued.
    """

    source: str
    expression: str
    grid: tuple[int, int]
    block: int
    arguments: tuple[Argument, ...]
    scratch: tuple[Tensor, ...] = ()


def lif_launches(code: int, x: Tensor, setting: Setting, tensors: dict[str, Tensor | None]) -> list[Launch]:
    """For pass ``code`` (0 forward, 1 backward, 2 double backward); tensors are named as in calls.h."""
    steps, neurons, x_step = _extent(x, setting)
    dtype, constants = NAMES[x.dtype], _constants(x, setting)
    size = (steps, neurons, x_step)
    unrolled = steps if steps <= UNROLLED else 0
    detach = ctypes.c_int(setting.detach_reset)
    constant = str(setting.constant).lower()
    if code == 2:
        scratch = tuple(x.new_empty((steps, neurons), dtype=state_dtype(x.dtype)) for _ in range(2))
        given = ("state", "grad_spikes", "grad_membrane", "grad2_x", "grad2_state")
        names: tuple[str, ...] = (*given, "grad_x", "grad_state", "grad2_spikes", "grad2_membrane")
        pointers = (_address(x), *(_address(tensors.get(name)) for name in names), *map(_address, scratch))
        expression = f"lif_double_backward<{dtype}, {setting.surrogate}, {constant}>"
        grid = (-(-neurons // THREADS), 1)
        return [Launch("lif.cu", expression, grid, THREADS, (*pointers, *size, detach, *constants), scratch)]

    width = _vector_width(x, unrolled or CHUNK, VALUES if code else FORWARD_VALUES, (neurons, x_step), tensors)
    grid = (-(-neurons // (width * THREADS)), 1)
    if code == 0:
        pointers = (_address(x), *(_address(tensors.get(name)) for name in ("state", "spikes", "membrane")))
        expression = f"lif_forward<{dtype}, {width}, {unrolled}>"
        return [Launch("lif.cu", expression, grid, THREADS, (*pointers, *size, *constants))]
    scratch = () if unrolled else (x.new_empty((-(-steps // CHUNK), neurons), dtype=state_dtype(x.dtype)),)
    names = ("state", "grad_spikes", "grad_membrane", "grad_x", "grad_state")
    pointers = (_address(x), *(_address(tensors.get(name)) for name in names), _address(*scratch))
    expression = f"lif_backward<{dtype}, {width}, {unrolled}, {setting.surrogate}, {constant}>"
    return [Launch("lif.cu", expression, grid, THREADS, (*pointers, *size, detach, *constants), scratch)]


def moments_launches(x: Tensor, setting: Setting, norm: Norm, mean: Tensor, variance: Tensor) -> list[Launch]:
    """Mean and biased variance of every channel."""
    channels, inner = norm.channels, norm.inner
    steps, neurons, x_step = _extent(x, setting)
    steps = 1 if setting.constant else steps
    last = inner == 1
    width = _vector_width(x, 1, VALUES, (neurons, x_step, channels if last else inner), {})
    grid = _channel_grid(neurons, channels, width, last)
    dtype, state = NAMES[x.dtype], NAMES[state_dtype(x.dtype)]
    partial = x.new_empty((grid[1], channels, 3), dtype=mean.dtype)
    arguments = (_address(x), _address(partial), steps, neurons, x_step, channels, inner)
    finish: tuple[Argument, ...] = (_address(partial), grid[1], channels, _address(mean), _address(variance))
    return [
        Launch("norm_lif.cu", f"norm_moments<{dtype}, {width}, {_flag(last)}>", grid, THREADS, arguments, (partial,)),
        Launch("norm_lif.cu", f"norm_finish_moments<{state}>", (channels, 1), FINISH, finish),
    ]


def norm_launches(
    code: int, x: Tensor, setting: Setting, norm: Norm, tensors: dict[str, Tensor | None]
) -> list[Launch]:
    """For pass ``code`` (0 forward, 1 backward) of BatchNorm and LIF.

    Raises:
        SpikeportError: more than ``UNROLLED`` steps.
    """
    steps, neurons, x_step = _extent(x, setting)
    channels, inner, eps, batch_statistics, pair = norm
    if steps > UNROLLED:
        raise SpikeportError(f"BatchNorm and LIF in one take at most {UNROLLED} steps on a GPU, not {steps}")
    last = inner == 1
    places = 4 if pair else 1  # of the neurons that share a spike
    spikes = neurons // places
    together, values = (steps, VALUES) if code else (steps * places, FORWARD_VALUES)
    width = _vector_width(x, together, values, (neurons, x_step, channels if last else inner), tensors)
    dtype, state = NAMES[x.dtype], NAMES[state_dtype(x.dtype)]
    scalar = ctypes.c_double if x.dtype == torch.float64 else ctypes.c_float
    given = tuple(_address(tensors.get(name)) for name in ("weight", "bias", "mean", "variance"))
    factors = x.new_empty((3, channels), dtype=state_dtype(x.dtype))
    prepare = Launch(
        "norm_lif.cu",
        f"norm_factors<{state}>",
        (-(-channels // THREADS), 1),
        THREADS,
        (*given, scalar(eps), channels, _address(factors)),
        (factors,),
    )
    extent = (neurons, x_step, channels, inner, pair)
    constants = _constants(x, setting)
    everywhere = (-(-spikes // (width * THREADS)), 1)
    layout = f"{_flag(last)}, {_flag(bool(pair))}"
    if code == 0:
        expression = f"norm_forward<{dtype}, {width}, {steps}, {layout}>"
        arguments = (_address(x), _address(factors), _address(tensors["spikes"]), *extent, *constants)
        return [prepare, Launch("norm_lif.cu", expression, everywhere, THREADS, arguments)]

    template = f"<{dtype}, {width}, {steps}, {setting.surrogate}, {layout}>"
    grid = _channel_grid(spikes, channels, width, last)
    partial = x.new_empty((grid[1], channels, 2), dtype=state_dtype(x.dtype))
    coefficients = x.new_empty((2, channels), dtype=state_dtype(x.dtype))
    count = ctypes.c_double(neurons // channels * (1 if setting.constant else steps))
    common = (_address(x), _address(factors), _address(tensors["grad_spikes"]))
    detach = ctypes.c_int(setting.detach_reset)
    reduce = (*common, _address(partial), *extent, detach, *constants)
    sums = (_address(partial), grid[1], channels, given[3], scalar(eps), count, ctypes.c_int(batch_statistics))
    finish = (*sums, _address(tensors["grad_weight"]), _address(tensors["grad_bias"]), _address(coefficients))
    apply = (*common, _address(coefficients), _address(tensors["grad_x"]), *extent, detach, *constants)
    return [
        prepare,
        Launch("norm_lif.cu", f"norm_reduce{template}", grid, THREADS, reduce, (partial, coefficients)),
        Launch("norm_lif.cu", f"norm_finish_sums<{state}>", (channels, 1), FINISH, finish),
        Launch("norm_lif.cu", f"norm_apply{template}", everywhere, THREADS, apply),
    ]


def _extent(x: Tensor, setting: Setting) -> tuple[int, int, int]:
    """Steps, neurons, and elements from one step of x to the next."""
    neurons = x.numel() if setting.constant else x.numel() // setting.steps
    return setting.steps, neurons, 0 if setting.constant else x.stride(0)


def _constants(x: Tensor, setting: Setting) -> tuple[Argument, ...]:
    scalar = ctypes.c_double if x.dtype == torch.float64 else ctypes.c_float
    return tuple(scalar(value) for value in neuron_constants(setting.neuron))


def _vector_width(
    x: Tensor, steps: int, values: int, multiples: tuple[int, ...], tensors: dict[str, Tensor | None]
) -> int:
    """Neurons of a thread: 16 bytes of x, fewer where sizes, addresses or registers forbid it."""
    width = 16 // x.element_size()
    present = [x, *(tensor for tensor in tensors.values() if tensor is not None and tensor.numel() > 1)]
    while width > 1 and (
        (width * steps > values and width * x.element_size() > 4)
        or any(multiple % width for multiple in multiples)
        or any(tensor.data_ptr() % min(16, width * tensor.element_size()) for tensor in present)
    ):
        width //= 2
    return width


def _channel_grid(neurons: int, channels: int, width: int, last: bool) -> tuple[int, int]:
    """Blocks over channels, and over the samples and pixels of each."""
    lanes = LANES
    while lanes > 1 and lanes // 2 * width >= channels:
        lanes //= 2
    across = -(-channels // (lanes * width)) if last else channels
    items = neurons // channels if last else neurons // (channels * width)
    threads = THREADS // lanes if last else THREADS
    most, few = -(-items // threads), -(-items // (threads * SHARE))
    return across, max(1, min(max(few, min(most, -(-ENOUGH // across))), -(-BLOCKS // across)))


def _address(tensor: Tensor | None = None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _flag(value: bool) -> str:
    return str(value).lower()
