"""What Loihi 1 and Loihi 2 hold: every limit with its public source, None where no figure is public.

Widths of weights, decays, thresholds, biases and states are those of the neuron both engines run; on Loihi 2, whose
neurons are programs, they are those of Lava's LIF, which Lava states to be bit-accurate with the chip.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from spikeport.core.errors import SpikeportError
from spikeport.targets.loihi.arithmetic import SHIFT

DAVIES = "M. Davies et al., Loihi: a neuromorphic manycore processor with on-chip learning, IEEE Micro 38(1), 2018"
SURVEY = "M. Davies et al., Advancing neuromorphic computing with Loihi, Proc. IEEE 109(5), 2021"
NENGO = "NengoLoihi 1.1, nengo_loihi/block.py (MAX_COMPARTMENTS, MAX_IN_AXONS, MAX_OUT_AXONS, MAX_SYNAPSE_BITS)"
BRIEF = "Intel, Taking neuromorphic computing to the next level with Loihi 2, technology brief, 2021"
NO_FIGURE = "no public figure"
LAVA = "lava-nc 0.10, lava.proc.lif.models.PyLifModelBitAcc"

#: Bits of a stored synapse: its weight; the compartment it leads to; the header of a list of at most BLOCK synapses.
#: Source: ``SynapseConfig.bits_per_axon`` of NengoLoihi 1.1.
WEIGHT_BITS, INDEX_BITS, HEADER_BITS, BLOCK = 8, 10, 10, 64
#: Resource of a core -> (what people call it, unit).
RESOURCES = {
    "compartments": ("compartments", "neurons"),
    "axons_in": ("fan-in axons", "axons"),
    "axons_out": ("fan-out axons", "axons"),
    "memory_bits": ("synaptic memory", "bits"),
}


class Usage(NamedTuple):
    """Resources of one core."""

    compartments: int
    axons_in: int
    axons_out: int
    memory_bits: int


@dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
        name: what ``--chip`` calls it.
        title: what people call it.
        cores: neuromorphic cores per chip.
        compartments: neurons per core.
        axons_in: input axons per core.
        axons_out: output axons per core.
        memory_bits: per core, for synapses (and for neurons, see ``state_bits``).
        state_bits: of ``memory_bits`` that each neuron takes; 0 where neurons have a memory of their own.
        word_bits: synaptic memory is allotted in words of this many bits; None where its format is not public.
        shares_kernels: whether the chip's public tools store a convolution's kernel once per core.
        weight_bits: of a weight with its sign.
        decay_bits, threshold_bits: unsigned.
        bias_mantissa_bits: with its sign.
        bias_exponent_bits: unsigned.
        state_width: bits of u and of v, with their sign.
        graded_bits: payload of a spike; 0 where spikes are binary.
        thresholds: different ones that a core holds.
        decays: different pairs of decays that a core holds.
        chips: in the largest system Intel has shown.
        sources: field -> where its figure is published.
    """

    name: str
    title: str
    cores: int
    compartments: int
    axons_in: int | None
    axons_out: int | None
    memory_bits: int
    state_bits: int
    word_bits: int | None
    shares_kernels: bool
    weight_bits: int
    decay_bits: int
    threshold_bits: int
    bias_mantissa_bits: int
    bias_exponent_bits: int
    state_width: int
    graded_bits: int
    thresholds: int | None
    decays: int | None
    chips: int
    sources: Mapping[str, str] = field(compare=False)

    @property
    def decay_max(self) -> int:
        return (1 << self.decay_bits) - 1

    @property
    def threshold_max(self) -> int:
        return (1 << self.threshold_bits) - 1

    @property
    def bias_mantissa_max(self) -> int:
        return (1 << (self.bias_mantissa_bits - 1)) - 1

    @property
    def bias_exponent_max(self) -> int:
        return (1 << self.bias_exponent_bits) - 1

    @property
    def state_max(self) -> int:
        """The largest |u| or |v| in units of a weight, which is aligned to them by 6 bits."""
        return ((1 << (self.state_width - 1)) >> SHIFT) - 1

    @property
    def limits(self) -> dict[str, int | None]:
        """Of one core, in the order of ``Usage``."""
        return {name: getattr(self, name) for name in Usage._fields}

    def axon_bits(self, synapses: np.ndarray, index_bits: int) -> np.ndarray:
        """Synaptic memory of input axons with so many stored synapses each.

        A list is stored in blocks of at most BLOCK synapses, each rounded up to words. Where the format of the words
        is not public, the weights alone: a lower estimate.
        """
        if self.word_bits is None:
            return synapses * WEIGHT_BITS
        full, rest = np.divmod(synapses, BLOCK)
        return full * self._block_bits(np.array(BLOCK), index_bits) + (rest > 0) * self._block_bits(rest, index_bits)

    def _block_bits(self, synapses: np.ndarray, index_bits: int) -> np.ndarray:
        words = self.word_bits or 1
        return -(-(synapses * (WEIGHT_BITS + index_bits) + HEADER_BITS) // words) * words


LOIHI_1 = Chip(
    name="loihi1",
    title="Loihi 1",
    cores=128,
    compartments=1024,
    axons_in=4096,
    axons_out=4096,
    memory_bits=16_384 * 64,
    state_bits=0,
    word_bits=64,
    shares_kernels=False,
    weight_bits=9,
    decay_bits=12,
    threshold_bits=17,
    bias_mantissa_bits=13,
    bias_exponent_bits=3,
    state_width=24,
    graded_bits=0,
    thresholds=8,
    decays=32,
    chips=768,
    sources={
        "cores": DAVIES,
        "compartments": f"{DAVIES}; {NENGO}",
        "axons_in": NENGO,
        "axons_out": NENGO,
        "memory_bits": f"{NENGO}; 128 kB of synaptic state per core: {SURVEY}",
        "state_bits": f"{BRIEF}: memory of fixed allocation, 24 bytes for each neuron apart",
        "word_bits": "NengoLoihi 1.1, SynapseConfig.bits_per_axon",
        "shares_kernels": "not by default: NengoLoihi shares them only through population axons, NxTF by search",
        "weight_bits": f"{DAVIES} (1 to 9 bits)",
        "decay_bits": LAVA,
        "threshold_bits": LAVA,
        "bias_mantissa_bits": LAVA,
        "bias_exponent_bits": LAVA,
        "state_width": LAVA,
        "graded_bits": f"{BRIEF}: binary spike events",
        "thresholds": "NengoLoihi 1.1, nengo_loihi/hardware/nxsdk_objects.py (MAX_VTH_CFGS)",
        "decays": "NengoLoihi 1.1, nengo_loihi/hardware/nxsdk_objects.py (MAX_COMPARTMENT_CFGS)",
        "chips": "Pohoiki Springs, Intel newsroom, March 2020",
    },
)

LOIHI_2 = Chip(
    name="loihi2",
    title="Loihi 2",
    cores=128,
    compartments=8192,
    axons_in=None,
    axons_out=None,
    memory_bits=192 * 1024 * 8,
    state_bits=2 * 24,
    word_bits=None,
    shares_kernels=True,
    weight_bits=8,
    decay_bits=12,
    threshold_bits=17,
    bias_mantissa_bits=13,
    bias_exponent_bits=3,
    state_width=24,
    graded_bits=32,
    thresholds=None,
    decays=None,
    chips=1152,
    sources={
        "cores": f"{BRIEF} (up to 128; Hala Point has 140,544 on 1152 chips, so 122 of each in use)",
        "compartments": f"{BRIEF}: 1 million neurons per chip of 128 cores",
        "axons_in": NO_FIGURE,
        "axons_out": NO_FIGURE,
        "memory_bits": f"{BRIEF}: 192 KB per core, flexible allocation",
        "state_bits": f"u and v of 24 bits ({LAVA}); {BRIEF}: 0 to 4096 bytes per neuron, by its model",
        "word_bits": NO_FIGURE,
        "shares_kernels": "lava-dl 0.3.0 release notes: Loihi 2's convolutional network compression",
        "weight_bits": "Neuromorphic principles for efficient LLMs on Intel Loihi 2, arXiv 2503.18002, 2025",
        "decay_bits": LAVA,
        "threshold_bits": LAVA,
        "bias_mantissa_bits": LAVA,
        "bias_exponent_bits": LAVA,
        "state_width": LAVA,
        "graded_bits": f"{BRIEF}: graded spike events, up to 32 bits of payload",
        "thresholds": NO_FIGURE,
        "decays": NO_FIGURE,
        "chips": "Hala Point, Intel newsroom, April 2024",
    },
)

CHIPS = {chip.name: chip for chip in (LOIHI_1, LOIHI_2)}


def find_chip(name: str | None = None) -> Chip:
    """The chip of that name, Loihi 2 where None. Raises SpikeportError for an unknown name."""
    if name is None:
        return LOIHI_2
    if name not in CHIPS:
        raise SpikeportError(f"unknown chip {name!r}; available: {', '.join(CHIPS)}")
    return CHIPS[name]
