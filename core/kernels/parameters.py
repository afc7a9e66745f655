"""The numbers of a LIF layer as the kernels take them."""

import math
from typing import NamedTuple

import torch

#: name -> code in lif_step.h
SURROGATE_CODES = {"atan": 0, "sigmoid": 1, "fast-sigmoid": 2, "piecewise-linear": 3, "exponential": 4}

#: dtype of x -> code in calls.h
DTYPE_CODES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}


class Setting(NamedTuple):
    """One layer of LIF neurons; everything measured from the reset potential.

    Attributes:
        steps: T.
        constant: the input is [N, ...], held for T steps; else [T, N, ...].
        neuron: decay 1 - 1/tau, gain (``input_gain``), threshold, reset potential, steepness of the surrogate.
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


#: Setting in the schema language of torch operators
SCHEMA = "int steps, bool constant, float[] neuron, int surrogate, bool detach_reset, bool smooth"


def neuron_parameters(
    tau: float, v_threshold: float, v_reset: float, alpha: float, decay_input: bool = True
) -> list[float]:
    """Setting.neuron."""
    return [1 - 1 / tau, input_gain(tau, decay_input), v_threshold - v_reset, v_reset, alpha]


def input_gain(tau: float, decay_input: bool) -> float:
    """What a current of 1 adds to the membrane in one step."""
    return 1 / tau if decay_input else 1.0


def neuron_constants(neuron: list[float]) -> list[float]:
    """The members of Neuron in lif_step.h."""
    alpha = neuron[4]
    return [*neuron, alpha / 2, math.pi / 2 * alpha]


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The membrane's dtype for an input of ``dtype``."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
