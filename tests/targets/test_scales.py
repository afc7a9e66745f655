"""What is rounded to how many steps: scales and the input, as large as their registers let them be."""

from itertools import product

import nir
import numpy as np
import pytest
import torch
from graphs import flat, graph_of
from hypothesis import given
from hypothesis import strategies as st
from networks import RandomNet
from torch import nn

from spikeport.core import LIF, SpikeportError, TimeMean
from spikeport.targets.loihi.compile import compile, population, quantise_bias
from spikeport.targets.loihi.constants import Constants
from spikeport.targets.loihi.convolution import worst_currents
from spikeport.targets.loihi.layers import Layer
from spikeport.targets.loihi.neurons import run
from spikeport.targets.loihi.scales import largest_scale, require_steps


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1), (-127, 127)])
def test_worst_currents_are_those_of_the_worst_inputs(low, high):
    weight = np.random.default_rng(0).integers(-128, 128, (3, 2, 1, 3)).astype(np.int8)
    inputs = np.array(list(product((low, 0, high), repeat=6)))
    currents = inputs @ weight.reshape(3, 6).T.astype(int)
    up, down = worst_currents(weight, low, high)
    assert up.tolist() == currents.max(0).tolist()
    assert down.tolist() == (-currents).max(0).tolist()


@given(
    st.integers(0, 2**31),
    st.sampled_from([1, 127]),
    st.floats(0.01, 50),
    st.floats(0, 20),
    st.none() | st.floats(0.01, 100),
    st.floats(0, 1),
    st.integers(1, 5),
)
def test_scale_is_the_largest_that_holds(seed, most, spread, bias_size, threshold, loss, steps):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(3, 5, 3, 3)) * spread, rng.normal(size=(3, 2, 1, 1)) * spread]
    bias = rng.normal(size=3) * bias_size
    constants = Constants(loss_v=loss, threshold=threshold)

    def holds(scale):
        ok = max(np.abs(k * scale).max() for k in weights) <= 127 + 1e-9
        ok = ok and np.abs(bias * scale).max() * 64 <= 4095 * 128 + 1e-6
        ok = ok and worst_state([np.rint(k * scale) for k in weights], most, bias * scale, loss, scale) <= 131071
        return ok and (threshold or 0) * scale <= 131071 + 1e-6

    def worst_state(w, most, bias, loss, scale):
        """Drives every neuron up, then down, as hard as its inputs can, step by step."""
        push = np.abs(w[0]).sum((1, 2, 3)) * most
        highest = push + np.maximum(w[1], 0).sum((1, 2, 3)) + bias
        lowest = -push + np.minimum(w[1], 0).sum((1, 2, 3)) + bias
        worst, up, down = 0.0, np.zeros(3), np.zeros(3)
        for _ in range(steps):
            up, down = up * (1 - loss) + highest, down * (1 - loss) + lowest
            worst = max(worst, up.max(), -down.min(), (highest - bias).max(), (bias - lowest).max())
            if threshold is not None:  # at most it waits just below the threshold
                up = np.full(3, threshold * scale)
        return worst

    try:
        scale = largest_scale("p", weights, [(-most, most), (0, 1)], bias, constants, steps)
    except SpikeportError as error:
        assert "threshold becomes" in str(error)  # noqa: PT017
        return
    assert holds(scale)
    if threshold is None or loss in (0, 1):
        assert not holds(scale * 1.01)
    else:
        assert threshold * scale == pytest.approx(round(threshold * scale), rel=1e-12)
        assert not holds((round(threshold * scale) + 1) / threshold * 1.01)


