"""How the neurons of a network fire: rates over neurons, steps and classes; the silent and the saturated."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from spikeport.core.errors import SpikeportError
from spikeport.profiling.counts import ModelCounts

#: Bins of the histogram of firing rates, and their edges.
BINS = 20
EDGES = np.linspace(0, 1, BINS + 1)


@dataclass(frozen=True)
class LayerStatistics:
    """One LIF layer over all samples.

    Attributes:
        neurons: how many.
        rate: spikes per neuron and step.
        silent: neurons that never fire.
        saturated: neurons that fire at every step of every sample.
        histogram: neurons whose rate lies in each bin of ``EDGES``.
        steps: rate at each time step.
        classes: class -> rate over its samples; empty without labels.
    """

    neurons: int
    rate: float
    silent: int
    saturated: int
    histogram: tuple[int, ...]
    steps: tuple[float, ...]
    classes: dict[int, float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def firing_statistics(counts: ModelCounts, labels: np.ndarray | None = None) -> dict[str, LayerStatistics]:
    """LIF layer -> its statistics.

    Raises:
        SpikeportError: a model without spiking layers, or not one label per sample.
    """
    if not counts.spiking:
        raise SpikeportError("a model without spiking layers has no firing rates; give the SNN")
    if labels is not None and len(labels) != counts.samples:
        raise SpikeportError(f"{len(labels)} labels for {counts.samples} samples; give one per sample")
    found = {}
    for name, layer in counts.layers.items():
        if layer.kind != "LIF":
            continue
        steps = layer.spikes.shape[1]
        chances = counts.samples * steps
        bins = np.minimum(layer.neuron_spikes * BINS // chances, BINS - 1)  # in whole numbers: an edge is in its bin
        rates = layer.spikes / layer.outputs
        found[name] = LayerStatistics(
            neurons=layer.outputs,
            rate=layer.rate,
            silent=int((layer.neuron_spikes == 0).sum()),
            saturated=int((layer.neuron_spikes == chances).sum()),
            histogram=tuple(np.bincount(bins, minlength=BINS).tolist()),
            steps=tuple(rates.mean(0).tolist()),
            classes={} if labels is None else {int(c): float(rates[labels == c].mean()) for c in np.unique(labels)},
        )
    return found
