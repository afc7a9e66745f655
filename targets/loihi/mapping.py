"""A Loihi program on cores: how many it needs, and what each of them holds.

How it counts:

- A slice is a range of a population's channels at a range of its pixels (row by row). What a core takes is the sum over
  its slices, as NengoLoihi sums over the synapses of a block.
- Input axons: the neurons from which a synapse leads into the slice, again for every ``Synapse``. Padding sends none.
- Output axons: one per neuron and slice that it reaches. (The input sits on the host and takes none.)
- Synaptic memory, each synapse stored (``shared=False``, conservative): every tap of the kernel, zero or not, once for
  every neuron it leads to, in the chip's format (``Chip.axon_bits``), with the index of the neuron unless all axons of
  a dense layer lead to all of them.
- Synaptic memory, kernels shared (``shared=True``): a slice stores the kernels of its channels once; an input axon then
  carries all channels of one pixel, and an output axon takes two entries (NengoLoihi's 32-bit population axons).
- Loihi 2 keeps neurons in the same memory: 48 bits each for u and v. Its axon tables share it too, uncounted, as are
  pointers to shared kernels: no public figure. Where memory binds, its core count is a lower estimate.
- Thresholds and pairs of decays: those that differ, on Loihi 1, whose cores hold a few of each.

The lower bound counts, whatever the split, every neuron, synapse and axon once, and divides by what a core holds.
"""

from collections import deque
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from spikeport.core.geometry import Pair
from spikeport.targets.loihi.chips import Chip, Usage
from spikeport.targets.loihi.links import Grid, Link, spans
from spikeport.targets.loihi.packing import Core, Profiles, Slice, first_fit, profiles_of
from spikeport.targets.loihi.program import INPUT, LoihiProgram, Population

