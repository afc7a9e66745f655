"""Programs on cores: every neuron once, every limit kept, and the counts those of a plain enumeration."""

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import product
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikeport.core.geometry import Shape, output_size
from spikeport.targets.loihi.chips import CHIPS, LOIHI_1, LOIHI_2, NO_FIGURE, Chip, Usage
from spikeport.targets.loihi.mapping import SHARES, Mapping, map_program
from spikeport.targets.loihi.packing import Slice, first_fit
from spikeport.targets.loihi.program import INPUT, LoihiProgram, Population, Synapse

#: A core with only as many limits as a test sets.
BOUNDLESS = replace(
    LOIHI_1, compartments=1 << 20, axons_in=None, axons_out=None, memory_bits=1 << 60, thresholds=None, decays=None
)
#: Every neuron on a core of its own.
ALONE = replace(BOUNDLESS, compartments=1)

Neuron = tuple[str, int, int]


def population(name: str, shape: Shape) -> Population:
    return Population(name, name, shape, 4095, 2048, 64, np.zeros(shape[0], np.int32), 0, 64.0, 1)


def network(input_shape: Shape, shapes: dict[str, Shape], synapses: list[Synapse]) -> LoihiProgram:
    populations = tuple(population(name, shape) for name, shape in shapes.items())
    return LoihiProgram(4, input_shape, 1.0, populations, tuple(synapses), list(shapes)[-1])


def small() -> LoihiProgram:
    """A 3x3 convolution of a 4x4 image to two channels, and a dense layer onto five neurons."""
    convolution = Synapse("conv", "", INPUT, "map", np.ones((2, 1, 3, 3), np.int8), padding=(1, 1))
    dense = Synapse("dense", "", "map", "out", np.ones((5, 2, 4, 4), np.int8))
    return network((1, 4, 4), {"map": (2, 4, 4), "out": (5, 1, 1)}, [convolution, dense])


