"""What a synapse of a program takes of the cores that its two ends are split over: axons and synaptic memory."""

from typing import NamedTuple

import numpy as np

from spikeport.core.geometry import Shape, output_size, taps
from spikeport.targets.loihi.chips import INDEX_BITS, WEIGHT_BITS, Chip
from spikeport.targets.loihi.program import INPUT, Synapse

#: Entries of the output axon table that a population axon takes.
POPULATION_SLOTS = 2


class Grid(NamedTuple):
    """The size of a population's slices, the last of each row and column apart."""

    channels: int
    pixels: int


class Link:
    """A synapse of the program: which pixels of its source lead to which of its target."""

    def __init__(self, synapse: Synapse, source: Shape, chip: Chip, shared: bool) -> None:
        self.synapse, self.chip, self.shared = synapse, chip, shared
        size = output_size(source[1:], *synapse.geometry)
        axes = zip(source[1:], size, *synapse.geometry, strict=True)
        rows, columns = (_pairs(n, taps(out, *axis)) for n, out, *axis in axes)
        self.channels, self.group_in = synapse.weight.shape[:2]
        self.group_out = self.channels // synapse.groups
        self.pixels_in, self.pixels = source[1] * source[2], size[0] * size[1]
        self.out = (rows[0][:, None] * size[1] + columns[0]).ravel()
        self.into = (rows[1][:, None] * source[2] + columns[1]).ravel()
        self.index_bits = 0 if self.pixels == 1 and synapse.groups == 1 else INDEX_BITS
        self.slots = POPULATION_SLOTS if shared else 1
        self._reached: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self._incoming: dict[Grid, tuple[np.ndarray, np.ndarray]] = {}

    def reached(self, pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For ranges of so many pixels, each pair once: range, source pixel, pixels of the range it leads to."""
        if pixels not in self._reached:
            keys, counts = np.unique(self.out // pixels * self.pixels_in + self.into, return_counts=True)
            self._reached[pixels] = (keys // self.pixels_in, keys % self.pixels_in, counts)
        return self._reached[pixels]

    def overlap(self, channels: int) -> np.ndarray:
        """[ranges of so many channels, groups]: channels that a range has of a group."""
        first, size = spans(self.channels, channels)
        start = np.arange(0, self.channels, self.group_out)
        common = np.minimum.outer(first + size, start + self.group_out) - np.maximum.outer(first, start)
        return np.maximum(common, 0)

    def incoming(self, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        """Input axons and bits of memory, each [channel ranges, pixel ranges]; asked for again and again."""
        if grid not in self._incoming:
            self._incoming[grid] = self._count_incoming(grid)
        return self._incoming[grid]

    def _count_incoming(self, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        ranges, _, counts = self.reached(grid.pixels)
        n = -(-self.pixels // grid.pixels)
        sources = np.bincount(ranges, minlength=n)
        overlap = self.overlap(grid.channels)
        if self.shared:
            kernels = overlap.sum(1) * self.synapse.weight[0].size * WEIGHT_BITS
            return np.tile(sources, (len(kernels), 1)), np.outer(kernels, np.ones(n, np.int64))
        memory = np.zeros((len(overlap), n), np.int64)
        for outputs in np.unique(overlap[overlap > 0]):
            axons = self.chip.axon_bits(counts * outputs, self.index_bits)
            per_channel = np.bincount(ranges, weights=axons, minlength=n).astype(np.int64)
            memory += np.outer((overlap == outputs).sum(1) * self.group_in, per_channel)
        return np.outer((overlap > 0).sum(1) * self.group_in, sources), memory

    def outgoing(self, target: Grid) -> tuple[np.ndarray, np.ndarray]:
        """Output axons of a neuron: the product of what its channel [C] and its pixel [H * W] reach of the target."""
        channels = np.repeat((self.overlap(target.channels) > 0).sum(0), self.group_in)
        return channels * self.slots, np.bincount(self.reached(target.pixels)[1], minlength=self.pixels_in)

    def least(self) -> np.ndarray:
        """What it takes on however many cores, in the order of ``Usage``."""
        fan = np.bincount(self.into, minlength=self.pixels_in)
        sources = int((fan > 0).sum())
        neurons = sources * self.group_in * self.synapse.groups
        out = 0 if self.synapse.pre == INPUT else neurons * self.slots
        if self.shared:
            return np.array([0, sources, out, self.synapse.weight.size * WEIGHT_BITS], float)
        synapses = fan[fan > 0] * self.group_out
        count = np.arange(1, int(synapses.max(initial=1)) + 1)
        # Cutting an axon's list in pieces costs every synapse at least the rate of the cheapest piece.
        rate = np.minimum.accumulate(self.chip.axon_bits(count, self.index_bits) / count)
        memory = float((synapses * rate[synapses - 1]).sum()) * self.group_in * self.synapse.groups
        return np.array([0, neurons, out, memory])


def _pairs(size: int, met: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(output, input) of every one of ``taps`` that does not fall on padding."""
    output, tap = np.nonzero((met >= 0) & (met < size))
    return output, met[output, tap]


def spans(total: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and sizes of the ranges of ``size`` that cover 0..total-1."""
    starts = np.arange(0, total, size)
    return starts, np.minimum(size, total - starts)
