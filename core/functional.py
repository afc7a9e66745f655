"""The leaky integrate-and-fire neuron (hard reset) without hidden state.

The semantics are those of SpikingJelly's LIFNode (decay_input=True):

    h[t] = v[t-1] + (x[t] - (v[t-1] - v_reset)) / tau
    s[t] = 1 if h[t] >= v_threshold else 0
    v[t] = v_reset where s[t] else h[t]

There as here an infinite h leaves NaN behind, for the reset is a product.

Measured from v_reset, with ``decay = 1 - 1/tau`` and ``gain = 1/tau``, the charge is
``h = decay * v + gain * x``: two products and one sum, each rounded once. Every back-end does just that: the
kernels of ``spikeport.core.kernels`` and, where they cannot run, the PyTorch reference beside them.
"""

import math
from numbers import Integral, Real
from typing import Any

from torch import Tensor, nn

from spikeport.core import kernels
from spikeport.core.errors import SpikeportError
from spikeport.core.settings import finite

#: T at most: a slip of the keyboard ends here, not in the allocator.
MOST_STEPS = 1 << 16


def lif(
    x: Tensor,
    state: Tensor | None = None,
    *,
    tau: float = 2.0,
    v_threshold: float = 1.0,
    v_reset: float = 0.0,
    surrogate: str = "atan",
    alpha: float | None = None,
    detach_reset: bool = False,
    time_steps: int | None = None,
    decay_input: bool = True,
) -> tuple[Tensor, Tensor]:
    """Runs a layer of LIF neurons over time.

    Args:
        x: input current [T, N, ...], float64, float32, float16 or bfloat16; with ``time_steps``, a constant current
            [N, ...] that is held for that many steps.
        state: membrane potential before the first step, [N, ...]; v_reset where None.
        tau: membrane time constant in steps, >= 1; infinite for an integrator (IF), with ``decay_input=False``.
        v_threshold: the neuron fires at h >= v_threshold; must lie above v_reset.
        v_reset: membrane potential at rest and after a spike.
        surrogate: derivative of the spike, a name in ``SURROGATES``.
        alpha: steepness of the surrogate; its own default where None.
        detach_reset: keep the gradient from passing through the reset.
        decay_input: divide the current by tau, as SpikingJelly does by default; else it is added whole.

    Returns:
        spikes [T, N, ...] in x's dtype, and the membrane after the last step [N, ...] in the state's
        dtype: float32 for float16 and bfloat16 input, else x's dtype.

    Raises:
        SpikeportError: wrong dtype, rank, T, tau, threshold, alpha or state.
    """
    neuron = kernels.Neuron(tau, v_threshold, v_reset, surrogate, alpha, detach_reset, decay_input)
    return run_lif(x, state, neuron, time_steps, membrane=True)


def run_lif(
    x: Tensor, state: Tensor | None, neuron: kernels.Neuron, time_steps: int | None, membrane: bool
) -> tuple[Tensor, Tensor]:
    """``lif``; without ``membrane`` the kernels do not write the last membrane, and what stands for it is empty."""
    constant = time_steps is not None
    steps = check_lif(x, state, neuron, time_steps)
    if not kernels.kernels_usable(x.device.type, x.dtype):
        return kernels.lif_reference(x, state, neuron, steps, constant)
    if state is not None:
        state = state.to(kernels.state_dtype(x.dtype))
    return kernels.lif(x, state, neuron.setting(steps, constant), membrane)


