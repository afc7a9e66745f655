"""Host current: the first synapses on the host, in float; what reaches the chip is a bias, equal in both engines."""

from pathlib import Path
from typing import Any

import graphs
import nir
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from networks import RandomNet, random_nets
from torch import Tensor

from spikeport.core import SpikeportError
from spikeport.export.interpreter import interpret
from spikeport.targets import differences
from spikeport.targets.loihi import host
from spikeport.targets.loihi.check import check_graph
from spikeport.targets.loihi.compile import compile
from spikeport.targets.loihi.fixed import simulate_fixed
from spikeport.targets.loihi.lava import simulate_lava
from spikeport.targets.loihi.netx import for_netx
from spikeport.targets.loihi.program import INPUT, LoihiProgram

HOST = "host-current"


def graph_of(net: RandomNet, x: Tensor) -> nir.NIRGraph:
    """Bounded by what these samples hold."""
    return graphs.graph_of(net, x, bound=float(x.abs().max()))


def compiled(net: RandomNet, x: Tensor) -> LoihiProgram:
    try:
        return compile(graph_of(net, x), input_mode=HOST)
    except SpikeportError as error:
        assert "pads a map" in str(error) or "all of its weights are zero" in str(error)  # noqa: PT017
        reject()


def image_net(steps: int = 4) -> tuple[RandomNet, Tensor]:
    net = RandomNet(["conv", "residual"], 8, 8, steps, 3, pooled=True).eval()
    return net, 3 * torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_current_beyond_the_largest_mantissa_is_refused() -> None:
    ends = nir.Input({"input": np.array([1])}), nir.Output({"output": np.array([1])})
    nodes = {"input": ends[0], "first": nir.Linear(np.eye(1)), "neurons": graphs.integrators(1, 1.0)}
    graph = graphs.flat(nodes | {"second": nir.Linear(np.eye(1)), "output": ends[1]}, steps=3)
    program = compile(graph, np.array([[-2.0], [1.5]]), input_mode=HOST)
    (synapse,) = (s for s in program.synapses if s.host)
    exponent = program.population(synapse.post).bias_exp
    largest = (4095.4 * 2**exponent) / synapse.weight.item()
    for sign in (1, -1):
        x = np.full((2, 1, 1, 1, 1), sign * largest)
        assert np.abs(host.bias_mantissas(program, x)[synapse.post]).max() == 4095
        x[1] *= 1.001
        with pytest.raises(SpikeportError, match="neurons: .* needs a bias mantissa of 4099, the largest is 4095"):
            host.bias_mantissas(program, x)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(random_nets(), st.integers(0, 2**31))
def test_no_input_in_range_leaves_a_register(case: tuple[RandomNet, Tensor], seed: int) -> None:
    net, x = case
    program = compiled(net, x)
    for population in program.populations:
        for synapse in (s for s in program.into(population.name) if s.host):
            assert synapse.pre == INPUT
            assert synapse.weight.dtype == np.float64
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (4, *x.shape[1:])) * float(x.abs().max())
    first = net.stem.conv.weight.detach().numpy()
    signs[:2, :, :3, :3] = np.stack([np.sign(first[0]), -np.sign(first[1])]) * float(x.abs().max())
    mantissas = host.bias_mantissas(program, program.quantise(signs))
    assert mantissas.keys() == {s.post for s in program.out_of(INPUT)}
    assert all(np.abs(m).max() <= 4095 for m in mantissas.values())
    record = simulate_fixed(program, signs)
    assert sum(record.wraps.values()) == sum(record.saturations.values()) == 0


@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(random_nets())
def test_lava_equals_the_fixed_engine(lava: Path, case: tuple[RandomNet, Tensor]) -> None:
    net, x = case
    x = 3 * x
    program = compiled(net, x)
    fixed, real = simulate_fixed(program, x.numpy()), simulate_lava(program, x.numpy())
    assert differences(fixed, real) == []
    assert {name: events.tolist() for name, events in fixed.events.items()} == {
        name: events.tolist() for name, events in real.events.items()
    }


