"""Where the SNN stops winning: the average firing rate at which it costs as much as its CNN."""

from dataclasses import dataclass

from spikeport.core.errors import SpikeportError
from spikeport.profiling.counts import ModelCounts
from spikeport.profiling.energy import EnergyModel, total

#: Numbers of steps looked at, or as many as the network has.
MOST_STEPS = 16


@dataclass(frozen=True)
class BreakEven:
    """Break-even under one energy model.

    Attributes:
        model: its name.
        rates: number of steps -> spikes per neuron and step at which both twins cost the same; below it the SNN wins.
            Negative where it loses even without a spike; above 1 where it always wins.
        longest: the most steps with which the SNN wins at the measured rate; 0 where it never does.
    """

    model: str
    rates: dict[int, float]
    longest: int


def break_even(model: EnergyModel, snn: ModelCounts, cnn: ModelCounts) -> BreakEven | None:
    """All rates are scaled alike, so that their profile over the layers stays as measured.

    At a given number of steps the energy of the SNN is linear in its rates; what does not depend on them (the analog
    first layer, neuron updates) stays. Analog layers that run at every step run as often as there are steps. None where
    spikes cost nothing under the model.

    Raises:
        SpikeportError: a network without spikes.
    """
    if not snn.rate:
        raise SpikeportError("the network does not fire on these samples, so it has no break-even rate")
    works = [layer.work() for layer in snn.layers.values()]
    wanted = total(model, (layer.work() for layer in cnn.layers.values()))
    rates: dict[int, float] = {}
    for steps in range(1, max(MOST_STEPS, snn.time_steps) + 1):
        time = steps / snn.time_steps
        silent, measured = (total(model, (w.scaled(rate, time) for w in works)) for rate in (0.0, 1.0))
        if measured == silent:
            return None
        rates[steps] = snn.rate * (wanted - silent) / (measured - silent)
    winning = [steps for steps in rates if snn.rate < rates[steps]]
    return BreakEven(model.name, rates, max(winning, default=0))