def check_lif(x: Tensor, state: Tensor | None, neuron: kernels.Neuron, time_steps: int | None) -> int:
    """The number of time steps, or a SpikeportError that names the argument at fault."""
    if x.dtype not in kernels.DTYPE_CODES:
        raise SpikeportError(
            f"lif: x is {x.dtype}; currents are floating point of 16, 32 or 64 bits, convert it with x.float()"
        )
    require_numbers(neuron.tau, neuron.v_threshold, neuron.v_reset)
    tau = neuron.tau
    if not (tau >= 1 and (tau < math.inf or not neuron.decay_input)):
        raise SpikeportError(f"lif: tau is {tau}; the time constant is at least 1 step (infinite: decay_input=False)")
    if not neuron.v_threshold > neuron.v_reset:
        raise SpikeportError(f"lif: v_threshold {neuron.v_threshold} is not above v_reset {neuron.v_reset}")
    if not -math.inf < neuron.v_reset < math.inf:
        raise SpikeportError(f"lif: v_reset is {neuron.v_reset}; a finite potential is needed")
    alpha = neuron.alpha
    if alpha is not None and not (_is_number(alpha) and 0 < alpha < math.inf):
        raise SpikeportError(f"lif: alpha is {alpha!r}; the surrogate's steepness is a positive number")
    constant = time_steps is not None
    if x.dim() < (1 if constant else 2):
        raise SpikeportError(f"lif: x has shape {list(x.shape)}; expected {'[N, ...]' if constant else '[T, N, ...]'}")
    steps = whole_steps(time_steps) if constant else x.shape[0]
    if steps < 1:
        raise SpikeportError(f"lif: {steps} time steps; at least 1 is needed")
    neurons = x.shape if constant else x.shape[1:]
    if state is not None and state.shape != neurons:
        raise SpikeportError(f"lif: state has shape {list(state.shape)}, the input asks for {list(neurons)}")
    if state is not None and state.device != x.device:
        raise SpikeportError(f"lif: state is on {state.device}, the input on {x.device}")
    return steps


def require_numbers(tau: Any, v_threshold: Any, v_reset: Any) -> None:
    """Raises SpikeportError where one is no number, or a tensor: it would look trained, and get no gradient."""
    for name, value in (("tau", tau), ("v_threshold", v_threshold), ("v_reset", v_reset)):
        if isinstance(value, Tensor):
            raise SpikeportError(f"lif: {name} is a tensor, which would not be trained; give a number")
        if not _is_number(value):
            raise SpikeportError(f"lif: {name} is {value!r}; give a number")


def _is_number(value: Any) -> bool:
    """Whether it is a real number that a float can hold."""
    if isinstance(value, float):  # the usual one, and quickly told
        return True
    if isinstance(value, Integral):  # bool is one
        return not isinstance(value, bool) and finite(int(value))
    return isinstance(value, Real)


def split_time(x: Tensor, time_steps: int) -> Tensor:
    """[T*N, ...] to [T, N, ...]. Raises SpikeportError where the batch is not a multiple of T."""
    if x.dim() == 0 or x.shape[0] % time_steps:
        raise SpikeportError(f"batch of shape {list(x.shape)} is not a multiple of {time_steps} time steps")
    # Not unflatten: of one image in one step it makes strides under which torch's batch_norm has a wrong gradient.
    return x.unsqueeze(0) if time_steps == 1 else x.unflatten(0, (time_steps, x.shape[0] // time_steps))


def join_time(x: Tensor) -> Tensor:
    """[T, N, ...] to [T*N, ...]."""
    return x[0] if x.shape[0] == 1 else x.flatten(0, 1)  # as in split_time


def whole_steps(time_steps: Any) -> int:
    """T as a number of ours. Raises SpikeportError where it is none."""
    if isinstance(time_steps, bool) or not isinstance(time_steps, Integral) or not 1 <= int(time_steps) <= MOST_STEPS:
        raise SpikeportError(f"time_steps is {time_steps!r}; a whole number from 1 to {MOST_STEPS} is needed")
    return int(time_steps)


def next_momentum(norm: nn.BatchNorm2d) -> float:
    """Counts a batch of training; what share its statistics have in the running ones, as torch has it."""
    if norm.num_batches_tracked is None:
        return norm.momentum or 0.0
    norm.num_batches_tracked.add_(1)
    return 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum  # None: mean of all
