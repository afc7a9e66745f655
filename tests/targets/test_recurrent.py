"""Recurrent connections and neurons with a current of their own (CubaLIF), from NIR to both engines."""

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikeport.core import SpikeportError
from spikeport.export.interpreter import interpret
from spikeport.export.nir_foreign import with_metadata
from spikeport.targets import differences
from spikeport.targets.loihi.check import check_graph
from spikeport.targets.loihi.compile import compile
from spikeport.targets.loihi.fixed import simulate_fixed
from spikeport.targets.loihi.lava import simulate_lava

DT = 1e-3
STEPS = 6


def graph(neuron, recurrent=True, seed=0, bias=0.3, sequence=False):
    """input - affine - neurons, which may feed themselves - linear - output."""
    rng = np.random.default_rng(seed)
    nodes = {
        "input": nir.Input({"input": np.array([7])}),
        "affine": nir.Affine(rng.normal(size=(5, 7)), np.full(5, bias)),
        "neurons": neuron,
        "linear": nir.Linear(rng.normal(size=(3, 5))),
        "output": nir.Output({"output": np.array([3])}),
    }
    edges = [("input", "affine"), ("affine", "neurons"), ("neurons", "linear"), ("linear", "output")]
    if recurrent:
        nodes["back"] = nir.Linear(rng.normal(size=(5, 5)))
        edges += [("neurons", "back"), ("back", "neurons")]
    return with_metadata(nir.NIRGraph(nodes, edges, type_check=False), STEPS, DT, sequence)


def test_a_cycle_is_named_and_not_what_hangs_behind_it():
    neurons = lambda: nir.LIF(*(np.full(2, v) for v in (3e-3, 1.0, 0.0, 1.0)))  # noqa: E731
    weights = lambda: nir.Linear(np.eye(2))  # noqa: E731
    nodes = {"input": nir.Input({"input": np.array([2])}), "l": neurons(), "x": weights(), "m": neurons()}
    nodes |= {"rec": weights(), "aa": weights(), "ab": neurons(), "output": nir.Output({"output": np.array([2])})}
    edges = [("input", "l"), ("l", "x"), ("x", "m"), ("m", "rec"), ("rec", "l"), ("m", "aa"), ("aa", "ab")]
    graph = with_metadata(nir.NIRGraph(nodes, [*edges, ("ab", "output")], type_check=False), STEPS, DT)
    with pytest.raises(SpikeportError, match="a cycle, m -> rec -> l -> x -> m; only a layer"):
        compile(graph, np.ones((1, 2)))


def lif(tau=3e-3):
    return nir.LIF(*(np.full(5, v) for v in (tau, 2.0, 0.0, 1.0)))


def cuba(tau_syn=4e-3, tau_mem=6e-3):
    return nir.CubaLIF(*(np.full(5, v) for v in (tau_syn, tau_mem, 2.5, 0.0, 0.8)), w_in=np.full(5, 1.5))


def samples(seed=0, count=4):
    return np.random.default_rng(seed).normal(size=(count, 7)).clip(-2, 2)


def by_hand(g, x):
    """Forward Euler, neuron by neuron."""
    nodes = g.nodes
    node, weight = nodes["neurons"], nodes["affine"].weight
    back = nodes["back"].weight if "back" in nodes else np.zeros((5, 5))
    spikes = np.zeros((STEPS, len(x), 5), bool)
    for n in range(len(x)):
        v, current, last = np.zeros(5), np.zeros(5), np.zeros(5)
        for t in range(STEPS):
            arriving = weight @ x[n] + nodes["affine"].bias + back @ last
            if isinstance(node, nir.CubaLIF):
                current = current + DT / node.tau_syn * (-current + node.w_in * arriving)
                v = v + DT / node.tau_mem * (node.v_leak - v + node.r * current)
            else:
                v = v + DT / node.tau * (node.v_leak - v + node.r * arriving)
            fired = v > node.v_threshold
            v = np.where(fired, 0.0, v)
            spikes[t, n], last = fired, fired.astype(float)
    return spikes


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("neuron", [lif(), cuba()], ids=["LIF", "CubaLIF"])
def test_the_interpreter_follows_nirs_definitions(neuron, recurrent):
    g = graph(neuron, recurrent)
    found = interpret(g, samples()).spikes["neurons"]
    np.testing.assert_array_equal(found, by_hand(g, samples()))
    assert 0.05 < found.mean() < 0.95


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("neuron", [lif(), cuba()], ids=["LIF", "CubaLIF"])
def test_8_bits_keep_nearly_every_spike(neuron, recurrent):
    g = graph(neuron, recurrent, bias=0.0, sequence=True)
    x = np.random.default_rng(1).integers(0, 2, (STEPS, 64, 7)).astype(float)  # spikes: weights of like size
    record = simulate_fixed(compile(g, x), x, rasters=64)
    reference = interpret(g, x).spikes["neurons"].transpose(1, 0, 2)
    found = record.rasters["neurons"][..., 0, 0]
    assert (found != reference).mean() < 0.01
    assert reference.mean() > 0.05
    assert sum(record.wraps.values()) == sum(record.saturations.values()) == 0


