"""A population's neurons over all steps, in floating point where that is exact.

Vectorised float32 arithmetic is several times faster than int64, and gives the same integers as long as each of them,
and each product of a state with a decay, has at most 24 bits (53 in float64). The largest current there is bounds
the states; where the bound leaves room for a wrap or a saturation, ``arithmetic`` itself runs, in int64, and counts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikeport.targets.loihi import arithmetic
from spikeport.targets.loihi.arithmetic import DECAY_ONE, SHIFT, STATE_LIMIT
from spikeport.targets.loihi.convolution import FLOAT32_EXACT
from spikeport.targets.loihi.program import Population

#: Spikes [N, C, H, W] of a step to the current that recurrent synapses add to the next.
Feedback = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What neurons did over T steps.

    Attributes:
        spikes: 0 or 1, float32 [T, N, C, H, W], each step channels-last.
        v: the voltages after the last step, [N, C, H, W].
        wraps, saturations: how often u wrapped and v stood at its limit.
    """

    spikes: Tensor
    v: Tensor
    wraps: int = 0
    saturations: int = 0


@dataclass(frozen=True, eq=False)
class Neurons:
    """A population's constants in the type that computes it: numbers, or [C, 1, 1] where channels differ.

    Attributes:
        dtype: of the states; int64 where they may leave their 24 bits.
        kept_u, kept_v: what a step keeps of u and v, in 1/4096.
        vth: the neuron fires where v > vth.
    """

    population: Population
    steps: int
    dtype: torch.dtype
    kept_u: Any
    kept_v: Any
    vth: Any
    bias: Tensor

    def run(self, current: Tensor, feedback: Feedback | None = None) -> Trajectory:
        """Runs from rest.

        Args:
            current: integers in weight units, float32 or float64 [T, N, C, H, W], or [1, N, C, H, W] where it is held.
        """
        if self.dtype == torch.int64 and feedback is None:
            peak = max(int(current.amax()), -int(current.amin()))  # perhaps far below what could have come
            tighter = neurons(self.population, peak, self.steps, current.dtype, current.device)
            if tighter.dtype != torch.int64:
                return tighter.run(current)
        _, n, *shape = current.shape
        maps = torch.empty(self.steps * n, *shape, device=current.device, memory_format=torch.channels_last)
        spikes = maps.unflatten(0, (self.steps, n))
        step = self._integers if self.dtype == torch.int64 else self._floats
        return step(current, spikes, feedback)

    def _floats(self, current: Tensor, spikes: Tensor, feedback: Feedback | None) -> Trajectory:
        v = torch.zeros_like(current[0], dtype=self.dtype)
        u = None if _is(self.kept_u, 0) else torch.zeros_like(v)
        biased = bool(self.population.bias_mant.any())
        for t, fired in enumerate(spikes):
            a = current[min(t, len(current) - 1)]
            if feedback and t:
                a = a + feedback(spikes[t - 1])
            if t:
                _decay(v, self.kept_v)
            if u is None:
                v.add_(a, alpha=1 << SHIFT)
            else:
                _decay(u, self.kept_u)
                v.add_(u.add_(a, alpha=1 << SHIFT))
            if biased:
                v.add_(self.bias)
            torch.gt(v, self.vth, out=fired)
            v.addcmul_(v, fired, value=-1)
        return Trajectory(spikes, v)

    def _integers(self, current: Tensor, spikes: Tensor, feedback: Feedback | None) -> Trajectory:
        p = self.population
        du, dv, vth = (_channels(x, torch.int64, current.device) for x in (p.du, p.dv, p.vth))
        u = v = torch.zeros_like(current[0], dtype=torch.int64)
        wraps = saturations = 0
        for t, fired in enumerate(spikes):
            a = current[min(t, len(current) - 1)].long()
            if feedback and t:
                a = a + feedback(spikes[t - 1]).long()
            u, v, wrapped, saturated = arithmetic.charge(u, v, a, du, dv, self.bias)
            now, v = arithmetic.fire(v, vth)
            fired.copy_(now)
            wraps, saturations = wraps + wrapped, saturations + saturated
        return Trajectory(spikes, v, wraps, saturations)


def neurons(
    population: Population, peak: int, steps: int, current: torch.dtype, device: torch.device | str = "cpu"
) -> Neurons:
    """Prepares a population for currents of type ``current``, of which none, recurrent ones included, is larger than
    ``peak`` in weight units."""
    dtype = _exact_dtype(population, peak, steps)
    if dtype.is_floating_point:
        dtype = torch.promote_types(dtype, current)
    return Neurons(
        population,
        steps,
        dtype,
        kept_u=_channels(DECAY_ONE - 1 - population.du, dtype, device),
        kept_v=_channels(DECAY_ONE - population.dv, dtype, device),
        vth=_channels(population.vth << SHIFT, dtype, device),
        bias=torch.from_numpy(population.bias).to(device, dtype),
    )


def run(population: Population, current: Tensor, peak: int, steps: int) -> Trajectory:
    """``neurons`` and ``Neurons.run`` in one, on the device of ``current``."""
    return neurons(population, peak, steps, current.dtype, current.device).run(current)


def _exact_dtype(population: Population, peak: int, steps: int) -> torch.dtype:
    """The float type that holds all that currents up to ``peak`` can cause; int64 where that may leave 24 bits."""
    kept_u, kept_v = (np.atleast_1d(DECAY_ONE - np.asarray(d)) for d in (population.du + 1, population.dv))
    bias = int(np.abs(population.bias).max(initial=0))
    u = v = 0
    for _ in range(steps):  # a reset only makes v smaller
        u = (u * int(kept_u.max()) >> 12) + (peak << SHIFT)
        v = (v * int(kept_v.max()) >> 12) + u + bias
    if u >= STATE_LIMIT or v >= STATE_LIMIT - 1:
        return torch.int64
    exact = u * _odd_part(kept_u) <= FLOAT32_EXACT and v * _odd_part(kept_v) <= FLOAT32_EXACT
    return torch.float32 if exact else torch.float64


def _odd_part(factors: np.ndarray) -> int:
    """The largest factor without its powers of two, which only move the point of a product."""
    return int((factors // np.maximum(factors & -factors, 1)).max())


def _decay(x: Tensor, kept: Any) -> None:
    """``arithmetic.decay`` in place. (torch vectorises this division, but not ``trunc``.)"""
    if not _is(kept, DECAY_ONE):
        x.mul_(kept).div_(DECAY_ONE, rounding_mode="trunc")


def _is(value: Any, number: int) -> bool:
    return isinstance(value, int) and value == number


def _channels(values: Any, dtype: torch.dtype, device: torch.device | str) -> Any:
    """One number, or [C, 1, 1] where channels differ."""
    flat = np.ravel(values)
    if (flat == flat[0]).all():
        return int(flat[0])
    return torch.from_numpy(flat).to(device, dtype)[:, None, None]
