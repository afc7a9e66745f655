"""NIR graphs of others as they may be written: right but unusual, or damaged in one place."""

from itertools import pairwise

import nir
import numpy as np
import pytest
import torch
from torch import nn

from spikeport.core import LIF, SpikeportError, TimeMean
from spikeport.export import to_nir
from spikeport.export.nir_foreign import with_metadata
from spikeport.export.nir_graph import metadata_of, read_nir
from spikeport.targets.loihi.compile import compile
from spikeport.targets.loihi.fixed import simulate_fixed

X = np.ones((2, 2, 6, 6))


def integrators(threshold=1.5):
    return nir.IF(np.full((3, 4, 4), 1e3), np.full((3, 4, 4), threshold))


def row(**replaced):
    """Input, convolution, neurons, flatten, classes, output; some of them replaced."""
    weight = np.random.default_rng(0).integers(-3, 4, (3, 2, 3, 3)).astype(np.float64)
    nodes = {
        "input": nir.Input({"input": np.array([2, 6, 6])}),
        "conv": nir.Conv2d((6, 6), weight, 1, 0, 1, 1, np.zeros(3)),
        "lif": integrators(),
        "flatten": nir.Flatten({"input": np.array([3, 4, 4])}, start_dim=0),
        "classes": nir.Linear(np.ones((2, 48))),
        "output": nir.Output({"output": np.array([2])}),
    }
    return nodes | replaced


def graph(nodes, edges=()):
    return with_metadata(nir.NIRGraph(nodes, [*pairwise(nodes), *edges], type_check=False), 3, 1e-3)


def changed(node, **fields):
    for name, value in fields.items():
        setattr(node, name, value)
    return node


def test_numbers_of_other_machines_are_the_same_numbers():
    nodes = row()
    expected = simulate_fixed(compile(graph(nodes), X), X).outputs
    conv = nodes["conv"]
    for kind in (">f8", ">f4", np.longdouble, np.float16, np.int32):
        other = changed(row()["conv"], weight=conv.weight.astype(kind), bias=conv.bias.astype(kind))
        found = simulate_fixed(compile(graph(row(conv=other)), X), X).outputs
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"groups": np.array([1])}, r"conv: its groups is \[1\]"),
        ({"groups": np.array([1, 1])}, r"conv: its groups is \[1, 1\]"),
        ({"dilation": 1 << 20}, "conv: its kernel does not fit on a map"),
        ({"weight": np.zeros((0, 2, 3, 3))}, "4 axes, none empty, are needed"),
    ],
)
def test_a_convolution_that_is_none_is_named(fields, message):
    with pytest.raises(SpikeportError, match=message):
        compile(graph(row(conv=changed(row()["conv"], **fields))), X)


def test_a_window_that_does_not_fit_takes_no_memory():
    huge = np.array([1 << 24, 1 << 24])
    window = nir.AvgPool2d(huge, huge, np.array([0, 0]))
    with pytest.raises(SpikeportError, match="conv: its kernel does not fit on a map"):
        compile(graph(row(conv=window)), X)


@pytest.mark.parametrize("shape", [["abc"], [np.nan, 6, 6], [-2, 6, 6], [2.5, 6, 6]])
def test_an_input_without_a_shape_is_named(shape):
    with pytest.raises(SpikeportError, match="input: its shape is .* whole numbers from 1 are needed"):
        graph(row(input=changed(row()["input"], input_type={"input": np.array(shape)})))


def test_an_edge_that_is_there_twice_is_refused_on_every_level():
    with pytest.raises(SpikeportError, match="the edge conv -> lif 2 times"):
        graph(row(), [("conv", "lif")])
    inner = {"in": nir.Input({"input": np.array([3, 4, 4])}), "n": integrators()}
    inner["out"] = nir.Output({"output": np.array([3, 4, 4])})
    within = nir.NIRGraph(inner, [*pairwise(inner), ("in", "n")], type_check=False)
    with pytest.raises(SpikeportError, match="the edge in -> n 2 times"):
        graph(row(lif=within))


def test_a_layer_that_feeds_itself_without_a_synapse_is_named():
    with pytest.raises(SpikeportError, match=r"lif feeds itself directly; put a nir\.Linear"):
        compile(graph(row(), [("lif", "lif")]), X)


def test_a_node_within_a_graph_does_not_take_the_place_of_one_outside():
    """The outer "g.n" never fires; the "n" within "g" does."""
    inner = {"in": nir.Input({"input": np.array([3, 4, 4])}), "n": integrators()}
    inner["out"] = nir.Output({"output": np.array([3, 4, 4])})
    nodes = row(g=nir.NIRGraph(inner, list(pairwise(inner)), type_check=False))
    nodes |= {"g.n": integrators(1e4)}
    edges = [("input", "conv"), ("conv", "g"), ("g", "flatten"), ("conv", "g.n"), ("g.n", "flatten")]
    edges += [("flatten", "classes"), ("classes", "output")]
    del nodes["lif"]
    flat = with_metadata(nir.NIRGraph(nodes, edges, type_check=False), 3, 1e-3)
    thresholds = {name: node.v_threshold.max() for name, node in flat.nodes.items() if isinstance(node, nir.IF)}
    assert thresholds == {"g.n": 1e4, "g.n_2": 1.5}
    assert {("conv", "g.n"), ("conv", "g.n_2")} <= set(flat.edges)


def test_metadata_nested_without_end_is_damaged():
    deep = nir.NIRGraph(row(), list(pairwise(row())), metadata={"spikeport": "[" * 100_000}, type_check=False)
    with pytest.raises(SpikeportError, match="spikeport metadata is damaged"):
        metadata_of(deep)


def test_a_layer_may_be_called_as_another_and_its_flatten(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = LIF(time_steps=2, constant_input=True)
            self.stem, self.l_flatten, self.m = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 1), LIF(time_steps=2)
            self.a, self.b, self.end = nn.Linear(48, 2), nn.Linear(48, 2), TimeMean(2)

        def forward(self, x):
            spikes = self.l(self.stem(x))
            return self.end(self.a(self.m(self.l_flatten(spikes)).flatten(1)) + self.b(spikes.flatten(1)))

    torch.manual_seed(0)
    certificate = to_nir(Net().eval(), tmp_path / "m.nir", np.ones((2, 2, 4, 4), np.float32))
    assert certificate.witnesses[0].status == "agrees"
    assert {"l_flatten", "l_flatten_2"} <= set(read_nir(tmp_path / "m.nir").nodes)
