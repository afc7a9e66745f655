"""Compiling: every integer in its register, the scale as large as it can be, and exact where it can be exact."""

from itertools import pairwise

import nir
import numpy as np
import pytest
import torch
from graphs import flat, graph_of, integrators
from hypothesis import given
from hypothesis import strategies as st
from networks import RandomNet, random_nets
from torch import nn

from spikeport.core import LIF, SpikeportError, TimeMean
from spikeport.export.interpreter import interpret
from spikeport.export.nir_graph import Metadata, build_nir
from spikeport.export.trace import trace
from spikeport.targets.loihi import LoihiTarget
from spikeport.targets.loihi import arithmetic as loihi
from spikeport.targets.loihi.compile import compile
from spikeport.targets.loihi.fixed import simulate_fixed
from spikeport.targets.loihi.program import INPUT, LoihiProgram


def compiled(net, x, bound=8.0):
    """The program, or None where the network is one that has no exact single-synapse form."""
    try:
        return compile(graph_of(net, x, bound))
    except SpikeportError as error:
        assert "pads a map" in str(error) or "all of its weights are zero" in str(error)  # noqa: PT017
        return None


def test_what_stays_in_a_neuron_without_memory():
    """See ``Constants.on_grid``: v counts in 1/64 of a weight step."""
    retained = loihi.DECAY_ONE - (loihi.DECAY_ONE - 1)
    v = torch.tensor([64 * 64 - 1, 64 * 64, -64 * 64 + 1, loihi.STATE_LIMIT - 1])
    assert loihi.decay(v, retained).tolist() == [0, 1, 0, 2047]
    assert 2047 < 32 * 64


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
        assert 0 < np.min(p.vth) <= np.max(p.vth) <= 131071 or not p.spiking


@given(random_nets())
def test_no_input_wraps_a_current_or_saturates_a_voltage(case):
    """The stem is driven by the inputs its channels like most and least; the rest by what comes of it."""
    net, x = case
    program = compiled(net, x)
    if program is None:
        return
    (stem,) = program.out_of(INPUT)
    end = program.input_scale * program.input_max
    channels, height, width = program.input_shape
    tiles = np.sign(stem.weight).repeat(height, 2).repeat(width, 3)[:, :, :height, :width]
    patches = np.sign(np.tile(stem.weight, (1, 1, height, width)))[:, :, :height, :width]
    extremes = np.concatenate([tiles, -tiles, patches, -patches]).reshape(-1, channels, height, width) * end
    record = simulate_fixed(program, extremes.astype(np.float64))
    assert not any(record.wraps.values())
    assert not any(record.saturations.values())


@given(random_nets())
def test_branches_that_join_are_equally_deep(case):
    net, x = case
    program = compiled(net, x)
    if program is None:
        return
    depth = {p.name: p.depth for p in program.populations}
    for s in program.synapses:
        assert s.pre == INPUT or depth[s.pre] == depth[s.post] - 1
    assert len({s.name for s in program.synapses}) == len(program.synapses)
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


class Bordered(Memoryless):
    """The same with a bias before every padding: what a BatchNorm or a linear bottleneck leaves to the next layer."""

    def __init__(self, seed):
        super().__init__(seed)
        rng = torch.Generator().manual_seed(seed)
        self.b = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.b.weight.data = torch.randint(-20, 21, self.b.weight.shape, generator=rng).float()
        self.b.weight.data.flatten()[0] = 127
        self.b.bias.data.fill_(-64.0)
        self.before, self.between = nn.Conv2d(1, 1, 1), nn.Conv2d(3, 3, 1)
        for conv in (self.before, self.between):
            signs = torch.randint(0, 2, (len(conv.bias),), generator=rng).float() * 2 - 1
            conv.weight.data = torch.diag(signs)[:, :, None, None]
            conv.bias.data = torch.randint(-3, 4, conv.bias.shape, generator=rng).float()

    def forward(self, x):
        y = self.between(self.first(self.a(self.before(x))))
        return self.end(self.head(self.second(self.b(y))).flatten(1))


