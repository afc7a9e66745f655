"""Ties, decays and roundings at which the chip's integers could part from the network."""

import math

import h5py
import nir
import numpy as np
import pytest
import torch
from graphs import flat, integrators
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spikeport.core import LIF, SpikeportError, TimeMean
from spikeport.export import to_nir
from spikeport.export.nir_graph import Metadata, build_nir
from spikeport.export.trace import trace
from spikeport.targets.loihi import LoihiTarget
from spikeport.targets.loihi.compile import compile
from spikeport.targets.loihi.fixed import simulate_fixed
from spikeport.targets.loihi.program import LoihiProgram


def integrator(v_threshold, v_reset, weight=1.0):
    neurons = LIF(tau=math.inf, v_threshold=v_threshold, v_reset=v_reset, time_steps=4, decay_input=False)
    neurons.constant_input = True
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), neurons, nn.Flatten(), nn.Linear(4, 2), TimeMean(4)).eval()
    nn.init.constant_(net[0].weight, weight)
    nn.init.constant_(net[3].weight, 1.0)
    nn.init.zeros_(net[3].bias)
    return net


@pytest.mark.parametrize(("v_threshold", "v_reset"), [(1.0, 0.0), (0.0, -1.0), (0.0, -2.0), (1.0, -1.0), (-1.0, -3.0)])
def test_a_tie_fires_whatever_the_reset(v_threshold, v_reset):
    """Each step adds 1, and the threshold lies whole steps above the reset: the float32 below it may be no float64."""
    net, x = integrator(v_threshold, v_reset), torch.ones(2, 1, 2, 2)
    graph, _ = build_nir(trace(net, (1, 2, 2)), Metadata(4, input_shape=(1, 2, 2), input_bound=1.0))
    with torch.no_grad():
        expected = net[1](net[0](x)).unflatten(0, (4, 2)).transpose(0, 1).numpy()
    record = simulate_fixed(compile(graph, x.numpy()), x.numpy(), rasters=2)
    (found,) = record.rasters.values()
    np.testing.assert_array_equal(found, expected)
    assert expected.any()


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.7, 0.9, 1.1])
def test_a_threshold_that_no_float_holds_is_that_of_float32(tmp_path, threshold):
    """float32(0.7) is less than 0.7: the weight of that size fires in float32, which the file is made for."""
    net = nn.Sequential(
        nn.Conv2d(1, 1, 1, bias=False),
        LIF(tau=1.0, v_threshold=threshold, time_steps=2, constant_input=True),
        nn.Flatten(),
        nn.Linear(4, 2),
        TimeMean(2),
    ).eval()
    nn.init.constant_(net[0].weight, threshold)
    certificate = to_nir(net, tmp_path / "m.nir", np.ones((2, 1, 2, 2), np.float32))
    assert certificate.witnesses[0].status == "agrees"


def integer_network(seed, tau):
    """Weights of -1, 0 and 1, thresholds that sums of them reach, a bias of 0.3 in every other channel."""
    torch.manual_seed(seed)
    neurons = LIF(tau=tau, v_threshold=2.0, time_steps=4, constant_input=True, decay_input=False)
    net = nn.Sequential(nn.Linear(4, 6), neurons, nn.Linear(6, 2), TimeMean(4)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.randint(-1, 2, (6, 4)))
        net[0].weight[0] = 1.0
        net[0].bias.copy_(torch.tensor([0.0, 0.3, 1.0, 0.3, 0.0, -0.3]))
    return net, torch.randint(-1, 3, (16, 4)).float()


@given(st.integers(0, 2**31), st.sampled_from((1.0, math.inf)))
def test_ties_fire_beside_channels_whose_bias_is_no_whole_weight_step(seed, tau):
    net, x = integer_network(seed, tau)
    graph, _ = build_nir(trace(net, (4,)), Metadata(4, input_shape=(4,)))
    with torch.no_grad():
        expected = net[1](net[0](x)).unflatten(0, (4, 16)).transpose(0, 1).numpy()
    program = compile(graph, x.numpy())
    (found,) = simulate_fixed(program, x.numpy(), rasters=16).rasters.values()
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)
    assert program.populations[0].vth.tolist() == [253, 254, 253, 254, 253, 254]
    assert np.ndim(compile(graph, x.numpy(), bias_exp=6).populations[0].vth) == 0


