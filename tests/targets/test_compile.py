"""Compiling: every integer in its register, the scale as large as it can be, and exact where it can be exact."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import RandomNet, random_nets
from torch import nn

from spikeport.core import LIF, SpikeportError, TimeMean
from spikeport.export.interpreter import interpret
from spikeport.export.nir_graph import Metadata, build_nir
from spikeport.export.trace import trace
from spikeport.targets.loihi import arithmetic as loihi
from spikeport.targets.loihi.compile import compile, largest_scale, quantise_bias
from spikeport.targets.loihi.fixed import simulate_fixed
from spikeport.targets.loihi.program import INPUT


def graph_of(net, x, bound=4.0):
    traced = trace(net, tuple(x.shape[1:]))
    metadata = Metadata(traced.time_steps, input_shape=tuple(x.shape[1:]), input_bound=bound)
    return build_nir(traced, metadata)[0]


def compiled(net, x, bound=8.0):
    """The program, or None where the network is one that has no exact single-synapse form."""
    try:
        return compile(graph_of(net, x, bound))
    except SpikeportError as error:
        assert "pads a map" in str(error) or "all of its weights are zero" in str(error)  # noqa: PT017
        return None


@given(random_nets())
def test_every_integer_fits_its_register(case):
    net, x = case
    program = compiled(net, x)
    if program is None:
        return
    for p in program.populations:
        incoming = program.into(p.name)
        assert all(np.abs(s.weight.astype(int)).max() <= 127 for s in incoming)
        assert np.abs(p.bias_mant).max() <= 4095
        assert 0 <= p.bias_exp <= 7
        assert 0 <= p.du <= 4095
        assert 0 <= p.dv <= 4095
        assert 0 < p.vth <= 131071 or not p.spiking
        worst = sum(np.abs(s.weight.astype(int)).sum((1, 2, 3)) * (127 if s.pre == INPUT else 1) for s in incoming)
        assert worst.max() <= 131071
        if not p.spiking:
            assert (program.time_steps * (worst + np.abs(p.bias[:, 0, 0]) / 64)).max() <= 131071 + program.time_steps


@given(random_nets())
def test_branches_that_join_are_equally_deep(case):
    net, x = case
    program = compiled(net, x)
    if program is None:
        return
    depth = {p.name: p.depth for p in program.populations}
    for s in program.synapses:
        assert s.pre == INPUT or depth[s.pre] == depth[s.post] - 1
    seen = {INPUT}
    for p in program.populations:
        assert {s.pre for s in program.into(p.name)} <= seen
        seen.add(p.name)


@given(random_nets())
def test_a_convolution_has_the_links_of_its_layer_wherever_its_input_comes_from(case):
    """Slices, splits and shuffles spread a layer over several synapses; together they are that layer, no more."""
    net, x = case
    program = compiled(net, x)
    if program is None:
        return
    layers = dict(net.named_modules())
    found = {}
    for s in program.synapses:
        found[s.source] = found.get(s.source, 0) + int(s.outputs_reached.sum())
    for name, links in found.items():
        conv = layers.get(name)
        if isinstance(conv, nn.Conv2d) and not name.startswith("stages"):  # a sum or an average may feed the others
            assert links == conv.out_channels * conv.in_channels // conv.groups
        elif isinstance(conv, nn.Conv2d):
            assert links % (conv.out_channels * conv.in_channels // conv.groups) == 0


@given(
    st.integers(0, 2**31),
    st.sampled_from([1, 127]),
    st.floats(0.01, 50),
    st.floats(0, 20),
    st.none() | st.floats(0.01, 100),
    st.floats(1, 5),
)
def test_scale_is_the_largest_that_holds(seed, most, spread, bias_size, threshold, build_up):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(3, 5, 3, 3)) * spread, rng.normal(size=(3, 2, 1, 1)) * spread]
    bias = rng.normal(size=3) * bias_size

    def holds(scale):
        w = [np.rint(k * scale) for k in weights]
        current = sum(np.abs(k).sum((1, 2, 3)) * m for k, m in zip(w, [most, 1], strict=True))
        ok = max(np.abs(k * scale).max() for k in weights) <= 127 + 1e-9 and current.max() <= 131071
        ok = ok and np.abs(bias * scale).max() * 64 <= 4095 * 128 + 1e-6
        ok = ok and (build_up * (current + np.abs(bias) * scale)).max() <= 131071
        return ok and (threshold or 0) * scale <= 131071 + 1e-6

    try:
        scale = largest_scale("p", weights, [most, 1], bias, threshold, build_up)
    except SpikeportError as error:
        assert "threshold becomes" in str(error)  # noqa: PT017
        return
    assert holds(scale)
    assert not holds(scale * 1.01)


@given(st.lists(st.floats(-8000, 8000), min_size=1, max_size=6))
def test_bias_is_rounded_at_the_smallest_exponent(values):
    bias = np.array(values)
    mant, exponent = quantise_bias(bias)
    assert np.abs(mant).max() <= 4095
    assert np.abs((mant.astype(float) * 2**exponent) - bias * 64).max() <= 2**exponent / 2
    assert exponent == 0 or np.abs(np.rint(bias * 64 / 2 ** (exponent - 1))).max() > 4095


class Memoryless(nn.Module):
    """tau = 1, one step, weights and biases that 8 bits hold exactly: nothing to round."""

    def __init__(self, seed):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.a, self.b, self.head = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 2, stride=2), nn.Conv2d(4, 2, 2)
        for conv in (self.a, self.b, self.head):
            conv.weight.data = torch.randint(-20, 21, conv.weight.shape, generator=rng).float()
            conv.weight.data.flatten()[0] = 127  # so that the scale is 1
            conv.bias.data = torch.randint(-5, 6, conv.bias.shape, generator=rng).float() * 64
        threshold = float(torch.randint(2, 60, (1,), generator=rng))
        make = lambda first=False: LIF(tau=1.0, v_threshold=threshold, time_steps=1, constant_input=first)  # noqa: E731
        self.first, self.second, self.end = make(True), make(), TimeMean(1)

    def forward(self, x):
        return self.end(self.head(self.second(self.b(self.first(self.a(x))))).flatten(1))


@given(st.integers(0, 2**31))
def test_a_network_of_small_integers_is_exact(seed):
    net = Memoryless(seed).eval()
    x = torch.randint(-3, 4, (3, 1, 4, 4), generator=torch.Generator().manual_seed(seed)).float()
    graph = graph_of(net, x, bound=127.0)  # the graded input step is 1
    program = compile(graph)
    record = simulate_fixed(program, x.numpy(), rasters=3)
    reference = interpret(graph, x.numpy())
    assert {p.name: p.scale for p in program.populations if p.spiking} == {"first": 1.0, "second": 1.0}
    for name, spikes in reference.spikes.items():
        np.testing.assert_array_equal(record.rasters[name], spikes.transpose(1, 0, 2, 3, 4))
    scale = program.population(program.output).scale
    np.testing.assert_allclose(record.outputs, reference.prediction, atol=1.0 / scale * 40)


def test_the_input_range_comes_from_metadata_or_calibration():
    net = RandomNet(["conv"], 4, 6, 2, 0, True).eval()
    x = torch.randn(2, 2, 6, 6)
    assert compile(graph_of(net, x, bound=2.54)).input_scale == pytest.approx(0.02)
    with pytest.raises(SpikeportError, match="range of the input is unknown"):
        compile(graph_of(net, x, bound=None))
    program = compile(graph_of(net, x, bound=None), x.numpy())
    assert program.input_scale * 127 == pytest.approx(float(x.abs().max()))


def test_zero_weights_huge_thresholds_and_uneven_neurons_are_named():
    net = RandomNet(["conv"], 4, 6, 2, 0, True).eval()
    x = torch.randn(2, 2, 6, 6)
    graph = graph_of(net, x)
    graph.nodes["stem_lif"].tau[0] *= 2
    with pytest.raises(SpikeportError, match="stem_lif: tau differs between neurons"):
        compile(graph)
    net.stem.conv.weight.data.zero_()
    with pytest.raises(SpikeportError, match="stem_lif: all of its weights are zero"):
        compile(graph_of(net, x))
    net.stem.conv.weight.data.fill_(1e6)
    with pytest.raises(SpikeportError, match="stem_lif: at the scale its weights allow .* threshold becomes"):
        compile(graph_of(net, x))


def test_digits_keep_their_decays():
    net = RandomNet(["conv"], 4, 6, 2, 0, True).eval()
    x = torch.randn(2, 2, 6, 6)
    for p in compile(graph_of(net, x)).populations:
        if p.spiking:
            tau = dict(net.named_modules())[p.source].tau
            assert p.dv == min(round(4096 / tau), 4095)
            assert p.du == loihi.NO_CURRENT_MEMORY