@pytest.mark.parametrize("loss", [0.0, 0.5])
@pytest.mark.parametrize(
    ("threshold", "size", "bias"),
    [(100.0, 0.01, 0.0), (100.0, 0.01, 5.0), (100.0, 0.12, 0.0), (None, 0.01, 30.0)],
)
def test_spikes_that_only_excite_saturate_no_voltage(threshold, size, bias, loss):
    """Up to the threshold, which does not fire, then all at once: here v rises further than it falls."""
    steps, biases = 40, np.linspace(0.9, 1, 20) * bias
    weights = np.random.default_rng(0).uniform(0.5, 1, (20, 900, 1, 1)) * size
    constants = Constants(loss_v=loss, threshold=threshold)
    for channel in range(20):
        w, b = weights[channel : channel + 1], biases[channel : channel + 1]
        scale = largest_scale("p", [w], [(0, 1)], b, constants, steps)
        p = population(Layer("p", "", (1, 1, 1), constants, (), (), torch.from_numpy(b), scale), 1)
        most, added = int(np.rint(w * scale).sum()), int(p.bias[0, 0, 0])
        currents, v = [], 0
        for _ in range(steps - 1):
            v = v * (4096 - p.dv) >> 12
            currents.append(min(most, max(((p.vth << 6) - v - added) >> 6, 0)))
            v += (currents[-1] << 6) + added
        x = torch.tensor([*currents, most]).float().reshape(steps, 1, 1, 1, 1)
        found = run(p, x, steps)
        assert (found.wraps, found.saturations) == (0, 0)


@pytest.mark.parametrize(
    ("weight", "threshold", "bias", "host", "expected"),
    [
        ((0.5, 0.25), 1.0, 0.0, None, 127 / 0.5),  # of the weights
        ((0.01, 0.01), np.array([100.0, 200.0]), 0.0, None, 131071 / 200),  # of the thresholds, the highest
        ((0.001, 0.001), None, 0.5, None, (4095 << 7) / (0.5 * 64)),  # of the bias
        ((), None, 0.0, np.array([0.0, 0.5]), (4094 << 7) / (0.5 * 64)),  # of the host's current, 0 in one channel
        ((1.0, 1.0), None, 100.0, np.array([0.0, 50.0]), (4094 << 7) / (150 * 64)),  # of both
        ((127.0, 127.0), 1.0, 0.0, None, 1.0),  # a threshold of one step is one
    ],
)
def test_each_register_sets_the_scale(weight, threshold, bias, host, expected):
    weights = [np.array(weight).reshape(2, 1, 1, 1)] if weight else []
    constants = Constants(loss_v=1.0, threshold=threshold)
    scale = largest_scale("p", weights, [(0, 1)] * len(weights), np.array([bias, -bias]), constants, 1, host)
    assert scale == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "host", "expected"),
    [
        (0.0, None, 127 / 3),  # v stays on the grid of the weights
        (0.5, None, 12 / 0.3),
        (np.array([0.0, 0.5]), None, 12 / 0.3),  # in one of two channels it does not
        (0.0, np.ones(2), 12 / 0.3),  # a current of the host is on no grid
    ],
)
def test_the_threshold_is_whole_where_v_leaves_the_grid_of_the_weights(loss, host, expected):
    """Of 12.7 steps."""
    constants = Constants(loss_v=loss, threshold=0.3)
    scale = largest_scale("p", [np.full((2, 1, 1, 1), 3.0)], [(0, 1)], np.zeros(2), constants, 1, host)
    assert scale == pytest.approx(expected, rel=1e-12)


def test_weights_and_currents_that_are_all_zero_have_no_scale():
    for weights, host in (([np.zeros((2, 1, 1, 1))], None), ([], np.zeros(2))):
        with pytest.raises(SpikeportError, match="p: all of its weights are zero, so it has no scale"):
            largest_scale("p", weights, [(0, 1)] * len(weights), np.ones(2), Constants(), 1, host)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("bias", "host", "last"), [(5003.0, None, 83), (5003.0, 1003.0, 95)])
