"""Energy on Loihi 1, from what a target counted and from where the neurons lie.

Constants: M. Davies et al., Loihi: a neuromorphic manycore processor with on-chip learning, IEEE Micro 38(1), 2018,
table 2; simulated before silicon, 0.75 V. For Loihi 2 no figures are published, so there is no model of it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np

from spikeport.core.errors import SpikeportError
from spikeport.core.geometry import Pair, fan_out, output_size, taps
from spikeport.profiling.energy import HOROWITZ
from spikeport.targets.loihi.check import check_program, input_rows
from spikeport.targets.loihi.chips import LOIHI_1
from spikeport.targets.loihi.compatibility import Compatibility
from spikeport.targets.loihi.mapping import Mapping
from spikeport.targets.loihi.program import INPUT, LoihiProgram, Synapse
from spikeport.targets.record import SpikeRecord

#: pJ per synaptic operation (a minimum), per neuron update with and without activity, per spike within a tile, and per
#: hop of a spike between tiles. Source: Davies 2018, table 2.
SYNOP_PJ = 23.6
ACTIVE_PJ, INACTIVE_PJ = 81.0, 52.0
SPIKE_PJ = 1.7
HOP_EW_PJ, HOP_NS_PJ = 3.0, 4.0
#: Static power of one chip, W. Source: derived from E. P. Frady et al., Neuromorphic nearest neighbor search using
#: Intel's Pohoiki Springs, NICE 2020.
STATIC_W = 0.104
#: Cores of a tile, tiles in a row of the mesh. Source: SANA-FE, arch/loihi.yaml.
TILE_CORES, TILES_PER_ROW = 4, 8

NAME = "loihi1"
SOURCE = "M. Davies et al., Loihi, IEEE Micro 38(1), 2018, table 2 (simulated before silicon)"
ASSUMPTIONS = (
    f"{SYNOP_PJ} pJ per synaptic event as the target counted it (a minimum), {ACTIVE_PJ:g} pJ per neuron update in the "
    f"T steps in which a population works and {INACTIVE_PJ:g} pJ in those in which it waits for the wave of spikes, "
    f"{SPIKE_PJ} pJ per message of a spike to a slice of neurons, {HOP_EW_PJ:g} (east-west) and {HOP_NS_PJ:g} pJ "
    "(north-south) per hop between tiles. Cores are placed in order, 4 to a tile, 8 tiles to a row; a population's "
    "spikes are spread evenly over its neurons. Messages between chips, input and output have no published figure and "
    "are not charged, nor are the host and x86 cores, except that a first layer on the host is charged as 32-bit "
    f"MACs (horowitz). Static power ({STATIC_W:g} W per chip) only where the duration of an inference is given."
)
#: The row of what the host computes.
HOST = "host"


@dataclass(frozen=True)
class Traffic:
    """What one spike of a population causes, on average over its neurons."""

    messages: float
    hops_ew: float
    hops_ns: float
    between_chips: float


@dataclass(frozen=True)
class Loihi1Energy:
    """Energy per image.

    Attributes:
        rows: population (and "host", "static") -> cause -> nJ.
        cores, chips: what the program takes.
        messages_between_chips: per image; they are not charged.
    """

    rows: dict[str, dict[str, float]]
    cores: int
    chips: int
    messages_between_chips: float

    @property
    def total_nj(self) -> float:
        return sum(sum(causes.values()) for causes in self.rows.values())


def loihi1_energy(
    program: LoihiProgram,
    record: SpikeRecord,
    mapping: Mapping | None = None,
    seconds: float | None = None,
    samples: int | None = None,
) -> Loihi1Energy:
    """The energy of a simulated program on Loihi 1.

    Args:
        mapping: of ``loihi1_mapping``, which is called where None.
        seconds: duration of one inference; static power is charged only where it is given.
        samples: average over the first so many images of the record; over all where None.

    Raises:
        SpikeportError: a program Loihi 1 cannot run (graded input, a limit it breaks), or another program's record.
    """
    if record.program != program.digest():
        raise SpikeportError(f"the {record.engine} record is of another program; simulate again")
    mapping = loihi1_mapping(program) if mapping is None else mapping
    traffic = spike_traffic(program, mapping)
    images = record.samples if samples is None else samples
    per_image = lambda counts: float(counts[:images].sum()) / images  # noqa: E731
    rows: dict[str, dict[str, float]] = {}
    between = 0.0
    for population in program.populations:
        events = sum(per_image(record.events[s.name]) for s in program.into(population.name) if not s.host)
        found = {
            "synaptic operations": SYNOP_PJ * events,
            "neuron updates": population.neurons * (ACTIVE_PJ * program.time_steps + INACTIVE_PJ * program.depth),
        }
        if population.spiking:
            spikes, caused = per_image(record.spikes[population.name]), traffic[population.name]
            found["spikes"] = SPIKE_PJ * spikes * caused.messages
            found["hops"] = spikes * (HOP_EW_PJ * caused.hops_ew + HOP_NS_PJ * caused.hops_ns)
            between += spikes * caused.between_chips
        rows[population.name] = {cause: pj / 1e3 for cause, pj in found.items()}
    host = host_macs(program)
    if host:
        rows[HOST] = {"multiply-accumulate on the host": HOROWITZ.of(0, host)}
    if seconds is not None:
        rows["static"] = {"static power": STATIC_W * mapping.chips * seconds * 1e9}
    return Loihi1Energy(rows, len(mapping.cores), mapping.chips, between)


def loihi1_mapping(program: LoihiProgram) -> Mapping:
    """The program on Loihi 1's cores. Raises SpikeportError where Loihi 1 cannot run it."""
    enters = "spikes" if program.takes_spikes else program.input_mode
    checked = Compatibility(LOIHI_1, enters, tuple(input_rows(program, LOIHI_1, enters)), None)
    if checked.fits:
        checked = check_program(program, LOIHI_1.name, enters)
    if checked.mapping is None or not checked.fits:
        reason = checked.errors[0].partition(" or `--chip")[0]  # the model is of this chip: no other is a remedy
        raise SpikeportError(f"energy model loihi1: Loihi 1 cannot run this program: {reason}")
    return checked.mapping


