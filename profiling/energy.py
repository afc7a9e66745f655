"""From operations to energy. Every constant carries its source; every model says what it counts.

A model takes the ``Work`` of a layer and gives its energy by cause. The models of the Loihi chip are in
``spikeport.profiling.loihi_energy``: they take a program and the spikes of a target.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from spikeport.core.models import ModelSpec
from spikeport.profiling.counting import count_operations
from spikeport.profiling.counts import ModelCounts, Work

#: Energy of one 32-bit floating-point addition and of one multiply-accumulate (3.7 + 0.9), in pJ, 45 nm, 0.9 V.
#: Source: M. Horowitz, Computing's Energy Problem (and what we can do about it), ISSCC 2014, figure 1.1.9.
AC_PJ = 0.9
MAC_PJ = 4.6
#: The same for 8-bit integers (0.03 the addition, 0.2 the multiplication), same source.
INT8_AC_PJ = 0.03
INT8_MAC_PJ = 0.23
#: The same for 32-bit integers: addition and multiplication, same source.
INT32_ADD_PJ = 0.1
INT32_MUL_PJ = 3.1
#: Energy of a 32-bit access to SRAM of so many bytes, in pJ; linear between, constant above.
#: Source: E. Lemaire et al., An analytical estimation of spiking neural networks energy efficiency, ICONIP 2022
#: (arXiv 2210.13107), who charge Horowitz's figures for caches per 4 bytes.
SRAM_BYTES = (0.0, 8 * 1024.0, 32 * 1024.0, 1024 * 1024.0)
SRAM_PJ = (0.0, 10.0, 20.0, 100.0)
#: Messages that a spike queue of a layer holds, 4 bytes each. Source: the same, section 4.
QUEUE_BYTES = 1000 * 4
#: Bytes of a stored number in ``lemaire``.
WORD_BYTES = 4

#: The paper's goal for the average firing rate, spikes per neuron and step.
RATE_GOAL = 0.3


class EnergyModel(Protocol):
    """Energy of a layer from what it does.

    Attributes:
        name: what reports call it.
        source: where its constants and formulas are published.
        assumptions: what it counts, what it leaves out.
    """

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def assumptions(self) -> str: ...

    def energy(self, work: Work) -> dict[str, float]:
        """Cause -> nJ per image."""


@dataclass(frozen=True)
class Arithmetic:
    """Operations at a price each: ``ac`` and ``mac`` in pJ."""

    name: str
    ac: float
    mac: float
    source: str
    assumptions: str

    def of(self, acs: float, macs: float) -> float:
        """nJ of so many accumulations and multiply-accumulates."""
        return (self.ac * acs + self.mac * macs) / 1e3

    def energy(self, work: Work) -> dict[str, float]:
        return {"accumulate": self.of(work.acs, 0), "multiply-accumulate": self.of(0, work.macs)}


_HOROWITZ = "M. Horowitz, Computing's Energy Problem (and what we can do about it), ISSCC 2014, figure 1.1.9, 45 nm"

HOROWITZ = Arithmetic(
    "horowitz",
    AC_PJ,
    MAC_PJ,
    _HOROWITZ,
    f"{AC_PJ} pJ per synaptic operation (AC) and {MAC_PJ} pJ per multiply-accumulate (MAC), 32-bit floating point. "
    "Arithmetic of the synapses alone: no memory, no neuron updates, no biases, no leakage.",
)
HOROWITZ_INT8 = Arithmetic(
    "horowitz-int8",
    INT8_AC_PJ,
    INT8_MAC_PJ,
    _HOROWITZ,
    f"{INT8_AC_PJ} pJ per AC (8-bit addition) and {INT8_MAC_PJ} pJ per MAC (8-bit multiplication and addition), both "
    "twins in 8 bits. As horowitz; the wider accumulator that both need is not charged.",
)


@dataclass(frozen=True)
class Lemaire:
    """Lemaire et al. 2022: arithmetic, addressing and on-chip memory.

    Its formulas with exact counts: the synaptic events that happen stand where the paper has spikes times kernel size,
    which counts taps on padding too. Checked against SpikingJelly 2.0's version where the two are the same.
    """

    name: str = "lemaire"
    source: str = (
        "E. Lemaire et al., An analytical estimation of spiking neural networks energy efficiency, ICONIP 2022, "
        "arXiv 2210.13107; 45 nm, 32-bit integers"
    )
    assumptions: str = (
        f"{INT32_ADD_PJ} pJ per addition, {INT32_MUL_PJ} pJ per multiplication; a leak costs one multiply-accumulate "
        "per neuron and step, a spike one addition; every operation reads its weight, every synaptic event reads and "
        "writes a membrane, every neuron reads and writes its own at every step; each access costs what an SRAM of "
        "the layer's size costs (0 to 8 KB: up to 10 pJ, 32 KB: 20 pJ, 1 MB and above: 100 pJ per 4 bytes); spikes "
        "wait in queues of 4 KB; locating the outputs of a spike in a convolution costs two multiply-accumulates. No "
        "reuse of operands, no leakage. Max-pooling of spikes is charged as OR neurons without stored weights."
    )

    def energy(self, work: Work) -> dict[str, float]:
        mac = INT32_ADD_PJ + INT32_MUL_PJ
        queue, state = _sram(QUEUE_BYTES), _sram(work.outputs * WORD_BYTES)
        stored = _sram(work.parameters * WORD_BYTES)
        accesses = work.accesses
        convolves = work.kernel > 0
        passes = work.analog_passes
        found = {
            "accumulate": INT32_ADD_PJ * work.acs,
            "multiply-accumulate": mac * work.macs,
            "bias": INT32_ADD_PJ * work.bias_adds,
            "neuron update": INT32_ADD_PJ * work.spikes + mac * work.updates * work.leaky,
            "addressing": INT32_ADD_PJ * (work.acs + passes * (work.inputs + work.outputs + work.kernel))
            + mac * 2 * work.spikes_in * convolves,
            "weights": stored * (accesses.weights_read + accesses.biases_read),
            "states": state * (accesses.states_read + accesses.states_written),
            "inputs and outputs": queue * (work.spikes_in + work.spikes)
            + _sram(work.inputs * WORD_BYTES) * work.macs
            + state * work.analog_outputs,
        }
        return {cause: pj / 1e3 for cause, pj in found.items()}


def _sram(size: float) -> float:
    """pJ of one 4-byte access to an SRAM of ``size`` bytes."""
    return float(np.interp(size, SRAM_BYTES, SRAM_PJ))


LEMAIRE = Lemaire()
#: The models that both twins have, by name.
MODELS: dict[str, EnergyModel] = {model.name: model for model in (HOROWITZ, HOROWITZ_INT8, LEMAIRE)}

PAPER = "paper"
PAPER_SOURCE = "From Lightweight CNNs to SpikeNets, arXiv 2602.09717, recomputed; constants as horowitz"
PAPER_ASSUMPTIONS = (
    "One time step of the SNN (not the inference), padding and bias counted, 2 MACs per BatchNorm element, 1 per input "
    "element of an average pooling of analog values."
)


def by_layer(model: EnergyModel, counts: ModelCounts) -> dict[str, dict[str, float]]:
    """Layer -> cause -> nJ per image over all steps."""
    return {name: model.energy(layer.work()) for name, layer in counts.layers.items()}


def total(model: EnergyModel, works: Iterable[Work]) -> float:
    """nJ per image of all layers."""
    return sum(sum(model.energy(work).values()) for work in works)


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
        return HOROWITZ.of(self.acs, self.macs)


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


def model_sizes(spec: ModelSpec) -> dict[str, int]:
    """Parameters and the paper's MACs of one image through a model that need not be trained."""
    model = spec.build().eval()
    # What is counted depends on which layers see spikes, so every layer must be made to fire.
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, 0, 2, generator=generator)
    shape = (1, spec.in_channels, spec.image_size, spec.image_size)
    counts = count_operations(model, torch.linspace(-1, 1, math.prod(shape)).view(shape))
    return {"parameters": sum(p.numel() for p in model.parameters()), "macs": paper_count(counts).macs}
