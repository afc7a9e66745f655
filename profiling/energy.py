"""From operations to energy. Every constant carries its source; every model says what it counts."""

from dataclasses import dataclass

import torch
from torch import nn

from spikeport.core.models import ModelSpec, Twin
from spikeport.profiling.counts import ModelCounts, count_operations

#: Energy of one 32-bit floating-point addition and of one multiply-accumulate (3.7 + 0.9), in pJ, 45 nm, 0.9 V.
#: Source: M. Horowitz, Computing's Energy Problem (and what we can do about it), ISSCC 2014, figure 1.1.9.
AC_PJ = 0.9
MAC_PJ = 4.6

#: The paper's goal for the average firing rate, spikes per neuron and step.
RATE_GOAL = 0.3


def horowitz(acs: float, macs: float) -> float:
    """Energy in nJ of ``acs`` accumulations and ``macs`` multiply-accumulates."""
    return (AC_PJ * acs + MAC_PJ * macs) / 1e3


@dataclass(frozen=True)
class PaperCount:
    """What the paper counts: one time step, padding included.

    Attributes:
        macs: convolutions and linear layers on analog input, with bias; 2 per BatchNorm element; 1 per input element
            of an average pooling of analog values.
        acs: synaptic operations of one step (the mean over the T steps).
    """

    macs: int
    acs: float

    @property
    def energy_nj(self) -> float:
        return horowitz(self.acs, self.macs)


def paper_count(counts: ModelCounts) -> PaperCount:
    """The paper's counting (thesis 2025, arXiv 2602.09717), as recomputed: exact on its SqueezeNet columns."""
    macs = 0
    for layer in counts.layers.values():
        if layer.kind in ("Conv2d", "Linear") and layer.analog:
            macs += layer.padded
        elif layer.kind.startswith("BatchNorm"):
            macs += 2 * layer.inputs
        elif layer.kind.endswith("AvgPool2d") and layer.analog:
            macs += layer.inputs
    acs = sum(float(c.acs.sum()) for c in counts.layers.values() if c.kind in ("Conv2d", "Linear"))
    return PaperCount(macs, acs / counts.samples / counts.time_steps)


def model_sizes(name: str, kind: str) -> dict[str, int]:
    """Parameters and the paper's MACs of a model by name: one 32x32 image, 10 classes."""
    model = ModelSpec(name, Twin(kind=kind)).build().eval()
    # What is counted depends on which layers see spikes, so every layer must be made to fire.
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, 0, 2, generator=generator)
    counts = count_operations(model, torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32))
    return {"parameters": sum(p.numel() for p in model.parameters()), "macs": paper_count(counts).macs}
