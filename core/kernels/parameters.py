"""What a LIF neuron does, and the numbers of a layer of them as the kernels take them."""

import math
from typing import NamedTuple

import torch

from spikeport.core.surrogates import surrogate_named

#: name -> code in lif_step.h
SURROGATE_CODES = {"atan": 0, "sigmoid": 1, "fast-sigmoid": 2, "piecewise-linear": 3, "exponential": 4}

#: dtype of x -> code in calls.h
DTYPE_CODES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}


class Setting(NamedTuple):
    """One layer of LIF neurons; everything measured from the reset potential.

    Attributes:
        steps: T.
        constant: the input is [N, ...], held for T steps; else [T, N, ...].
        neuron: see ``Neuron.constants``.
        surrogate: a code of ``SURROGATE_CODES``.
        detach_reset: no gradient passes through the reset.
        smooth: a step of finite slope whose derivative is the surrogate, float64 on the CPU only: for checks by
            finite differences.
    """

    steps: int
    constant: bool
    neuron: list[float]
    surrogate: int
    detach_reset: bool = False
    smooth: bool = False


class Norm(NamedTuple):
    """The BatchNorm before a layer of neurons.

    Attributes:
        channels, inner: neuron i is of channel (i // inner) % channels.
        eps: as of ``torch.nn.functional.batch_norm``.
        batch_statistics: the gradient passes through mean and variance.
        pair: neurons of two pixel rows whose spikes are max-pooled, see calls.h; 0 where they are not.
    """

    channels: int
    inner: int
    eps: float = 0.0
    batch_statistics: bool = False
    pair: int = 0


#: Setting in the schema language of torch operators
SCHEMA = "int steps, bool constant, float[] neuron, int surrogate, bool detach_reset, bool smooth"


class Neuron(NamedTuple):
    """The parameters of a LIF neuron, which ``spikeport.core.functional.lif`` describes."""

    tau: float = 2.0
    v_threshold: float = 1.0
    v_reset: float = 0.0
    surrogate: str = "atan"
    alpha: float | None = None
    detach_reset: bool = False
    decay_input: bool = True

    @property
    def gain(self) -> float:
        """What a current of 1 adds to the membrane in one step."""
        return 1 / self.tau if self.decay_input else 1.0

    @property
    def steepness(self) -> float:
        """Of the surrogate: alpha, or its default. Raises SpikeportError for an unknown surrogate."""
        _, default = surrogate_named(self.surrogate)
        return default if self.alpha is None else self.alpha

    @property
    def constants(self) -> list[float]:
        """Decay, gain, threshold above the reset, reset potential, steepness of the surrogate."""
        found = (1 - 1 / self.tau, self.gain, self.v_threshold - self.v_reset, self.v_reset, self.steepness)
        return [float(value) for value in found]  # of NumPy's numbers, too

    def setting(self, steps: int, constant: bool) -> Setting:
        """A layer of these neurons over T ``steps``."""
        return Setting(steps, constant, self.constants, SURROGATE_CODES[self.surrogate], self.detach_reset)


def neuron_constants(neuron: list[float]) -> list[float]:
    """The members of Neuron in lif_step.h."""
    alpha = neuron[4]
    return [*neuron, alpha / 2, math.pi / 2 * alpha]


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The membrane's dtype for an input of ``dtype``."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
