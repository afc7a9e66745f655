"""Firing rates: spikes per neuron, step and sample of every LIF."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from spikeport.core.distributed import summed
from spikeport.core.neurons import LIF, Fired

#: The name under which a figure stands for all layers together.
NETWORK = "network"


def watch(model: nn.Module, see: Callable[[str, Tensor], None]) -> list[RemovableHandle]:
    """Gives ``see`` the name and the spikes of every LIF of ``model`` whenever it runs; one hook for each."""
    named = [
        (module.name if isinstance(module, Fired) else name, module)
        for name, module in model.named_modules()
        if isinstance(module, (LIF, Fired))
    ]
    return [module.register_forward_hook(lambda _, __, spikes, name=name: see(name, spikes)) for name, module in named]


@contextmanager
def watched(model: nn.Module, see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """``watch``, for a while."""
    hooks = watch(model, see)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@dataclass
class Rates:
    """Counts what ``watched`` shows, over any number of batches and all processes."""

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
        spikes, places = self._totals()
        rates = [*(spikes / places).tolist(), float(spikes.sum() / places.sum())]
        return dict(zip([*self.spikes, NETWORK], rates, strict=True))

    def _totals(self) -> Tensor:
        spikes, places = [float(n) for n in self.spikes.values()], list(self.places.values())
        own = torch.tensor([spikes, places], dtype=torch.float64)
        return summed(own)