@st.composite
def programs(draw: st.DrawFn) -> LoihiProgram:
    """Chains with joins, groups, strides, padding and dilation, and sometimes a recurrent synapse."""
    input_shape = (draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    shapes: dict[str, Shape] = {INPUT: input_shape}
    synapses: list[Synapse] = []
    for index in range(draw(st.integers(1, 4))):
        name = f"p{index}"
        pre = draw(st.sampled_from(list(shapes)))
        first = draw(_synapse(f"{name}.0", pre, name, shapes[pre], draw(st.integers(1, 4))))
        shapes[name] = _shape(first, shapes[pre])
        synapses.append(first)
        pre = draw(st.sampled_from(list(shapes)))
        second = draw(_synapse(f"{name}.1", pre, name, shapes[pre], shapes[name][0]))
        if _shape(second, shapes[pre]) == shapes[name]:
            synapses.append(second)
    del shapes[INPUT]
    if draw(st.booleans()):
        pre, post = list(shapes)[-1], next(iter(shapes))
        kernel = (shapes[post][0], shapes[pre][0], 1, 1)
        if shapes[pre][1:] == shapes[post][1:]:
            synapses.append(Synapse("back", "", pre, post, np.ones(kernel, np.int8)))
    return network(input_shape, shapes, synapses)


@st.composite
def _synapse(draw: st.DrawFn, name: str, pre: str, post: str, shape: Shape, channels: int) -> Synapse:
    kernel, padding, dilation = [], [], []
    for size in shape[1:]:
        padding.append(draw(st.integers(0, 2)))
        dilation.append(draw(st.integers(1, 2)))
        kernel.append(draw(st.integers(1, (size + 2 * padding[-1] - 1) // dilation[-1] + 1)))
    stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    groups = draw(st.sampled_from([g for g in (1, 2, 3, 4) if shape[0] % g == channels % g == 0]))
    weight = np.ones((channels, shape[0] // groups, *kernel), np.int8)
    pads, dilations = (padding[0], padding[1]), (dilation[0], dilation[1])
    return Synapse(name, "", pre, post, weight, stride, pads, dilations, groups)


def _shape(synapse: Synapse, before: Shape) -> Shape:
    kernel = (synapse.weight.shape[2], synapse.weight.shape[3])
    size = output_size(before[1:], kernel, synapse.stride, synapse.padding, synapse.dilation)
    return (len(synapse.weight), *size)


def connections(program: LoihiProgram, synapse: Synapse) -> list[tuple[Neuron, Neuron]]:
    """Every single synapse, one by one."""
    channels, height, width = program.shape_of(synapse.pre)
    out = program.shape_of(synapse.post)
    per_group = len(synapse.weight) // synapse.groups
    found = []
    for k, y, x in product(*map(range, out)):
        for c, i, j in product(*map(range, synapse.weight.shape[1:])):
            row = y * synapse.stride[0] - synapse.padding[0] + i * synapse.dilation[0]
            column = x * synapse.stride[1] - synapse.padding[1] + j * synapse.dilation[1]
            if 0 <= row < height and 0 <= column < width:
                source = (synapse.pre, c + k // per_group * (channels // synapse.groups), row * width + column)
                found.append((source, (synapse.post, k, y * out[2] + x)))
    return found


def neurons(piece: Slice) -> list[Neuron]:
    return [(piece.population, c, p) for c in range(*piece.channels) for p in range(*piece.pixels)]


def counted(program: LoihiProgram, mapping: Mapping) -> dict[Slice, Usage]:
    """What every slice takes, by enumeration."""
    chip, shared = mapping.chip, mapping.shared
    slices = [piece for core in mapping.cores for piece in core.slices]
    home = {neuron: piece for piece in slices for neuron in neurons(piece)}
    axons_in, axons_out, memory = Counter[Slice](), Counter[Slice](), Counter[Slice]()
    for synapse in program.synapses:
        reached: dict[Slice, Counter[Neuron]] = defaultdict(Counter)
        for source, target in connections(program, synapse):
            reached[home[target]][source] += 1
        dense = program.shape_of(synapse.post)[1:] == (1, 1) and synapse.groups == 1
        for piece, sources in reached.items():
            axons_in[piece] += len({pixel for _, _, pixel in sources} if shared else sources)
            for source, n in sources.items():
                axons_out[home.get(source, piece)] += (2 if shared else 1) * (source[0] != INPUT)
                memory[piece] += 0 if shared else stored(chip, n, dense)
        for piece in slices:
            if shared and piece.population == synapse.post:
                memory[piece] += (piece.channels[1] - piece.channels[0]) * synapse.weight[0].size * 8
    return {
        s: Usage(len(neurons(s)), axons_in[s], axons_out[s], memory[s] + chip.state_bits * len(neurons(s)))
        for s in slices
    }


def stored(chip: Chip, synapses: int, dense: bool) -> int:
    """Bits of one axon: lists of at most 64 synapses of 8 bits and their index, 10 bits of header, in words."""
    if chip.word_bits is None:
        return 8 * synapses
    pieces = [min(64, synapses - done) for done in range(0, synapses, 64)]
    return sum(-(-(n * (8 if dense else 18) + 10) // 64) * 64 for n in pieces)


def largest(mapping: Mapping) -> Usage:
    return Usage(*np.max([core.usage for core in mapping.cores], axis=0).tolist())


@st.composite
def mapped(draw: st.DrawFn) -> tuple[LoihiProgram, Mapping]:
    """A program on cores that hold at least its most demanding neuron."""
    program = draw(programs())
    shared = draw(st.booleans())
    kind = {"word_bits": draw(st.sampled_from([None, 64])), "state_bits": draw(st.sampled_from([0, 48]))}
    one = largest(map_program(program, replace(ALONE, **kind), shared))
    limits = {name: max(used, 1) * draw(st.integers(1, 8)) for name, used in one._asdict().items()}
    return program, map_program(program, replace(BOUNDLESS, **kind, **limits), shared)


@given(mapped())
def test_every_neuron_lies_on_one_core(case: tuple[LoihiProgram, Mapping]) -> None:
    program, mapping = case
    found = Counter(neuron for core in mapping.cores for piece in core.slices for neuron in neurons(piece))
    wanted = [
        (p.name, c, pixel)
        for p in program.populations
        for c, pixel in product(range(p.shape[0]), range(p.shape[1] * p.shape[2]))
    ]
    assert found == Counter(wanted)


@given(mapped())
def test_no_core_exceeds_a_limit(case: tuple[LoihiProgram, Mapping]) -> None:
    program, mapping = case
    for core in mapping.cores:
        assert core.usage == Usage(*np.sum([piece.usage for piece in core.slices], axis=0).tolist())
        assert all(share is not None and share <= 1 for share in core.utilisation(mapping.chip).values())
    assert len(mapping.cores) >= mapping.lower_bound
    assert mapping.taken(program.output)[0] >= 1


@given(mapped())
def test_counts_are_those_of_an_enumeration(case: tuple[LoihiProgram, Mapping]) -> None:
    program, mapping = case
    for piece, usage in counted(program, mapping).items():
        assert piece.usage == usage


@given(programs(), st.integers(1, 40))
def test_compartments_alone_come_near_the_lower_bound(program: LoihiProgram, compartments: int) -> None:
    mapping = map_program(program, replace(BOUNDLESS, compartments=compartments))
    assert mapping.lower_bound == max(-(-sum(p.neurons for p in program.populations) // compartments), 1)
    assert len(mapping.cores) <= 1.5 * mapping.lower_bound


@given(programs(), st.integers(4, 12), st.integers(6, 20))
def test_of_several_sizes_of_slices_the_fewest_cores_are_taken(program: LoihiProgram, room: int, axons: int) -> None:
    chip = replace(BOUNDLESS, compartments=room, axons_in=axons, axons_out=axons)
    alone = []
    for share in SHARES:
        with mock.patch("spikeport.targets.loihi.mapping.SHARES", (share,)):
            alone.append(len(map_program(program, chip).cores))
    assert len(map_program(program, chip).cores) == min(alone)


@given(programs(), st.integers(4, 40))
def test_memory_alone_comes_near_the_lower_bound(program: LoihiProgram, neurons_per_core: int) -> None:
    chip = replace(BOUNDLESS, word_bits=None)
    most = largest(map_program(program, replace(chip, compartments=1), shared=False)).memory_bits
    mapping = map_program(program, replace(chip, memory_bits=max(most, 1) * neurons_per_core), shared=False)
    assert len(mapping.cores) <= 1.5 * mapping.lower_bound


@given(st.lists(st.tuples(*[st.integers(0, 6)] * 4), min_size=1, max_size=300), st.integers(6, 30))
def test_every_slice_lies_on_the_first_core_with_room(sizes: list[tuple[int, int, int, int]], room: int) -> None:
    slices = [Slice(str(i), (0, 1), (0, 1), Usage(*size)) for i, size in enumerate(sizes)]
    held: list[list[Slice]] = []
    for piece in sorted(slices, key=lambda piece: -max(piece.usage)):
        for core in held:
            if np.max(np.sum([s.usage for s in [*core, piece]], axis=0)) <= room:
                core.append(piece)
                break
        else:
            held.append([piece])
    found = first_fit(slices, np.full(4, float(room)))
    assert {frozenset(s.population for s in core.slices) for core in found} == {
        frozenset(s.population for s in core) for core in held
    }


@given(programs(), st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 4))
def test_a_core_holds_so_many_constants(program: LoihiProgram, seed: int, thresholds: int, decays: int) -> None:
    rng = np.random.default_rng(seed)
    registers = {
        p.name: {name: rng.integers(1, 6, p.shape[0]).astype(np.int32) for name in ("vth", "du", "dv")}
        for p in program.populations
    }
    populations = tuple(replace(p, **registers[p.name]) for p in program.populations)
    program = replace(program, populations=populations)
    mapping = map_program(program, replace(BOUNDLESS, thresholds=thresholds, decays=decays))
    for core in mapping.cores:
        vth, pairs = set(), set()
        for piece in core.slices:
            chosen = {name: values[slice(*piece.channels)] for name, values in registers[piece.population].items()}
            vth.update(chosen["vth"].tolist())
            pairs.update(zip(chosen["du"].tolist(), chosen["dv"].tolist(), strict=True))
        assert len(vth) <= thresholds
        assert len(pairs) <= decays
    assert len(map_program(program, BOUNDLESS).cores) <= len(mapping.cores)
    everywhere = [n for core in mapping.cores for piece in core.slices for n in neurons(piece)]
    assert len(everywhere) == len(set(everywhere)) == sum(p.neurons for p in populations)


def test_small_program_by_hand() -> None:
    mapping = map_program(small(), LOIHI_1)
    # Pixels of the image lead to 4, 6 or 9 of each map, in words: 8 * 18 + 10 -> 192, 12 -> 256, 18 -> 384 bits.
    convolution = 4 * 192 + 8 * 256 + 4 * 384
    dense = 32 * 64  # 5 * 8 + 10 -> one word
    (core,) = mapping.cores
    assert core.usage == Usage(37, 16 + 32, 32, convolution + dense)
    assert [(s.population, s.channels, s.pixels) for s in core.slices] == [
        ("map", (0, 2), (0, 16)),
        ("out", (0, 5), (0, 1)),
    ]
    assert (mapping.lower_bound, mapping.chips) == (1, 1)


def test_small_program_with_shared_kernels_by_hand() -> None:
    (core,) = map_program(small(), LOIHI_1, shared=True).cores
    assert core.usage == Usage(37, 16 + 16, 2 * 32, (18 + 160) * 8)
    (core,) = map_program(small(), LOIHI_2).cores
    assert core.usage == Usage(37, 16 + 16, 2 * 32, (18 + 160) * 8 + 37 * 48)
    assert core.utilisation(LOIHI_2)["axons_in"] is None


def test_small_program_on_two_cores_by_hand() -> None:
    mapping = map_program(small(), replace(LOIHI_1, compartments=20))
    assert [core.usage.compartments for core in mapping.cores] == [20, 17]
    assert (mapping.lower_bound, mapping.bound_by) == (2, "compartments")


@pytest.mark.parametrize("ring", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_recurrent_synapses_count_the_slices_they_reach(ring: list[str]) -> None:
    """Each neuron of a row reaches three; a core has four output axons, so how a target is cut limits its source."""
    weight = np.ones((1, 1, 1, 3), np.int8)
    synapses = [
        Synapse(f"to_{post}", "", pre, post, weight, padding=(0, 1))
        for pre, post in zip(ring, [*ring[1:], ring[0]], strict=True)
    ]
    program = network((1, 1, 1), dict.fromkeys(ring, (1, 1, 6)), synapses)
    mapping = map_program(program, replace(BOUNDLESS, axons_out=4))
    assert largest(mapping).axons_out <= 4
    assert counted(program, mapping) == {s: s.usage for core in mapping.cores for s in core.slices}


def test_the_host_computes_the_first_synapse() -> None:
    (core,) = map_program(small(), LOIHI_1, host_input=True).cores
    assert core.usage == Usage(37, 32, 32, 32 * 64)


def test_a_neuron_beyond_a_limit_is_mapped_all_the_same() -> None:
    mapping = map_program(small(), replace(LOIHI_1, axons_in=20))
    assert mapping.taken("out")[1].axons_in == 32
    assert mapping.taken("map")[1].axons_in <= 20


@pytest.mark.parametrize(("chip", "cores"), [(LOIHI_1, 128), (LOIHI_2, 16)])
def test_a_first_map_of_131072_neurons(chip: Chip, cores: int) -> None:
    stem = Synapse("stem", "", INPUT, "stem", np.ones((128, 3, 3, 3), np.int8), padding=(1, 1))
    mapping = map_program(network((3, 32, 32), {"stem": (128, 32, 32)}, [stem]), chip)
    assert (len(mapping.cores), mapping.lower_bound) == (cores, cores)


@pytest.mark.parametrize(
    ("synapses", "index_bits", "bits"), [(1, 10, 64), (64, 10, 1216), (65, 10, 1280), (64, 0, 576), (3, 0, 64)]
)
def test_axons_are_stored_in_words(synapses: int, index_bits: int, bits: int) -> None:
    assert int(LOIHI_1.axon_bits(np.array(synapses), index_bits)) == bits
    assert int(LOIHI_2.axon_bits(np.array(synapses), index_bits)) == 8 * synapses


@pytest.mark.parametrize("chip", CHIPS.values())
def test_every_figure_has_a_source(chip: Chip) -> None:
    assert set(chip.sources) == set(chip.__dataclass_fields__) - {"name", "title", "sources"}
    assert all((getattr(chip, name) is None) == (source == NO_FIGURE) for name, source in chip.sources.items())