@settings(max_examples=12)
@given(st.integers(0, 999), st.floats(1.0, 8.0), st.floats(1.0, 8.0), st.booleans(), st.integers(1, 3))
def test_lava_equals_the_fixed_engine(lava, seed, tau_syn, tau_mem, recurrent, count):
    g = graph(cuba(tau_syn * DT, tau_mem * DT), recurrent, seed, bias=0.0)
    x = np.rint(2 * samples(seed, count))  # small whole numbers: beside spikes, 127 steps of input are too strong
    program = compile(g, x)
    assert differences(simulate_fixed(program, x), simulate_lava(program, x)) == []


def test_lava_does_not_carry_spikes_from_sample_to_sample(lava):
    g = graph(lif(), seed=3)
    x = np.concatenate([np.full((1, 7), 2.0), np.zeros((1, 7)), np.rint(2 * samples(3))])
    program = compile(g, x)
    fixed, real = simulate_fixed(program, x), simulate_lava(program, x)
    assert differences(fixed, real) == []
    assert fixed.spikes["neurons"][0, -1] > 0, "the first sample must end with spikes that could be carried over"


def test_a_bias_that_would_decay_is_refused():
    with pytest.raises(SpikeportError, match="neurons: a bias on synapses into CubaLIF neurons decays"):
        compile(graph(cuba(), bias=0.3), samples())


def test_neurons_that_nothing_but_themselves_feeds_are_refused():
    g = graph(lif())
    g.edges.remove(("affine", "neurons"))
    with pytest.raises(SpikeportError, match="neurons: nothing feeds these neurons"):
        compile(g, samples())
    with pytest.raises(SpikeportError, match=r"neurons \(LIF\): nothing feeds it"):
        interpret(g, samples())


def test_a_loop_through_other_neurons_is_refused():
    g = graph(lif(), recurrent=False)
    g.nodes["more"], g.nodes["back"] = lif(), nir.Linear(np.eye(5))
    g.edges += [("neurons", "more"), ("more", "back"), ("back", "neurons")]
    with pytest.raises(SpikeportError, match="has a cycle, .* -> .*; only a layer that feeds itself is supported"):
        compile(g, samples())


def test_a_loop_without_neurons_is_refused():
    g = graph(lif(), recurrent=False)
    g.nodes["back"] = nir.Linear(np.ones((7, 5)))
    g.edges += [("affine", "back"), ("back", "affine")]
    with pytest.raises(SpikeportError, match="has a cycle, "):
        interpret(g, samples())


def test_the_rounding_of_both_decays_is_noted():
    def noted(neuron):
        rows = check_graph(graph(neuron, bias=0.0), calibration=samples()).rows
        return {row.rule: row.used for row in rows if "rounding" in row.rule}

    assert noted(cuba(tau_syn=3e-3, tau_mem=6e-3)) == {
        "decay rounding error": pytest.approx(683 / 4096 - 1 / 6),
        "decay rounding error of u": pytest.approx(1 / 3 - 1365 / 4096),
    }
    assert noted(cuba(tau_syn=4e-3, tau_mem=8e-3)) == {}