def test_v_reaches_its_limit_and_no_further(sign, bias, host, last):
    """Of 131071. On the chip a bias of 5003 is 5004, and a current of the host of 1003 is 1004."""
    constants, biases = Constants(), sign * np.array([bias])
    hosts = None if host is None else np.array([host])
    full = (131071 - 5004 - (1004 if host else 0)) // 127
    for rest in range(last - 5, last + 6):
        weight = sign * np.array([127.0] * full + [rest]).reshape(1, full + 1, 1, 1)
        scale = largest_scale("p", [weight], [(0, 1)], biases, constants, 1, hosts)
        assert (scale == 1) == (rest <= last)
        mant, exponent = quantise_bias(biases * scale, None if hosts is None else hosts * scale)
        added = (mant[0] + sign * np.rint((host or 0) * scale * 64 / 2**exponent)) * 2**exponent / 64
        assert abs(np.rint(weight * scale).sum() + added) <= 131071


@pytest.mark.parametrize("loss_u", [(0.7, 0.2), (1.0, 0.2), (0.2, 0.01)])
@pytest.mark.parametrize("loss_v", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("steps", [1, 4, 12])
@pytest.mark.parametrize(("inputs", "most_bias"), [(500, 30.0), (40, 2000.0)])
@pytest.mark.parametrize("threshold", [1e3, 1e5])
def test_currents_that_stay_neither_wrap_nor_saturate(loss_u, loss_v, steps, inputs, most_bias, threshold):
    """Neurons of a layer with different current memories, driven one way and then the other as hard as can be."""
    weights = np.random.default_rng(0).uniform(-1, 1, (2, inputs, 1, 1))
    bias = np.array([most_bias, -most_bias])
    constants = Constants(np.array(loss_u), loss_v, threshold=threshold)
    scale = largest_scale("p", [weights], [(-127, 127)], bias, constants, steps)
    p = population(Layer("p", "", (2, 1, 1), constants, (), (), torch.from_numpy(bias), scale), 1)
    most = torch.from_numpy(127 * np.abs(np.rint(weights * scale)).sum((1, 2, 3))).float()
    for turn in range(steps):
        x = most * torch.where(torch.arange(steps) < turn, 1.0, -1.0)[:, None]
        for drive in (x, -x):
            found = run(p, drive.reshape(steps, 1, 2, 1, 1), steps)
            assert (found.wraps, found.saturations) == (0, 0)


def test_the_lowest_of_several_thresholds_counts():
    constants = Constants(threshold=np.array([1e-4, 1000.0]))
    with pytest.raises(SpikeportError, match="p: .* the threshold becomes .* < 1"):
        largest_scale("p", [np.ones((2, 3, 1, 1))], [(0, 1)], np.zeros(2), constants, 1)


@pytest.mark.parametrize(
    ("weights", "threshold", "host"),
    [
        ([np.full((1, 1, 1, 1), 1e-310)], None, None),
        ([np.full((1, 1, 1, 1), 1e-310)], 1e-309, None),
        ([], None, np.array([np.inf])),
    ],
)
def test_values_without_a_finite_scale_are_named(weights, threshold, host):
    with pytest.raises(SpikeportError, match="p: weights of .* have no finite scale to integers"):
        largest_scale("p", weights, [(0, 1)] * len(weights), np.zeros(1), Constants(threshold=threshold), 4, host)


def test_the_input_range_comes_from_metadata_or_calibration():
    net = RandomNet(["conv"], 4, 6, 2, 0, True).eval()
    x = torch.randn(2, 2, 6, 6)
    assert compile(graph_of(net, x, bound=2.54)).input_scale == pytest.approx(0.02)
    with pytest.raises(SpikeportError, match="range of the input is unknown"):
        compile(graph_of(net, x, bound=None))
    program = compile(graph_of(net, x, bound=None), x.numpy())
    assert program.input_scale * 127 == pytest.approx(float(x.abs().max()))


def first_layer(taps):
    """The graph of a layer of so many inputs, its weights, and samples."""
    rng = np.random.default_rng(0)
    weight, x = rng.uniform(-1, 1, (4, taps)), rng.uniform(-1, 1, (200, taps))
    nodes = {"input": nir.Input({"input": np.array([taps])}), "a": nir.Linear(weight)}
    return flat(nodes | {"output": nir.Output({"output": np.array([4])})}), weight, x


@pytest.mark.parametrize(("taps", "most"), [(3, 127), (25, 63), (55, 31)])
def test_input_and_first_weights_share_the_bits_there_are(taps, most, monkeypatch):
    """They share the room of a current: where many inputs leave weights few steps, the input gives some of its own."""
    graph, weight, x = first_layer(taps)

    def error(program):
        integers = program.quantise(x).reshape(len(x), taps) @ program.synapses[0].weight.reshape(4, taps).T.astype(int)
        return np.abs(integers / program.populations[0].scale - x @ weight.T).mean()

    program = compile(graph, x)
    assert program.input_max == most
    assert program.input_scale * most == pytest.approx(np.abs(x).max())
    monkeypatch.setattr("spikeport.targets.loihi.layers.INPUT_RANGES", ())
    whole = compile(graph, x)
    assert whole.input_max == 127
    assert error(program) <= error(whole) * (1 if most == 127 else 0.8)
    tops = [np.abs(p.synapses[0].weight.astype(int)).max() for p in (program, whole)]
    assert (tops[0] > 2 * tops[1] - 2) == (most < 127)


def test_a_smaller_input_is_tried_before_a_first_layer_is_refused(monkeypatch):
    graph, _, x = first_layer(200)
    program = compile(graph, x)
    assert program.input_max == 31
    assert program.input_scale * 31 == pytest.approx(np.abs(x).max())
    monkeypatch.setattr("spikeport.targets.loihi.layers.INPUT_RANGES", ())
    with pytest.raises(SpikeportError, match="becomes [0-7] of 127, at least 8 are needed"):
        compile(graph, x)


def test_calibration_must_be_samples_of_the_network():
    nodes = {"input": nir.Input({"input": np.array([3])}), "a": nir.Linear(np.eye(3))}
    nodes["output"] = nir.Output({"output": np.array([3])})
    graph = flat(nodes)
    sequence = flat(nodes, sequence=True)
    assert compile(graph, np.ones((2, 3))).input_max == 1
    assert compile(graph, np.full((2, 3, 1, 1), -128, np.int8)).input_scale == pytest.approx(128 / 127)
    assert not compile(sequence, np.ones((4, 2, 3))).held
    for network, samples, message in (
        (graph, np.ones((2, 4)), r"calibration has shape \[2, 4\]; the network takes \[N, 3\]"),
        (graph, np.ones(3), "calibration has shape"),
        (graph, np.zeros((2, 3)), "calibration samples are all 0"),
        (sequence, np.ones((7, 2, 3)), "calibration has 7 steps, the network runs 4; samples are"),
        (graph, np.ones((0, 3)), "range of the input is unknown"),
    ):
        with pytest.raises(SpikeportError, match=message):
            compile(network, samples)


def test_weights_that_many_steps_would_round_away_are_refused():
    nodes = {
        "input": nir.Input({"input": np.array([1000])}),
        "classes": nir.Linear(np.random.default_rng(0).choice([-0.3, 0.3], (2, 1000))),
        "output": nir.Output({"output": np.array([2])}),
    }
    spikes = np.ones((1, 1000))
    program = lambda steps: compile(flat(nodes, steps=steps), spikes)  # noqa: E731
    assert np.abs(program(16).synapses[0].weight).max() == 8
    with pytest.raises(SpikeportError, match="output: its largest weight becomes 7 of 127, at least 8 .* of 17 steps"):
        program(17)


def joined(image, spikes, x):
    """Classes of an image and of spikes, whose weights are normal times these factors."""
    rng = np.random.default_rng(0)
    weights = {"image": image * rng.normal(size=(3, 7)), "spikes": spikes * rng.normal(size=(3, 5))}
    nodes = {
        "input": nir.Input({"input": np.array([7])}),
        "first": nir.Linear(rng.normal(size=(5, 7))),
        "neurons": nir.LIF(*(np.full(5, v) for v in (3e-3, 2.0, 0.0, 1.0))),
        **{name: nir.Linear(weight) for name, weight in weights.items()},
        "output": nir.Output({"output": np.array([3])}),
    }
    edges = [("input", "first"), ("first", "neurons"), ("neurons", "spikes"), ("input", "image")]
    edges += [("image", "output"), ("spikes", "output")]
    return compile(flat(nodes, edges), x)


def test_weights_of_an_image_that_those_of_spikes_would_round_away_are_refused():
    x = np.random.default_rng(1).normal(size=(4, 7))
    message = r"output: its largest weight on one of its inputs becomes [0-6] of 127, .* and this one reaches 31; put"
    for factor in (0.3, 0.1, 1e-3):
        with pytest.raises(SpikeportError, match=message):
            joined(factor, 1.0, x)
    for factor, most in ((30.0, 127), (1.6, 63), (0.8, 31)):
        program = joined(factor, 1.0, x)
        tops = {s.pre: np.abs(s.weight).max() for s in program.synapses if s.post == "output"}
        assert tops["input"] >= 8
        assert program.input_max == most
        assert program.input_scale == pytest.approx(np.abs(x).max() / most)
    # Spikes of little weight beside others, and inputs no larger than spikes, do no harm.
    assert joined(1.0, 1e-3, x)
    assert joined(1e-2, 1.0, np.sign(x))


def test_whole_numbers_of_few_steps_are_kept_and_others_refused():
    spikes, none = [(0, 1)], np.zeros(1)
    constants = Constants(threshold=131000.0)
    require_steps("p", [np.full((1, 2, 1, 1), 2.0)], spikes, none, 1.0, constants, 1)
    for values in ((2.0, 1.5), (2.0, 1.9)):
        with pytest.raises(SpikeportError, match="p: its largest weight becomes 2 of 127, .* its threshold must stay"):
            require_steps("p", [np.reshape(values, (1, 2, 1, 1))], spikes, none, 1.0, constants, 1)


def test_the_largest_bias_of_a_layer_is_what_rounds_its_weights_away():
    weight, bias = np.full((2, 1, 1, 1), 1.3), np.array([[-8000.0, 0.0], [0.0, 0.0]])
    with pytest.raises(SpikeportError, match="its bias must stay <= 8190; train with smaller biases"):
        require_steps("p", [weight], [(0, 1)], bias, 1.0, Constants(), 1)
    with pytest.raises(SpikeportError, match="1 steps must stay <= 131071.*; use fewer time steps or fewer inputs$"):
        require_steps("p", [weight], [(0, 1)], bias / 3, 1.0, Constants(), 1)


def test_weights_that_a_bias_would_round_away_are_refused():
    net = RandomNet(["conv"], 4, 6, 2, 0, True).eval()
    with torch.no_grad():
        net.stem.bn.bias.fill_(-1e4)
    message = "stem_lif: its largest weight becomes 0 of 127, .* its bias must stay <= 8190; train with smaller biases"
    with pytest.raises(SpikeportError, match=message):
        compile(graph_of(net, torch.zeros(2, 2, 6, 6)))


def test_a_first_layer_of_many_inputs_is_led_to_the_hosts_current():
    torch.manual_seed(0)
    lif = LIF(tau=10.0, decay_input=False, constant_input=True)
    net = nn.Sequential(nn.Linear(784, 100), lif, nn.Linear(100, 10), TimeMean(4)).eval()
    graph = graph_of(net, torch.rand(8, 784))
    with pytest.raises(
        SpikeportError, match="becomes [0-7] of 127, .*or a network's first layer with --input host-current"
    ):
        compile(graph)
    assert compile(graph, input_mode="host-current").input_mode == "host-current"