@pytest.mark.parametrize("network", [Memoryless, Bordered])
@given(seed=st.integers(0, 2**31))
def test_a_network_of_small_integers_is_exact(network, seed):
    net = network(seed).eval()
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


@pytest.mark.parametrize("weight", range(1, 100))
def test_a_sum_exactly_at_a_threshold_does_not_fire(weight):
    """As NIR has it, above its threshold a neuron fires; 46 * (127 / 23) in float64 is below 254."""
    nodes = {"input": nir.Input({"input": np.array([1])}), "linear": nir.Linear(np.array([[float(weight)]]))}
    nodes |= {"neurons": integrators(1, 2.0 * weight), "output": nir.Output({"output": np.array([1])})}
    record = simulate_fixed(compile(flat(nodes, steps=6), np.ones((1, 1))), np.ones((1, 1)), rasters=1)
    assert record.rasters["neurons"].ravel().tolist() == [0, 0, 1, 0, 0, 1]


@given(
    st.integers(0, 2**31),
    st.sampled_from([1, 5, 64]),
    st.sampled_from([1.0, 3.0, 100.0, 1e4]),
    st.sampled_from([1.0, 3.0, 100.0, 1e4]),
    st.sampled_from([-36.0, -0.5, 0.5, 40.0]),
    st.sampled_from([0.5, 50.0, 1000.0]),
)
def test_a_leak_and_currents_that_stay_leave_no_register(seed, steps, tau_syn, tau_mem, leak, threshold):
    """The leak adds to v at once, a current builds up: neither hides the other's reach."""
    rng = np.random.default_rng(seed)
    weight = rng.choice([-1.0, 1.0], (3, 6)) if seed % 2 else np.ones((3, 6)) * (1 - 2 * (seed % 4 // 2))
    values = (tau_syn * 1e-3, tau_mem * 1e-3, tau_mem, leak * tau_mem, threshold)
    cuba = nir.CubaLIF(*(np.full(3, value) for value in values), w_in=np.full(3, tau_syn))
    nodes = {"input": nir.Input({"input": np.array([6])}), "ones": nir.Linear(np.eye(6)), "fire": integrators(6, 0.5)}
    nodes |= {"weights": nir.Linear(weight), "cuba": cuba, "output": nir.Output({"output": np.array([3])})}
    try:
        program = compile(flat(nodes, steps=steps), np.ones((1, 6)))
    except SpikeportError as error:
        assert "train with" in str(error) or "use fewer" in str(error)  # noqa: PT017 - no scale holds it
        return
    for x in (np.ones((1, 6)), np.zeros((1, 6)), rng.integers(0, 2, (4, 6)).astype(float)):
        record = simulate_fixed(program, x)
        assert sum(record.wraps.values()) + sum(record.saturations.values()) == 0


THROUGH = {"in": nir.Input({"input": np.array([3])}), "out": nir.Output({"output": np.array([3])})}
WAYS = {
    "a graph within that holds nothing": (
        {"through": nir.NIRGraph(THROUGH, list(pairwise(THROUGH)), type_check=False)},
        [("a", "neurons"), ("a", "through"), ("through", "neurons")],
    ),
    "a diamond": (
        {"one": nir.Scale(np.ones(3)), "two": nir.Scale(np.array([1.0, 2.0, -1.0]))},
        [("a", "one"), ("a", "two"), ("one", "neurons"), ("two", "neurons")],
    ),
}


@pytest.mark.parametrize("ways", WAYS)
def test_several_ways_between_two_layers_are_synapses_of_their_own(tmp_path, ways):
    between, edges = WAYS[ways]
    weight = np.array([[3.0, -2.0], [1.0, 127.0], [-4.0, 5.0]])
    ends = {"neurons": integrators(3, 4.5), "classes": nir.Linear(np.eye(3)), "output": nir.Output({"output": [3]})}
    nodes = {"input": nir.Input({"input": np.array([2])}), "a": nir.Affine(weight, np.ones(3))} | between | ends
    edges = [("input", "a"), *edges, ("neurons", "classes"), ("classes", "output")]
    graph, x = flat(nodes, edges), np.array([[1.0, 0.0], [0.0, 1.0], [2.0, -1.0], [-1.0, 1.0]])
    program = LoihiTarget().compile(graph, tmp_path / "p.npz", x)
    loaded = LoihiProgram.load(tmp_path / "p.npz")
    assert loaded.digest() == program.digest()
    expected = interpret(graph, x).spikes["neurons"]
    found = simulate_fixed(loaded, x, rasters=4).rasters["neurons"]
    np.testing.assert_array_equal(found.reshape(4, 4, 3), expected.swapaxes(0, 1))


def test_a_layer_may_have_the_name_of_a_relay():
    nodes = {"input": nir.Input({"input": np.array([2])}), "a": nir.Linear(np.array([[127.0, 0.0], [1.0, 2.0]]))}
    for name in ("first", "first_relay", "last"):
        nodes |= {f"to_{name}": nir.Linear(np.array([[1.0, 0.0], [1.0, 1.0]])), name: integrators(2, 1.5)}
    nodes |= {"skip": nir.Linear(np.eye(2)), "output": nir.Output({"output": np.array([2])})}
    chain = [name for name in nodes if name != "skip"]
    graph = flat(nodes, [*pairwise(chain), ("first", "skip"), ("skip", "last")])
    x = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 3.0]])
    record = simulate_fixed(compile(graph, x), x, rasters=3)
    for name, spikes in interpret(graph, x).spikes.items():
        np.testing.assert_array_equal(record.rasters[name].reshape(3, 4, 2), spikes.swapaxes(0, 1))
    np.testing.assert_array_equal(record.rasters["first_relay_2"], record.rasters["first"])