def test_a_net_file_has_whole_biases_and_the_threshold_that_goes_with_them(tmp_path):
    net, x = integer_network(0, math.inf)
    graph, _ = build_nir(trace(net, (4,)), Metadata(4, input_shape=(4,)))
    program = LoihiTarget().compile(graph, tmp_path / "p.npz", x.numpy(), net=tmp_path / "m.net")
    assert program.populations[0].vth == 253
    assert program.populations[0].bias_mant.tolist() == [0, 38, 127, 38, 0, -38]
    with h5py.File(tmp_path / "m.net") as file:
        assert file["layer/1/neuron/vThMant"][()] == 253


@given(st.floats(1.0, 120.0), st.integers(1, 24), st.integers(50, 300))
def test_no_voltage_saturates_where_the_decay_is_rounded(tau, size, steps):
    """The chip's decay counts in 1/4096: it may leak less than the network, and builds up further."""
    nodes = {
        "input": nir.Input({"input": np.array([size])}),
        "a": nir.Linear(-np.ones((1, size))),
        "n": nir.LIF(*(np.full(1, value) for value in (tau * 1e-3, 1.0, 0.0, 1.0))),
        "b": nir.Linear(np.ones((2, 1))),
        "output": nir.Output({"output": np.array([2])}),
    }
    graph = flat(nodes, steps=steps)
    x = np.ones((1, size))
    record = simulate_fixed(compile(graph, x), x)
    assert not any(record.saturations.values())
    assert not any(record.wraps.values())


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_type_of_the_samples_does_not_change_their_graded_values(dtype):
    net = integrator(1.0, 0.0)
    x = np.random.default_rng(0).normal(size=(64, 1, 2, 2)).astype(dtype)
    graph, _ = build_nir(trace(net, (1, 2, 2)), Metadata(4, input_shape=(1, 2, 2), input_bound=5.3))
    program = compile(graph)
    np.testing.assert_array_equal(program.quantise(x), program.quantise(x.astype(np.float64)))


def test_names_that_end_like_files_survive_the_file(tmp_path):
    nodes = {"input": nir.Input({"input": np.array([2])}), "a": nir.Affine(np.eye(2), np.array([1.0, 2.0]))}
    nodes |= {"n": integrators(2, 1.5), "b": nir.Affine(np.eye(2), np.array([-3.0, 1.0])), "n.npy": integrators(2, 1.5)}
    nodes |= {"c": nir.Linear(np.eye(2)), "output": nir.Output({"output": np.array([2])})}
    graph = flat(nodes)
    program = LoihiTarget().compile(graph, tmp_path / "p.npz", np.eye(2))
    assert LoihiProgram.load(tmp_path / "p.npz").digest() == program.digest()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 5}, "engine fixed has no option timeout"),
        ({"convolution": "stock"}, "engine fixed has no option convolution"),
        ({"rasters": None}, "spike maps of None samples"),
        ({"rasters": 1.5}, "spike maps of 1.5 samples"),
        ({"processes": None}, "None processes asked for"),
        ({"processes": 1.5}, "1.5 processes asked for"),
    ],
)
def test_options_that_an_engine_does_not_take_are_named(tmp_path, options, message):
    graph, _ = build_nir(trace(integrator(1.0, 0.0), (1, 2, 2)), Metadata(4, input_shape=(1, 2, 2), input_bound=1.0))
    LoihiTarget().compile(graph, tmp_path / "p.npz")
    with pytest.raises(SpikeportError, match=message):
        LoihiTarget().simulate(tmp_path / "p.npz", np.ones((1, 1, 2, 2)), **options)
    with pytest.raises(SpikeportError, match=r"the samples have shape \[\]"):
        LoihiTarget().simulate(tmp_path / "p.npz", np.array(5.0))
