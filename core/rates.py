"""Firing rates: spikes per neuron, step and sample of every LIF."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from spikeport.core.distributed import summed
from spikeport.core.neurons import LIF, Fired

#: The name under which a figure stands for all layers together.
NETWORK = "network"


def spiking_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and module of every LIF of ``model``, whose output is its spikes."""
    return [
        (module.name if isinstance(module, Fired) else name, module)
        for name, module in model.named_modules()
        if isinstance(module, (LIF, Fired))
    ]


@dataclass
class Rates:
    """Counts the spikes of ``spiking_layers``, over any number of batches and all processes."""

    spikes: dict[str, Tensor | float] = field(default_factory=dict)
    places: dict[str, float] = field(default_factory=dict)

    def see(self, name: str, spikes: Tensor) -> None:
        self.spikes[name] = self.spikes.get(name, 0.0) + spikes.detach().sum(dtype=torch.float64)  # no wait for a GPU
        self.places[name] = self.places.get(name, 0.0) + spikes.numel()

    def per_layer(self) -> dict[str, float]:
        """The rate of every layer and, as "network", over all LIF outputs (neurons, steps, samples).

        The last is the paper's average firing rate. Empty where there is no LIF.
        """
        if not self.spikes:
            return {}
        own = torch.tensor([list(map(float, self.spikes.values())), list(self.places.values())], dtype=torch.float64)
        spikes, places = summed(own)
        rates = [*(spikes / places).tolist(), float(spikes.sum() / places.sum())]
        return dict(zip([*self.spikes, NETWORK], rates, strict=True))