@given(st.integers(0, 10_000), st.integers(2, 900), st.integers(1, 12), st.booleans())
def test_without_memory_a_membrane_at_its_threshold_does_what_it_does_in_the_network(seed, threshold, inputs, at_least):
    """The chip keeps 1/4096 of v where the network keeps nothing."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(-127, 128, (6, inputs)).astype(float)
    weight[0] = 127
    weight[1:4, 0] = threshold % 128 - np.arange(3)  # at the threshold and beside it
    bias = rng.integers(-60, 61, 6) * float(seed % 2)
    if at_least:
        lif = LIF(tau=1.0, v_threshold=threshold, time_steps=8)
        net = nn.Sequential(nn.Linear(inputs, 6), lif, nn.Linear(6, 3), TimeMean(8)).double().eval()
        with torch.no_grad():
            net[0].weight.copy_(torch.from_numpy(weight))
            net[0].bias.copy_(torch.from_numpy(bias))
        graph, _ = build_nir(trace(net, (inputs,)), Metadata(8, input="sequence", input_shape=(inputs,)))
    else:
        nodes = {"input": nir.Input({"input": np.array([inputs])}), "a": nir.Affine(weight, bias)}
        nodes["1"] = nir.LIF(*(np.full(6, v) for v in (1e-3, 1.0, 0.0, threshold)))
        nodes |= {"classes": nir.Linear(np.eye(6)), "output": nir.Output({"output": np.array([6])})}
        graph = flat(nodes, steps=8, sequence=True)
    x = rng.integers(0, 2, (8, 20, inputs)).astype(float)
    record = simulate_fixed(compile(graph, x), x, rasters=20)
    ((name, expected),) = interpret(graph, x).spikes.items()
    np.testing.assert_array_equal(record.rasters[name].reshape(20, 8, 6), expected.swapaxes(0, 1))


@pytest.mark.parametrize("name", ["lif", "output"])
def test_neurons_that_are_called_as_the_input_are_named(tmp_path, name):
    nodes = {"entry": nir.Input({"input": np.array([2])}), "a": nir.Linear(np.eye(2)), "lif": integrators(2, 1.5)}
    nodes |= {"b": nir.Linear(np.eye(2)), "output": nir.Output({"output": np.array([2])})}
    graph = flat({"input" if key == name else key: node for key, node in nodes.items()})
    with pytest.raises(SpikeportError, match=r"input: a (IF|Output) node of this name, .* rename the node"):
        LoihiTarget().compile(graph, tmp_path / "loihi/p.npz", np.eye(2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("groups", [2, 4])
def test_grouped_convolutions_without_neurons_between_are_exact(groups):
    """Whole numbers of which the largest is 127, so that the scale is 1 and nothing is rounded."""
    rng = np.random.default_rng(groups)
    first, second = rng.integers(-3, 4, (4, 4 // groups, 2, 2)), rng.integers(-3, 4, (4, 1, 2, 2))
    first[0, 0], second[0, 0] = [[127, 0], [0, 0]], [[1, 0], [0, 0]]
    nodes = {
        "input": nir.Input({"input": np.array([4, 6, 6])}),
        "first": nir.Conv2d((6, 6), first.astype(np.float64), 1, 0, 1, groups, np.arange(4.0)),
        "second": nir.Conv2d((5, 5), second.astype(np.float64), 1, 0, 1, 4, -np.arange(4.0)),
        "factor": nir.Scale(np.array([1.0, -1.0, 2.0, 3.0])[:, None, None]),
        "neurons": integrators((4, 4, 4), 5.5),
        "flatten": nir.Flatten({"input": np.array([4, 4, 4])}, start_dim=0),
        "classes": nir.Linear(rng.integers(-5, 6, (3, 64)).astype(np.float64)),
        "output": nir.Output({"output": np.array([3])}),
    }
    graph, x = flat(nodes), rng.integers(-2, 3, (5, 4, 6, 6)).astype(np.float64)
    expected = interpret(graph, x).spikes["neurons"]
    record = simulate_fixed(compile(graph, x), x, rasters=5)
    assert 0.1 < expected.mean() < 0.9
    np.testing.assert_array_equal(record.rasters["neurons"], expected.swapaxes(0, 1))


def test_zero_weights_huge_thresholds_and_uneven_neurons_are_named():
    net = RandomNet(["conv"], 4, 6, 2, 0, True).eval()
    x = torch.randn(2, 2, 6, 6)
    graph = graph_of(net, x)
    graph.nodes["stem_lif"].tau[0, 0, 0] *= 2
    with pytest.raises(SpikeportError, match="stem_lif: tau differs between neurons of a channel"):
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


def uneven(graph, rng, **ranges):
    """The same graph with other constants in every channel of every neuron layer."""
    for node in graph.nodes.values():
        for field, (low, high) in ranges.items():
            if hasattr(node, field):
                values = getattr(node, field)
                values *= rng.uniform(low, high, len(values))[:, None, None]
    return graph


@given(random_nets(), st.integers(0, 2**31))
def test_channels_may_differ_in_thresholds_and_decays(case, seed):
    net, x = case
    if compiled(net, x) is None:
        return
    graph = uneven(graph_of(net, x), np.random.default_rng(seed), v_threshold=(0.5, 2.0), tau=(1.0, 3.0))
    program = compile(graph)
    for p in program.populations:
        if p.source and p.spiking and p.shape[0] > 1:
            node = graph.nodes[p.name]
            assert p.vth.shape == p.dv.shape == (p.shape[0],)
            np.testing.assert_allclose(p.vth / p.scale, node.v_threshold[:, 0, 0], atol=0.51 / p.scale)
            np.testing.assert_allclose(p.dv / 4096, np.minimum(1e-4 / node.tau[:, 0, 0], 4095 / 4096), atol=0.51 / 4096)
            assert 0 < p.vth.min() <= p.vth.max() <= 131071
    x = 2 * x.clamp(-2, 2)
    record = simulate_fixed(program, x.numpy())
    assert sum(record.wraps.values()) == sum(record.saturations.values()) == 0


@given(st.integers(0, 2**31))
def test_thresholds_of_channels_are_exact_on_small_integers(seed):
    net = Memoryless(seed).eval()
    x = torch.randint(-3, 4, (3, 1, 4, 4), generator=torch.Generator().manual_seed(seed)).float()
    graph = graph_of(net, x, bound=127.0)
    rng = np.random.default_rng(seed)
    for name in ("first", "second"):
        thresholds = rng.integers(1, 90, len(graph.nodes[name].v_threshold))
        graph.nodes[name].v_threshold[:] = np.nextafter(np.float32(thresholds), np.float32(0))[:, None, None]
    record = simulate_fixed(compile(graph), x.numpy(), rasters=3)
    for name, spikes in interpret(graph, x.numpy()).spikes.items():
        np.testing.assert_array_equal(record.rasters[name], spikes.swapaxes(0, 1))


def test_decays_of_channels_are_the_networks_to_12_bits():
    net = RandomNet(["conv"], 8, 8, 4, 5, True).eval()
    x = torch.randn(32, 2, 8, 8, generator=torch.Generator().manual_seed(1)).clamp(-3, 3)
    graph = uneven(graph_of(net, x), np.random.default_rng(1), v_threshold=(0.1, 1.0), tau=(1.0, 3.0))
    program = compile(graph, input_mode="host-current")  # whose weights are not rounded
    expected = interpret(graph, x.numpy()).spikes["stem_lif"].swapaxes(0, 1)
    found = simulate_fixed(program, x.numpy(), rasters=32).rasters["stem_lif"]
    assert 0.1 < expected.mean() < 0.9
    assert (found != expected).mean() < 0.005


def test_a_relay_of_neurons_with_current_memory_has_none():
    rng = np.random.default_rng(0)
    ones = np.ones(3)
    cuba = lambda: nir.CubaLIF(3e-3 * ones, 4e-3 * ones, ones, 0 * ones, 0.3 * ones, w_in=ones)  # noqa: E731
    nodes = {
        "input": nir.Input({"input": np.array([3])}),
        "a": nir.Linear(rng.uniform(0.5, 1, (3, 3))),
        "first": cuba(),
        "b": nir.Linear(rng.uniform(0.5, 1, (3, 3))),
        "second": cuba(),
        "c": nir.Linear(np.eye(3)),
        "d": nir.Linear(np.eye(3)),
        "output": nir.Output({"output": np.array([3])}),
    }
    edges = [("input", "a"), ("a", "first"), ("first", "b"), ("b", "second"), ("second", "c"), ("first", "d")]
    edges += [("c", "output"), ("d", "output")]
    program = compile(flat(nodes, edges, steps=6), np.eye(3))
    record = simulate_fixed(program, np.eye(3), rasters=3)
    assert 0 < record.rasters["first"].mean() < 1
    np.testing.assert_array_equal(record.rasters["first_relay"], record.rasters["first"])


def test_a_neuron_without_memory_may_have_the_time_constant_that_float32_makes_of_a_step():
    one = np.ones(2, np.float32)
    tau = np.nextafter(1e-3 * one, np.float32(0))
    nodes = {
        "in": nir.Input({"input": np.array([2])}),
        "fc": nir.Affine(np.eye(2), np.zeros(2)),
        "lif": nir.LIF(tau=tau, r=one, v_leak=0 * one, v_threshold=0.5 * one),
        "last": nir.Affine(np.eye(2), np.zeros(2)),
        "out": nir.Output({"output": np.array([2])}),
    }
    assert (1e-3 / tau.astype(float) > 1 + 1e-9).all()
    assert compile(flat(nodes), np.ones((1, 2))).population("lif").dv == 4095