#: Of each resource, how much of a core one slice may take: whole cores, or smaller slices that share them.
SHARES = ((1.0, 1.0, 1.0, 1.0), (0.5, 1.0, 1.0, 1.0), (0.5, 0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Mapping:
    """Where every neuron lies; whether kernels are shared; the cores no split goes below, and for which resource."""

    chip: Chip
    shared: bool
    cores: tuple[Core, ...]
    lower_bound: int
    bound_by: str

    @property
    def chips(self) -> int:
        return -(-len(self.cores) // self.chip.cores)

    def taken(self, population: str) -> tuple[int, Usage]:
        """Cores that a population lies on, and the largest use of each resource by one of its slices."""
        held = [[s.usage for s in core.slices if s.population == population] for core in self.cores]
        return sum(map(bool, held)), Usage(*np.max([usage for core in held for usage in core], axis=0).tolist())


def map_program(program: LoihiProgram, chip: Chip, shared: bool | None = None, host_input: bool = False) -> Mapping:
    """Splits every population over cores, greedily.

    Populations are split from the last to the first, so that the fan-out of each is known: into the slices that take
    the fewest cores, counting those that their axons cost before them. Slices then fill cores first-fit, the largest
    first. Of several sizes of slices (``SHARES``) the one that needs the fewest cores is taken.

    A population of which even one neuron breaks a limit is mapped as if that limit did not hold for it: its slices
    exceed it, which ``check_program`` reports.

    Args:
        shared: store kernels once per slice; ``chip.shares_kernels`` where None.
        host_input: the host computes the synapses from the input, which take nothing of the chip.
    """
    shared = chip.shares_kernels if shared is None else shared
    links = [
        Link(synapse, program.shape_of(synapse.pre), chip, shared)
        for synapse in program.synapses
        if not (host_input and synapse.pre == INPUT)
    ]
    populations = {p.name: p for p in program.populations}
    limits = np.array([np.inf if limit is None else limit for limit in chip.limits.values()])
    plans = [_Plan(chip, populations, links, limits, share) for share in SHARES]
    cores = min((first_fit(plan.slices(), limits, plan.profiles) for plan in plans), key=len)
    return Mapping(chip, shared, cores, *plans[0].lower_bound())


@dataclass(frozen=True, eq=False)
class _Plan:
    chip: Chip
    populations: dict[str, Population]
    links: list[Link]
    limits: np.ndarray
    share: tuple[float, ...]
    constants: dict[tuple[str, Pair], Profiles] = field(default_factory=dict)

    @cached_property
    def touching(self) -> dict[str, list[Link]]:
        """Population -> the synapses into it and out of it."""
        ends = {link: {link.synapse.pre, link.synapse.post} for link in self.links}
        return {name: [link for link in self.links if name in ends[link]] for name in self.populations}

    def slices(self) -> list[Slice]:
        """Every population in slices, in the program's order."""
        grids: dict[str, Grid] = {}
        waiting = deque(reversed(self.populations))
        while waiting:
            name = waiting.popleft()
            grid = self.split(name, grids)
            if grid != grids.get(name):
                grids[name] = grid
                # Only behind a recurrent synapse was a source split before its target. Slices only ever shrink.
                before = {link.synapse.pre for link in self.touching[name] if link.synapse.post == name}
                waiting.extend(sorted(before & grids.keys() - set(waiting) - {name}))
        return [piece for name in self.populations for piece in self._cut(name, grids)]

    def profiles(self, piece: Slice) -> Profiles:
        """What a slice needs of a core's tables of constants."""
        key = (piece.population, piece.channels)
        if key not in self.constants:
            self.constants[key] = profiles_of(self.chip, self.populations[piece.population], piece.channels)
        return self.constants[key]

    def usage(self, name: str, grid: Grid, grids: dict[str, Grid]) -> np.ndarray:
        """int64 [channel ranges, pixel ranges, 4]: what each slice takes."""
        population = self.populations[name]
        first, size = spans(population.shape[0], grid.channels)
        starts, widths = spans(_whole(population).pixels, grid.pixels)
        used = np.zeros((len(first), len(starts), 4), np.int64)
        used[..., 0] = np.outer(size, widths)
        used[..., 3] = used[..., 0] * self.chip.state_bits
        for link in self.touching[name]:
            if link.synapse.post == name:
                axons, memory = link.incoming(grid)
                used[..., 1] += axons
                used[..., 3] += memory
            if link.synapse.pre == name:
                post = self.populations[link.synapse.post]
                target = grid if post.name == name else grids.get(post.name, _whole(post))
                channels, pixels = link.outgoing(target)
                used[..., 2] += np.outer(np.add.reduceat(channels, first), np.add.reduceat(pixels, starts))
        return used

    def split(self, name: str, grids: dict[str, Grid]) -> Grid:
        """The largest slices that fit, at most as large as before."""
        population = self.populations[name]
        most = grids.get(name, _whole(population))
        smallest = self.usage(name, Grid(1, 1), grids).max((0, 1))
        allowed = np.maximum(self.limits * self.share, np.where(smallest > self.limits, np.inf, smallest))
        best, least = Grid(1, 1), np.inf
        all_fit = profiles_of(self.chip, population, (0, population.shape[0])).fit  # then those of a part do
        for channels in (n for n in _candidates(population.shape[0]) if n <= min(most.channels, allowed[0])):
            starts, sizes = spans(population.shape[0], channels)
            ranges = zip(starts.tolist(), (starts + sizes).tolist(), strict=True)
            if not all_fit and not all(profiles_of(self.chip, population, piece).fit for piece in ranges):
                continue
            low, high = 0, int(min(most.pixels, allowed[0] // channels))
            while low < high:
                middle = (low + high + 1) // 2
                fits = (self.usage(name, Grid(channels, middle), grids) <= allowed).all()
                low, high = (middle, high) if fits else (low, middle - 1)
            if low:
                used = self.usage(name, Grid(channels, low), grids)
                # Every axon into these slices is also one out of the cores before them.
                cost = used[..., 0].size + used[..., 1].sum() * (1 / self.limits[2] + 1e-12)
                if cost < least:
                    best, least = Grid(channels, low), cost
        return best

    def _cut(self, name: str, grids: dict[str, Grid]) -> list[Slice]:
        used = self.usage(name, grids[name], grids).tolist()
        channels, pixels = (
            [(int(start), int(start + size)) for start, size in zip(*spans(total, most), strict=True)]
            for total, most in zip(_whole(self.populations[name]), grids[name], strict=True)
        )
        return [Slice(name, c, p, Usage(*used[i][j])) for i, c in enumerate(channels) for j, p in enumerate(pixels)]

    def lower_bound(self) -> tuple[int, str]:
        neurons = sum(p.neurons for p in self.populations.values())
        least = np.array([neurons, 0, 0, neurons * self.chip.state_bits], float)
        for link in self.links:
            least += link.least()
        cores = np.ceil(least / self.limits - 1e-9)
        return max(int(cores.max()), 1), Usage._fields[int(cores.argmax())]


def _candidates(channels: int) -> list[int]:
    """Numbers of channels per slice to try: all of them in 1, 2, 3, 4, 6, 8, 12, ... parts, down to one channel."""
    parts = {1, channels} | {n << k for n in (1, 3) for k in range(channels.bit_length()) if n << k < channels}
    return sorted({-(-channels // n) for n in parts}, reverse=True)


def _whole(population: Population) -> Grid:
    return Grid(population.shape[0], population.shape[1] * population.shape[2])
