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
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from spikeport.core.geometry import output_size
from spikeport.targets.loihi.chips import INDEX_BITS, WEIGHT_BITS, Chip, Usage
from spikeport.targets.loihi.program import INPUT, LoihiProgram, Pair, Population, Shape, Synapse

#: Entries of the output axon table that a population axon takes.
POPULATION_SLOTS = 2
#: Of each resource, how much of a core one slice may take: whole cores, or smaller slices that share them.
SHARES = ((1.0, 1.0, 1.0, 1.0), (0.5, 1.0, 1.0, 1.0), (0.5, 0.5, 0.5, 0.5))

#: Cores that are looked at together for one that has room.
WINDOW = 64


class Grid(NamedTuple):
    """The size of a population's slices, the last of each row and column apart."""

    channels: int
    pixels: int


@dataclass(frozen=True)
class Slice:
    """The neurons of ``population`` in channels [first, end) at pixels [first, end), row by row."""

    population: str
    channels: Pair
    pixels: Pair
    usage: Usage


@dataclass(frozen=True)
class Core:
    slices: tuple[Slice, ...]
    usage: Usage

    def utilisation(self, chip: Chip) -> dict[str, float | None]:
        """Resource -> share of the core's; None where the limit is not public."""
        return {
            name: None if limit is None else getattr(self.usage, name) / limit for name, limit in chip.limits.items()
        }


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
        _Link(synapse, program.shape_of(synapse.pre), chip, shared)
        for synapse in program.synapses
        if not (host_input and synapse.pre == INPUT)
    ]
    populations = {p.name: p for p in program.populations}
    limits = np.array([np.inf if limit is None else limit for limit in chip.limits.values()])
    plans = [_Plan(chip, populations, links, limits, share) for share in SHARES]
    cores = min((_first_fit(plan.slices(), limits, plan.profiles) for plan in plans), key=len)
    return Mapping(chip, shared, cores, *plans[0].lower_bound())


@dataclass(frozen=True, eq=False)
class _Plan:
    chip: Chip
    populations: dict[str, Population]
    links: list["_Link"]
    limits: np.ndarray
    share: tuple[float, ...]
    constants: dict[tuple[str, Pair], "Profiles"] = field(default_factory=dict)

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
                before = {link.synapse.pre for link in self.links if link.synapse.post == name}
                waiting.extend(sorted(before & grids.keys() - set(waiting) - {name}))
        return [piece for name in self.populations for piece in self._cut(name, grids)]

    def profiles(self, piece: Slice) -> "Profiles":
        """What a slice needs of a core's tables of constants."""
        key = (piece.population, piece.channels)
        if key not in self.constants:
            self.constants[key] = _profiles(self.chip, self.populations[piece.population], piece.channels)
        return self.constants[key]

    def usage(self, name: str, grid: Grid, grids: dict[str, Grid]) -> np.ndarray:
        """int64 [channel ranges, pixel ranges, 4]: what each slice takes."""
        population = self.populations[name]
        first, size = _ranges(population.shape[0], grid.channels)
        starts, widths = _ranges(_whole(population).pixels, grid.pixels)
        used = np.zeros((len(first), len(starts), 4), np.int64)
        used[..., 0] = np.outer(size, widths)
        used[..., 3] = used[..., 0] * self.chip.state_bits
        for link in self.links:
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
        for channels in (n for n in _candidates(population.shape[0]) if n <= min(most.channels, allowed[0])):
            starts, sizes = _ranges(population.shape[0], channels)
            ranges = zip(starts.tolist(), (starts + sizes).tolist(), strict=True)
            if not all(_profiles(self.chip, population, piece).fit for piece in ranges):
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
            [(int(start), int(start + size)) for start, size in zip(*_ranges(total, most), strict=True)]
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