def test_a_sample_of_one_follows_a_sample_of_another(lava: Path) -> None:
    net, x = image_net()
    x[1] = 0
    program = compile(graph_of(net, x), input_mode=HOST)
    fixed, real = simulate_fixed(program, x.numpy(), rasters=6), simulate_lava(program, x.numpy(), rasters=6)
    assert differences(fixed, real) == []
    assert len(np.unique(fixed.digests["stem_lif"], axis=0)) == 6, "every sample must have a bias of its own"
    alone = simulate_fixed(program, x[2:3].numpy())
    np.testing.assert_array_equal(alone.digests["stem_lif"], fixed.digests["stem_lif"][2:3])


def test_float_on_the_host_is_nearer_than_a_graded_input() -> None:
    net, x = image_net()
    x = x.repeat(8, 1, 1, 1) * torch.linspace(0.1, 1, 48)[:, None, None, None]
    graph = graph_of(net, x)
    expected = interpret(graph, x.numpy()).spikes["stem_lif"]
    wrong = {}
    for mode in ("graded", HOST):
        record = simulate_fixed(compile(graph, input_mode=mode), x.numpy(), rasters=len(x))
        wrong[mode] = (record.rasters["stem_lif"] != expected.swapaxes(0, 1)).mean()
    assert 0.1 < expected.mean() < 0.9
    assert wrong[HOST] < 0.002
    assert wrong[HOST] <= wrong["graded"]


def test_loihi_1_takes_it(tmp_path: Path) -> None:
    graph = graph_of(*image_net())
    rules = {mode: check_graph(graph, "loihi1", mode) for mode in ("graded", HOST)}
    assert not rules["graded"].fits
    assert rules[HOST].fits, rules[HOST].errors
    program = compile(graph, input_mode=HOST)
    program.save(tmp_path / "program.npz")
    assert LoihiProgram.load(tmp_path / "program.npz").digest() == program.digest()


def test_what_the_host_adds_is_no_synaptic_event() -> None:
    net, x = image_net()
    program = compile(graph_of(net, x), input_mode=HOST)
    events = simulate_fixed(program, x.numpy()).events
    assert {s.name for s in program.synapses if not events[s.name].any()} == {s.name for s in program.out_of(INPUT)}


def foreign(neuron: nir.NIRNode, sequence: bool = False) -> nir.NIRGraph:
    nodes = {
        "input": nir.Input({"input": np.array([2])}),
        "affine": nir.Linear(np.ones((2, 2))),
        "neurons": neuron,
        "linear": nir.Linear(np.eye(2)),
        "output": nir.Output({"output": np.array([2])}),
    }
    return graphs.flat(nodes, steps=3, sequence=sequence)


ONES: Any = np.ones(2)


@pytest.mark.parametrize(
    ("graph", "told"),
    [
        (
            lambda: foreign(nir.CubaLIF(*(v * ONES for v in (4e-3, 6e-3, 1.0, 0.0, 0.5)), w_in=ONES)),
            "neurons: its currents decay, which a bias of the host does not; use `--input graded`",
        ),
        (
            lambda: foreign(nir.LIF(*(v * ONES for v in (2e-3, 1.0, 0.0, 0.5))), sequence=True),
            "the host writes biases between samples only",
        ),
    ],
)
def test_what_no_bias_can_be_is_refused(graph: Any, told: str) -> None:
    with pytest.raises(SpikeportError, match=told):
        compile(graph(), np.array([[0.3, -0.7]]), HOST)


def test_wrong_modes_ranges_and_files_are_refused() -> None:
    net, x = image_net()
    graph = graph_of(net, x)
    with pytest.raises(SpikeportError, match="unknown input 'analog'; available: graded, host-current"):
        compile(graph, input_mode="analog")
    program = compile(graph, input_mode=HOST)
    with pytest.raises(SpikeportError, match="the host-current input ends at"):
        simulate_fixed(program, 2 * x.numpy())
    with pytest.raises(SpikeportError, match="no place for what the host computes"):
        for_netx(compile(graph_of(RandomNet(["conv"], 4, 8, 2, 3, pooled=True).eval(), x), input_mode=HOST))
