"""Loihi 1's energy: counted by hand over neurons and slices; refused where Loihi 1 cannot run the program."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import RandomNet

from spikeport.core import SpikeportError
from spikeport.core.geometry import output_size
from spikeport.export.nir_graph import Metadata, build_nir
from spikeport.export.trace import trace
from spikeport.profiling import loihi_energy
from spikeport.profiling.comparison import compare
from spikeport.profiling.loihi_energy import loihi1_energy, loihi1_mapping, spike_traffic
from spikeport.targets.loihi.compile import compile
from spikeport.targets.loihi.fixed import simulate_fixed
from spikeport.targets.loihi.program import INPUT, LoihiProgram

METADATA = Metadata(3, input_shape=(2, 14, 14), input_bound=1.0)


def network() -> RandomNet:
    return RandomNet(["conv", "grouped", "fire", "maxpool", "depthwise"], 8, 14, 3, 5, True).eval()


@pytest.fixture(scope="module")
def case():
    """A program whose input is spikes, wide enough for several cores, and its record."""
    program = compile(build_nir(trace(network(), (2, 14, 14)), METADATA)[0])
    program = replace(program, input_max=1, input_scale=1.0)
    x = torch.randint(0, 2, (3, 2, 14, 14), generator=torch.Generator().manual_seed(0)).numpy()
    return program, simulate_fixed(program, x.astype(float))


def test_messages_are_the_axons_of_the_mapping(case):
    program, _ = case
    mapping = loihi1_mapping(program)
    assert len(mapping.cores) > 4
    traffic = spike_traffic(program, mapping)
    for population in program.populations:
        axons = sum(s.usage.axons_out for c in mapping.cores for s in c.slices if s.population == population.name)
        assert traffic[population.name].messages * population.neurons == pytest.approx(axons)


def depthwise() -> LoihiProgram:
    """Slices that end where a group ends, in the middle of their population."""
    net = RandomNet(["depthwise"] * 3, 8, 14, 3, 5, True).eval()
    program = compile(build_nir(trace(net, (2, 14, 14)), METADATA)[0])
    return replace(program, input_max=1, input_scale=1.0)


@pytest.mark.parametrize("groups", ["few", "depthwise"])
def test_messages_and_hops_equal_walking_from_every_neuron_to_every_slice_it_reaches(case, groups):
    program = depthwise() if groups == "depthwise" else case[0]
    mapping = loihi1_mapping(program)
    place = {}  # (population, channel, pixel) -> core
    for core, held in enumerate(mapping.cores):
        for piece in held.slices:
            for channel in range(*piece.channels):
                for pixel in range(*piece.pixels):
                    place[piece.population, channel, pixel] = core
    walked = {p.name: np.zeros(3) for p in program.populations}
    for synapse in (s for s in program.synapses if s.pre != INPUT):
        source, kernel = program.shape_of(synapse.pre), synapse.weight.shape[2:]
        size = output_size(source[1:], kernel, synapse.stride, synapse.padding, synapse.dilation)
        out, per_group = synapse.weight.shape[:2]
        slices = [(c, s) for c, core in enumerate(mapping.cores) for s in core.slices if s.population == synapse.post]
        reached = set()  # (source neuron, slice)
        for o, y, z, c, i, j in np.ndindex(out, *size, per_group, *kernel):
            row = y * synapse.stride[0] + i * synapse.dilation[0] - synapse.padding[0]
            column = z * synapse.stride[1] + j * synapse.dilation[1] - synapse.padding[1]
            if 0 <= row < source[1] and 0 <= column < source[2]:
                pixel = y * size[1] + z
                index = next(
                    k
                    for k, (_, s) in enumerate(slices)
                    if s.channels[0] <= o < s.channels[1] and s.pixels[0] <= pixel < s.pixels[1]
                )
                channel = o // (out // synapse.groups) * per_group + c
                reached.add((channel, row * source[2] + column, index))
        for channel, pixel, index in reached:
            a, b = place[synapse.pre, channel, pixel] // 4, slices[index][0] // 4
            walked[synapse.pre] += 1, abs(a % 8 - b % 8), abs(a // 8 - b // 8)
    traffic = spike_traffic(program, mapping)
    for population in program.populations:
        found = traffic[population.name]
        expected = walked[population.name] / population.neurons
        assert (found.messages, found.hops_ew, found.hops_ns) == pytest.approx(tuple(expected))
    assert sum(w[1:].sum() for w in walked.values()) > 0


def test_energy_is_the_sum_of_what_the_target_counted(case):
    program, record = case
    mapping = loihi1_mapping(program)
    traffic, energy = spike_traffic(program, mapping), loihi1_energy(program, record)
    events = sum(int(e.sum()) for e in record.events.values()) / record.samples
    neurons = sum(p.neurons for p in program.populations)
    expected = 23.6 * events + neurons * (81 * program.time_steps + 52 * program.depth)
    for name, counts in record.spikes.items():
        t = traffic[name]
        expected += counts.sum() / record.samples * (1.7 * t.messages + 3.0 * t.hops_ew + 4.0 * t.hops_ns)
    assert energy.total_nj == pytest.approx(expected / 1e3)
    assert energy.cores == len(mapping.cores)
    static = loihi1_energy(program, record, mapping, seconds=1e-3)
    assert static.total_nj - energy.total_nj == pytest.approx(0.104 * 1e-3 * 1e9)
    spread = replace(mapping, cores=mapping.cores + mapping.cores[:1] * 256)  # onto three chips
    assert loihi1_energy(program, record, spread, seconds=1e-3).rows["static"]["static power"] == pytest.approx(312e3)


def test_chips_apart_exchange_messages_that_have_no_hops():
    assert loihi_energy._hops(0, 127) == (7, 3, 0)
    assert loihi_energy._hops(3, 4) == (1, 0, 0)
    assert loihi_energy._hops(127, 128) == (0, 0, 1)


def test_a_first_layer_on_the_host_is_macs_in_a_row_of_its_own():
    graph, _ = build_nir(trace(network(), (2, 14, 14)), METADATA)
    program = compile(graph, input_mode="host-current")
    x = torch.rand(2, 2, 14, 14, generator=torch.Generator().manual_seed(0)).numpy()
    record = simulate_fixed(program, x)
    found = loihi1_energy(program, record)
    macs = 2 * 8 * (3 * 14 - 2) ** 2
    assert found.rows["host"] == {"multiply-accumulate on the host": pytest.approx(4.6 * macs / 1e3)}
    on_chip = sum(int(record.events[s.name].sum()) for s in program.synapses if s.pre != INPUT) / record.samples
    synaptic = sum(row.get("synaptic operations", 0) for row in found.rows.values())
    assert synaptic == pytest.approx(23.6 * on_chip / 1e3)
    first = compare(None, program, {"fixed": record})[0]
    assert (first.macs, first.acs["fixed"]) == (macs, 0)
    assert "computed by the host" in first.note


def test_the_first_images_alone_are_averaged(case):
    program, record = case
    fewer = replace(
        record,
        outputs=record.outputs[:1],
        **{name: {k: v[:1] for k, v in getattr(record, name).items()} for name in ("spikes", "events")},
    )
    assert loihi1_energy(program, record, samples=1) == loihi1_energy(program, fewer)
    assert loihi1_energy(program, record, samples=1) != loihi1_energy(program, record)


def test_graded_input_and_records_of_other_programs_are_refused(case):
    program, record = case
    graded = replace(program, input_max=127)
    message = "loihi1: Loihi 1 cannot run this program: input: graded spike bits 8 .*; `--input host-current`$"
    with pytest.raises(SpikeportError, match=message):
        loihi1_mapping(graded)
    with pytest.raises(SpikeportError, match="record is of another program"):
        loihi1_energy(graded, record)