class _Link:
    """A synapse of the program: which pixels of its source lead to which of its target."""

    def __init__(self, synapse: Synapse, source: Shape, chip: Chip, shared: bool) -> None:
        self.synapse, self.chip, self.shared = synapse, chip, shared
        kernel = (synapse.weight.shape[2], synapse.weight.shape[3])
        geometry = (kernel, synapse.stride, synapse.padding, synapse.dilation)
        size = output_size(source[1:], *geometry)
        rows, columns = (_taps(n, out, *axis) for n, out, *axis in zip(source[1:], size, *geometry, strict=True))
        self.channels, self.group_in = synapse.weight.shape[:2]
        self.group_out = self.channels // synapse.groups
        self.pixels_in, self.pixels = source[1] * source[2], size[0] * size[1]
        self.out = (rows[0][:, None] * size[1] + columns[0]).ravel()
        self.into = (rows[1][:, None] * source[2] + columns[1]).ravel()
        self.index_bits = 0 if self.pixels == 1 and synapse.groups == 1 else INDEX_BITS
        self.slots = POPULATION_SLOTS if shared else 1
        self._reached: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def reached(self, pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For ranges of so many pixels, each pair once: range, source pixel, pixels of the range it leads to."""
        if pixels not in self._reached:
            keys, counts = np.unique(self.out // pixels * self.pixels_in + self.into, return_counts=True)
            self._reached[pixels] = (keys // self.pixels_in, keys % self.pixels_in, counts)
        return self._reached[pixels]

    def overlap(self, channels: int) -> np.ndarray:
        """[ranges of so many channels, groups]: channels that a range has of a group."""
        first, size = _ranges(self.channels, channels)
        start = np.arange(0, self.channels, self.group_out)
        common = np.minimum.outer(first + size, start + self.group_out) - np.maximum.outer(first, start)
        return np.maximum(common, 0)

    def incoming(self, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        """Input axons and bits of memory, each [channel ranges, pixel ranges]."""
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


@dataclass(frozen=True)
class Profiles:
    """Different constants of neurons, and how many a core holds (None: not known to be limited)."""

    thresholds: frozenset[int]
    decays: frozenset[Pair]
    most: tuple[int | None, int | None]

    @property
    def fit(self) -> bool:
        kinds = zip((self.thresholds, self.decays), self.most, strict=True)
        return all(limit is None or len(values) <= limit for values, limit in kinds)

    def __or__(self, other: "Profiles") -> "Profiles":
        return Profiles(self.thresholds | other.thresholds, self.decays | other.decays, self.most)


NO_PROFILES = Profiles(frozenset(), frozenset(), (None, None))


def _profiles(chip: Chip, population: Population, channels: Pair) -> Profiles:
    if chip.thresholds is None and chip.decays is None:
        return NO_PROFILES
    registers = (population.vth, population.du, population.dv)
    vth, du, dv = (np.broadcast_to(r, population.shape[0])[slice(*channels)].tolist() for r in registers)
    return Profiles(frozenset(vth), frozenset(zip(du, dv, strict=True)), (chip.thresholds, chip.decays))


def _first_fit(
    slices: list[Slice], allowed: np.ndarray, profiles: Callable[[Slice], Profiles] | None = None
) -> tuple[Core, ...]:
    """Slices on cores, the largest first; cores and their slices then in the program's order.

    Args:
        profiles: which constants a slice needs.
    """
    wanted = np.array([piece.usage for piece in slices], float)
    used = np.zeros_like(wanted)
    held: list[list[int]] = []
    # Cores only fill up: where a slice did not fit, no later one like it does.
    start: dict[tuple[Usage, Profiles], int] = {}
    constants: list[Profiles] = []
    for i in np.argsort(-(wanted / allowed).max(1), kind="stable").tolist():
        needed = profiles(slices[i]) if profiles else NO_PROFILES
        core = start.get((slices[i].usage, needed), 0)
        while core < len(held):
            fits = (used[core : min(core + WINDOW, len(held))] + wanted[i] <= allowed).all(1)
            room = (core + int(k) for k in fits.nonzero()[0] if (constants[core + k] | needed).fit)
            if (found := next(room, None)) is not None:
                core = found
                break
            core += len(fits)
        else:
            held.append([])
            constants.append(needed)
        start[slices[i].usage, needed] = core
        held[core].append(i)
        used[core] += wanted[i]
        constants[core] |= needed
    filled = sorted((sorted(pieces), total) for pieces, total in zip(held, used.tolist(), strict=False))
    return tuple(Core(tuple(slices[i] for i in pieces), Usage(*map(int, total))) for pieces, total in filled)


def _taps(size: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> tuple[np.ndarray, np.ndarray]:
    """Along one axis: (output, input) of every tap that does not fall on padding."""
    taps = np.arange(out)[:, None] * stride + np.arange(kernel) * dilation - padding
    output, tap = np.nonzero((taps >= 0) & (taps < size))
    return output, taps[output, tap]


def _candidates(channels: int) -> list[int]:
    """Numbers of channels per slice to try: all of them in 1, 2, 3, 4, 6, 8, 12, ... parts, down to one channel."""
    parts = {1, channels} | {n << k for n in (1, 3) for k in range(channels.bit_length()) if n << k < channels}
    return sorted({-(-channels // n) for n in parts}, reverse=True)


def _ranges(total: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and sizes of the ranges of ``size`` that cover 0..total-1."""
    starts = np.arange(0, total, size)
    return starts, np.minimum(size, total - starts)


def _whole(population: Population) -> Grid:
    return Grid(population.shape[0], population.shape[1] * population.shape[2])