def host_macs(program: LoihiProgram) -> int:
    """Dense multiply-accumulates of the synapses on the host, once per inference."""
    return dense_operations(program, [synapse for synapse in program.synapses if synapse.host])


def dense_operations(program: LoihiProgram, synapses: Iterable[Synapse]) -> int:
    """Operations of these synapses if none of their inputs were zero, at one step."""
    found = 0
    for synapse in synapses:
        reach = fan_out(program.shape_of(synapse.pre)[1:], *synapse.geometry)
        found += int(reach.sum()) * int(synapse.outputs_reached.sum())
    return found


def spike_traffic(program: LoihiProgram, mapping: Mapping) -> dict[str, Traffic]:
    """Population -> what one of its spikes causes: a message to every slice it reaches, hop by hop along x, then y."""
    slices: dict[str, list[tuple[int, Pair, Pair]]] = {}
    for index, core in enumerate(mapping.cores):
        for piece in core.slices:
            slices.setdefault(piece.population, []).append((index, piece.channels, piece.pixels))
    sums = {population.name: np.zeros(4) for population in program.populations}
    for synapse in program.synapses:
        if synapse.pre == INPUT:
            continue
        reached = _reached(program, synapse)
        per_group = synapse.weight.shape[0] // synapse.groups
        for target, channels, pixels in slices[synapse.post]:
            first, last = channels[0] // per_group, (channels[1] - 1) // per_group
            sources = (first * synapse.weight.shape[1], (last + 1) * synapse.weight.shape[1])
            seen = reached(pixels)
            for source, own_channels, own_pixels in slices[synapse.pre]:
                shared = min(sources[1], own_channels[1]) - max(sources[0], own_channels[0])
                neurons = max(shared, 0) * int(seen[own_pixels[1]] - seen[own_pixels[0]])
                if neurons:
                    sums[synapse.pre] += neurons * np.array([1.0, *_hops(source, target)])
    return {p.name: Traffic(*(sums[p.name] / p.neurons).tolist()) for p in program.populations}


def _hops(source: int, target: int) -> tuple[int, int, int]:
    """Hops east-west and north-south between two cores, and whether they lie on different chips (no hops then)."""
    if source // LOIHI_1.cores != target // LOIHI_1.cores:
        return 0, 0, 1
    a, b = (core % LOIHI_1.cores // TILE_CORES for core in (source, target))
    return abs(a % TILES_PER_ROW - b % TILES_PER_ROW), abs(a // TILES_PER_ROW - b // TILES_PER_ROW), 0


def _reached(program: LoihiProgram, synapse: Synapse) -> Callable[[Pair], np.ndarray]:
    """For a range of the target's pixels: how many of the source's first n pixels lead there, int64 [H * W + 1]."""
    source = program.shape_of(synapse.pre)[1:]
    size = output_size(source, *synapse.geometry)
    axes = zip(source, size, *synapse.geometry, strict=True)
    rows, columns = (_touches(n, taps(out, *axis)) for n, out, *axis in axes)

    @cache
    def reached(pixels: Pair) -> np.ndarray:
        mask = np.zeros(size[0] * size[1])
        mask[pixels[0] : pixels[1]] = 1
        leads = (rows.T @ mask.reshape(size) @ columns > 0).ravel()
        return np.concatenate([[0], np.cumsum(leads)])

    return reached


def _touches(size: int, met: np.ndarray) -> np.ndarray:
    """Whether one of an output's ``taps`` meets an input, float64 [out, size]."""
    touches: np.ndarray = (met[:, :, None] == np.arange(size)).any(1).astype(np.float64)
    return touches
