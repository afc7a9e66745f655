"""SpikingJelly's and snnTorch's models as they are: spike for spike their owner's, or refused by name."""

import copy
import sys
from functools import partial
from importlib import import_module
from itertools import pairwise
from types import SimpleNamespace

import nir
import numpy as np
import pytest
import snntorch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from snntorch import surrogate as snn_surrogate
from snntorch.export_nir import export_to_nir
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from spikeport import report
from spikeport.core import SpikeportError
from spikeport.export import read_nir, to_nir
from spikeport.export.foreign import adopt, is_foreign, owner_forward, share_state
from spikeport.export.interpreter import interpret
from spikeport.export.nir_foreign import with_metadata
from spikeport.export.trace import trace
from spikeport.targets import compile_model, simulate
from spikeport.targets.loihi.compile import compile
from spikeport.targets.loihi.fixed import simulate_fixed


class Jelly(nn.Module):
    """BatchNorm, max-pooling and three kinds of neurons, in SpikingJelly's layers."""

    def __init__(self, middle, step_mode):
        super().__init__()
        self.stem = nn.Sequential(layer.Conv2d(2, 6, 3, padding=1), layer.BatchNorm2d(6), neuron.LIFNode(tau=1.6))
        self.pool = layer.MaxPool2d(2)
        body = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.body = layer.SeqToANNContainer(*body) if step_mode == "m" else nn.Sequential(*body)
        self.middle = middle
        self.head = nn.Sequential(layer.Flatten(), layer.Dropout(0.5), layer.Linear(6 * 9, 4))
        functional.set_step_mode(self, step_mode)

    def forward(self, x):
        return self.head(self.middle(self.body(self.pool(self.stem(x)))))


def enliven(model):
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, 0.0, 1.5, generator=generator)
            nn.init.uniform_(module.running_var, 0.1, 1.0, generator=generator)
    return model.eval()


def samples(seed=0):
    return torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(seed)).numpy() * 2


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize(
    "middle",
    [
        neuron.LIFNode(tau=2.0),
        neuron.LIFNode(tau=3.0, decay_input=False),
        neuron.LIFNode(tau=2.0, v_threshold=0.7, v_reset=-0.2),
        neuron.IFNode(v_threshold=1.3),
        neuron.ParametricLIFNode(init_tau=2.5),
    ],
    ids=["LIF", "LIF without input decay", "LIF with reset", "IF", "PLIF"],
)
def test_spikingjelly_spikes_survive_the_file(tmp_path, middle, step_mode):
    model = enliven(Jelly(middle, step_mode))
    certificate = to_nir(model, tmp_path / "m.nir", samples(), time_steps=4)
    owner = certificate.witnesses[-1]
    assert owner.reader.startswith("the model as spikingjelly runs it")
    assert (owner.status, owner.differing_spikes) == ("agrees", 0)
    spikes, _ = owner_forward(model, samples(), 4)
    assert min(float(s.mean()) for s in spikes.values()) > 0, "silence proves nothing"


def moving_samples(steps=5):
    """[T, N, C, H, W]: sums of events, as event cameras give them."""
    return np.random.default_rng(0).poisson(0.6, (steps, 4, 2, 6, 6)).astype(np.float32)


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_an_input_that_changes_goes_through_spikingjelly_the_file_and_the_chip(tmp_path, step_mode):
    x = moving_samples()
    model = enliven(Jelly(neuron.LIFNode(tau=2.0, v_threshold=0.7), step_mode))
    certificate = to_nir(model, tmp_path / "m.nir", x, time_steps=5)
    assert {w.status for w in certificate.witnesses} == {"agrees"}
    assert certificate.witnesses[-1].reader.startswith("the model as spikingjelly runs it")
    spikes, outputs = owner_forward(model, x, 5)
    by_hand = copy.deepcopy(model).double()
    functional.reset_net(by_hand)
    functional.set_step_mode(by_hand, step_mode)
    with torch.no_grad():
        given = torch.from_numpy(x).double()
        theirs = by_hand(given) if step_mode == "m" else torch.stack([by_hand(step) for step in given])
    np.testing.assert_allclose(outputs, theirs.numpy())
    assert len({s.sum() for s in spikes["stem.2"]}) > 1, "an input that changes"
    program = compile(read_nir(tmp_path / "m.nir"), x)
    record = simulate_fixed(program, x)
    (name,) = [p.name for p in program.populations if p.source == "stem.2"]
    assert record.spikes[name].sum() == pytest.approx(spikes["stem.2"].sum(), rel=0.1)


def test_an_input_that_changes_in_snntorch(tmp_path):
    leaky = {"init_hidden": True, "reset_mechanism": "zero", "threshold": 0.4}
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 5, 3), snntorch.Leaky(beta=0.8, **leaky), nn.Flatten(), nn.Linear(5 * 16, 3)),
    ).eval()
    certificate = to_nir(model, tmp_path / "m.nir", moving_samples(), time_steps=5)
    assert {w.status for w in certificate.witnesses} == {"agrees"}
    assert owner_forward(model, moving_samples(), 5)[0]["1"].sum() > 0
    with pytest.raises(SpikeportError, match="with 5 steps, asked for 4"):
        to_nir(model, tmp_path / "other/m.nir", moving_samples(), time_steps=4)
    assert not (tmp_path / "other").exists()


@settings(max_examples=15)
@given(st.floats(0.1, 1.0), st.floats(0.2, 2.0), st.booleans(), st.integers(0, 99))
def test_snntorch_spikes_survive(beta, threshold, delay, seed):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 5, 3), nn.Linear(5 * 16, 3)
            options = {"init_hidden": True, "reset_mechanism": "zero", "reset_delay": delay, "threshold": threshold}
            self.first = snntorch.Leaky(beta=beta, **options)
            self.last = snntorch.Leaky(beta=beta, output=True, **options)

        def forward(self, x):
            spikes, _ = self.last(self.head(self.first(self.conv(x)).flatten(1)))
            return spikes

    torch.manual_seed(seed)
    model = Net().eval()
    theirs, outputs = owner_forward(model, samples(seed), 5)
    ours = adopt(model, 5).double()
    seen = {}
    for name in ("first", "last"):
        module = ours.get_submodule(name)
        module.register_forward_hook(lambda m, a, y, name=name: seen.__setitem__(name, y.unflatten(0, (5, -1)).numpy()))
    with torch.no_grad():
        prediction = ours(torch.from_numpy(samples(seed)).double()).numpy()
    for name, spikes in theirs.items():
        np.testing.assert_array_equal(seen[name], spikes)
    np.testing.assert_allclose(prediction, outputs.mean(0))


def test_snntorch_does_not_fire_at_its_threshold():
    leaky = snntorch.Leaky(beta=0.5, threshold=0.75, init_hidden=True, reset_mechanism="zero")
    model = nn.Sequential(nn.Linear(1, 1, bias=False), leaky).eval()
    model[0].weight.data.fill_(1)
    x = torch.tensor([[0.75], [0.5], [0.76]])  # at it in step 1; in step 2, 0.5 + 0.25; above it
    theirs = owner_forward(model, x.numpy(), 2)[1][:, :, 0]
    assert theirs.tolist() == [[0, 0, 1], [1, 0, 1]]
    with torch.no_grad():
        assert adopt(model, 2)(x)[:, 0].tolist() == theirs.mean(0).tolist()


class Blocks(nn.Module):
    """Containers, ready-made blocks, votes, and a forward pass that asks for the step mode, as SpikingJelly's do."""

    def __init__(self, resnet, sew, step_mode):
        super().__init__()
        act = {"spiking_neuron": neuron.IFNode, "v_threshold": 0.6}
        stem = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.stem = layer.StepModeContainer(False, step_mode, *stem)
        self.blocks = nn.Sequential(
            neuron.LIFNode(), resnet.BasicBlock(4, 4, **act), sew.BasicBlock(4, 4, cnf="ADD", **act), layer.AvgPool2d(2)
        )
        self.classifier = nn.Sequential(layer.Linear(36, 13), neuron.LIFNode(v_threshold=0.2), layer.VotingLayer(4))
        functional.set_step_mode(self, step_mode)

    def forward(self, x):
        x = self.blocks(self.stem(x))
        return self.classifier(x.flatten(1 if self.blocks[0].step_mode == "s" else 2))


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_spikingjellys_own_models_and_containers(tmp_path, monkeypatch, step_mode):
    # Its models import a function of torchvision that downloads weights.
    utils = SimpleNamespace(load_state_dict_from_url=None)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(_internally_replaced_utils=utils))
    monkeypatch.setitem(sys.modules, "torchvision._internally_replaced_utils", utils)
    resnet, sew = (import_module(f"spikingjelly.activation_based.model.{m}_resnet") for m in ("spiking", "sew"))
    model = enliven(Blocks(resnet, sew, step_mode))
    certificate = to_nir(model, tmp_path / "m.nir", samples(), time_steps=4)
    assert certificate.witnesses[-1].reader.startswith("the model as spikingjelly runs it")
    assert {w.status for w in certificate.witnesses} == {"agrees", "cannot read"}
    spikes, outputs = owner_forward(model, samples(), 4)
    assert outputs.shape == (4, 4, 3)
    assert min(float(s.mean()) for s in spikes.values()) > 0, "silence proves nothing"
    assert model.blocks[0].step_mode == step_mode, "the user's model stays as it is"


def test_a_neuron_in_a_container_of_steps(tmp_path):
    class Net(nn.Sequential):
        def __init__(self):
            neurons = layer.MultiStepContainer(neuron.LIFNode(v_threshold=0.4))
            head = layer.SeqToANNContainer(nn.Flatten(), nn.Linear(72, 3))
            super().__init__(layer.SeqToANNContainer(nn.Conv2d(2, 2, 3, padding=1)), neurons, head)

    certificate = to_nir(Net(), tmp_path / "m.nir", samples(), time_steps=4)
    assert certificate.witnesses[-1].layers == {"1.0": 0}


def test_a_model_of_snntorch_that_ran_before_is_compared_from_rest_and_keeps_its_state(tmp_path):
    leaky = snntorch.Leaky(beta=0.9, init_hidden=True, reset_mechanism="zero")
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 3), leaky)
    with torch.no_grad():
        model(torch.from_numpy(samples(1)))
    before = leaky.mem.clone()
    assert to_nir(model, tmp_path / "m.nir", samples(), time_steps=4).passed
    assert before.any()
    assert torch.equal(leaky.mem, before)


def test_weights_come_along_and_the_model_is_untouched():
    model = enliven(Jelly(neuron.IFNode(), "m"))
    ours = adopt(model, 4)
    assert torch.equal(ours.get_submodule("stem.0").weight, model.stem[0].weight)
    assert is_foreign(model)
    assert not is_foreign(ours)


@pytest.mark.parametrize(
    ("middle", "message"),
    [
        (
            neuron.LIFNode(v_reset=None),
            r"middle .LIFNode.: soft reset has no exact form on Loihi; train",
        ),
        (
            neuron.LIFNode(surrogate_function=surrogate.Sigmoid(spiking=False)),
            r"middle .LIFNode.: its surrogate_function has spiking=False, so what it gives are no spikes",
        ),
        (
            neuron.IzhikevichNode(),
            r"middle .spikingjelly IzhikevichNode.: has no exact form here; known",
        ),
        (layer.ThresholdDependentBatchNorm2d(1.0, 1.0, 6), r"BatchNorm2d.: has no exact form here; known: Conv2d"),
        (type("Own", (neuron.LIFNode,), {})(), r"middle .spikingjelly Own.: has no exact form here; known: LIFNode"),
        (
            type("LIFNode", (neuron.LIFNode,), {"single_step_forward": lambda self, x: x.clamp(max=2.0)})(),
            r"middle .spikingjelly LIFNode.: has no exact form here; known: .*, spikingjelly's own; .*test_foreign",
        ),
    ],
)
def test_what_spikingjelly_has_and_we_have_not_is_named(middle, message):
    with pytest.raises(SpikeportError, match=message):
        adopt(Jelly(middle, "m").eval(), 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_hidden": True}, "reset_mechanism 'subtract' has no exact form on Loihi; train with"),
        ({"reset_mechanism": "zero"}, "build it with init_hidden=True"),
        ({"reset_mechanism": "zero", "init_hidden": True, "inhibition": True}, "inhibition"),
    ],
)
def test_what_snntorch_has_and_we_have_not_is_named(options, message):
    model = nn.Sequential(nn.Linear(3, 2), snntorch.Leaky(beta=0.9, **options))
    with pytest.raises(SpikeportError, match=message):
        adopt(model.eval(), 4)


def test_a_neuron_derived_from_leaky_is_none_of_snntorchs():
    class Leaky(snntorch.Leaky):
        def forward(self, x, mem=None):
            return super().forward(x.clamp(max=1.0))

    model = nn.Sequential(nn.Linear(3, 2), Leaky(beta=0.9, reset_mechanism="zero", init_hidden=True))
    with pytest.raises(
        SpikeportError, match=r"1 .snntorch Leaky.: .* known: Leaky, snntorch's own; this one is defined"
    ):
        adopt(model.eval(), 4)


def test_time_steps_must_be_said(tmp_path):
    with pytest.raises(SpikeportError, match="say over how many time steps"):
        to_nir(Jelly(neuron.IFNode(), "s"), tmp_path / "m.nir", samples())


def theirs(**replaced):
    """A NIR graph as another framework writes it: its own dt, r, Scale, SumPool2d, Linear, arrays per neuron."""
    rng = np.random.default_rng(0)
    nodes = {
        "input": nir.Input({"input": np.array([2, 6, 6])}),
        "scale": nir.Scale(np.broadcast_to(np.array([0.5, 2.0])[:, None, None], (2, 6, 6)).copy()),
        "conv": nir.Conv2d((6, 6), rng.normal(size=(4, 2, 3, 3)), 1, 1, 1, 1, rng.normal(size=4)),
        "lif": nir.LIF(*(np.full((4, 6, 6), v) for v in (5e-3, 3.0, 0.1, 0.8)), v_reset=np.full((4, 6, 6), 0.05)),
        "pool": nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        "flatten": nir.Flatten({"input": np.array([4, 3, 3])}, start_dim=0),
        "linear": nir.Linear(rng.normal(size=(3, 36))),
        "if": nir.IF(*(np.full(3, v) for v in (500.0, 1.5))),
        "output": nir.Output({"output": np.array([3])}),
    } | replaced
    names = list(nodes)
    return nir.NIRGraph(nodes, list(pairwise(names)), type_check=False)


def by_hand(x, steps, dt):
    """The same graph written out in NumPy and torch, forward Euler."""
    g = theirs().nodes
    x = torch.from_numpy(x * g["scale"].scale)
    current = nn.functional.conv2d(x, torch.from_numpy(g["conv"].weight), torch.from_numpy(g["conv"].bias), 1, 1)
    v = np.full(current.shape, 0.05)
    w, out = np.zeros((len(x), 3)), []
    for _ in range(steps):
        v = v + dt / 5e-3 * (0.1 - v + 3.0 * current.numpy())
        spikes = (v > 0.8).astype(float)
        v = np.where(spikes > 0, 0.05, v)
        pooled = spikes.reshape(len(x), 4, 3, 2, 3, 2).sum((3, 5)).reshape(len(x), -1)
        w = w + dt * 500.0 * (pooled @ g["linear"].weight.T)
        fired = w > 1.5
        w = np.where(fired, 0.0, w)
        out.append(fired)
    return np.stack(out)


def test_a_foreign_file_runs_by_its_own_conventions():
    x = samples().astype(np.float64)
    graph = with_metadata(theirs(), 6, dt=1e-3)
    found = interpret(graph, x)
    np.testing.assert_array_equal(found.spikes["if"], by_hand(x, 6, 1e-3))
    assert 0 < found.spikes["if"].mean() < 1
    program = compile(graph, x)
    record = simulate_fixed(program, x)
    assert np.abs(record.outputs - found.prediction).mean() < 0.15  # 8 bits
    assert sum(record.saturations.values()) == 0


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"lif": nir.LIF(*(np.ones((4, 5, 5)),) * 4)}, r"lif: its tau has shape \(4, 5, 5\), the map it receives has"),
        ({"linear": nir.Linear(np.ones((3, 35)))}, "linear"),
        ({"pool": nir.Threshold(np.ones((4, 3, 3)))}, "pool"),
        ({"pool": nir.Delay(np.ones((4, 3, 3)))}, "pool"),
    ],
)
def test_files_that_lie_or_hold_unknown_nodes_are_named(node, message):
    graph = with_metadata(theirs(**node), 4)
    with pytest.raises(SpikeportError, match=message):
        interpret(graph, samples())
    with pytest.raises(SpikeportError, match=message):
        compile(graph, samples())


def test_graphs_within_graphs_take_their_place():
    """snnTorch writes a recurrent layer as a graph of its own."""
    torch.manual_seed(0)
    options = {"init_hidden": True, "reset_mechanism": "zero", "reset_delay": False, "threshold": 0.5}
    layers = nn.Linear(12, 5), snntorch.RLeaky(beta=0.8, linear_features=5, **options), nn.Linear(5, 3)
    x = torch.randn(6, 12) * 2
    graph = export_to_nir(nn.Sequential(*layers), x[:1], ignore_dims=[0])
    nested = {"input": nir.Input({"input": np.array([12])}), "all": graph, "output": nir.Output({"output": [3]})}
    for whole in (graph, nir.NIRGraph(nested, [("input", "all"), ("all", "output")], type_check=False)):
        found = interpret(with_metadata(whole, 5), x.numpy())
        layers[1].reset_mem()
        with torch.no_grad():
            expected = torch.stack([layers[2](layers[1](layers[0](x))) for _ in range(5)])
        np.testing.assert_allclose(found.outputs, expected, atol=1e-6)
        (spikes,) = found.spikes.values()
        assert 0.1 < spikes.mean() < 0.9
        record = simulate_fixed(compile(with_metadata(whole, 5), x.numpy()), x.numpy())
        assert np.abs(record.outputs - found.prediction).mean() < 0.1  # 8 bits


def test_several_inputs_and_outputs_are_refused():
    inputs, outputs = {"second": nir.Input({"input": np.array([2])})}, {"second": nir.Output({"output": np.array([2])})}
    for message, nodes in (
        ("the NIR graph has 2 inputs", inputs),
        ("the NIR graph has 2 outputs", outputs),
        ("pool has 2 outputs", {"pool": theirs(**outputs)}),
    ):
        with pytest.raises(SpikeportError, match=message):
            with_metadata(theirs(**nodes), 4)
    for edge in (("output", "if"), ("if", "input")):
        graph = theirs()
        graph.edges.append(edge)
        with pytest.raises(SpikeportError, match=f"an edge {edge[0]} -> {edge[1]}, out of its output or into"):
            with_metadata(graph, 4)


def spoilt(node, **values):
    """A node that says of itself what NIR's own classes would not let it."""
    for name, value in values.items():
        setattr(node, name, np.array(value))
    return node


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (
            "conv",
            {"weight": np.ones((4, 2, 3))},
            r"conv: its weights have the shape \(4, 2, 3\); 4 axes, none empty, are needed",
        ),
        ("conv", {"bias": np.ones(3)}, r"conv: 4 outputs, a bias of shape \(3,\)"),
        ("conv", {"bias": np.ones(1)}, r"conv: 4 outputs, a bias of shape \(1,\)"),
        ("conv", {"stride": [1, 2, 3]}, r"conv: its stride is \[1, 2, 3\]; whole numbers from 1 are needed"),
        ("conv", {"stride": [0, 1]}, "conv: its stride"),
        ("conv", {"stride": [1.5, 1.5]}, "conv: its stride"),
        ("conv", {"groups": 0}, "conv: its groups"),
        ("conv", {"weight": np.ones((3, 1, 3, 3)), "bias": np.ones(3), "groups": 2}, "conv: 3 outputs in 2 groups"),
        ("pool", {"kernel_size": [0, 0]}, "pool: its kernel_size"),
        ("pool", {"padding": [-1, -1]}, r"pool: its padding is \[-1, -1\]; whole numbers from 0 are needed"),
        ("scale", {"scale": np.ones((3, 1, 1))}, "scale"),
        ("linear", {"weight": np.ones((3, 4, 36))}, "linear: its weights"),
        ("linear", {"weight": ["same"]}, "linear: its weight is .* which is no number"),
        ("lif", {"tau": ["same"]}, "lif: its tau is .* which is no number"),
    ],
)
def test_weights_and_geometry_that_are_none_are_named(name, values, message):
    refused_by_both(theirs(**{name: spoilt(theirs().nodes[name], **values)}), message)


def refused_by_both(graph, message):
    graph = with_metadata(graph, 4)
    for run in (interpret, compile):
        with pytest.raises(SpikeportError, match=message):
            run(graph, samples())


@pytest.mark.parametrize(
    ("link", "edges", "message"),
    [
        (nir.Delay(np.ones(3)), [("if", "link"), ("link", "if")], "link: .*Delay"),
        (nir.Linear(np.ones((2, 3))), [("if", "link"), ("link", "if")], r"\(2,"),
        (nir.Linear(np.ones((2, 36))), [("flatten", "link"), ("link", "if")], "if: its inputs have the shapes"),
    ],
)
def test_connections_that_do_not_fit_are_named(link, edges, message):
    graph = theirs(link=link)
    graph.edges = [e for e in graph.edges if "link" not in e] + edges
    refused_by_both(graph, message)


def test_neurons_that_only_feed_themselves_and_an_empty_input_are_named():
    graph = theirs(link=nir.Linear(np.ones((3, 3))))
    graph.edges = [e for e in graph.edges if e[1] not in ("if", "link", "output")]
    graph.edges += [("if", "link"), ("link", "if"), ("if", "output")]
    refused_by_both(graph, "if.*: nothing feeds")
    with pytest.raises(SpikeportError, match=r"input: its shape is \[0, 6, 6\]"):
        compile(with_metadata(theirs(input=nir.Input({"input": np.array([0, 6, 6])})), 4), samples())


def test_synapses_that_nothing_feeds_are_named_and_keep_no_bias_back():
    graph = theirs()
    graph.nodes["more"] = nir.Conv2d(None, np.ones((4, 2, 1, 1)), 1, 0, 1, 1, np.ones(4))
    graph.edges.append(("more", "lif"))
    refused_by_both(graph, r"more \(Conv2d\): nothing feeds it")


def test_one_factor_per_feature_scales_a_vector():
    rng = np.random.default_rng(0)
    nodes = {"input": nir.Input({"input": np.array([6])}), "scale": nir.Scale(rng.uniform(0.2, 2, 6))}
    nodes["lif"] = nir.LIF(*(np.full(6, v) for v in (2e-4, 1.0, 0.0, 0.5)))
    nodes["output"] = nir.Output({"output": np.array([6])})
    graph = with_metadata(nir.NIRGraph(nodes, list(pairwise(nodes)), type_check=False), 4)
    x = rng.normal(size=(50, 6)) * 2
    expected = interpret(graph, x)
    current = x * nodes["scale"].scale
    np.testing.assert_array_equal(expected.spikes["lif"][0], current / 2 > 0.5)
    assert (simulate_fixed(compile(graph, x), x).outputs != expected.prediction).mean() < 0.05  # 8 bits


class Joined(nn.Module):
    def __init__(self, join):
        super().__init__()
        self.join, self.c, self.d = join, nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.l, self.m = neuron.LIFNode(v_threshold=0.1), neuron.LIFNode(v_threshold=0.1)
        self.head = nn.Linear(72, 2)

    def forward(self, x):
        return self.head(self.join(self, self.l(self.c(x))).flatten(1))


def add_in_place(net, a):
    b = net.m(net.d(a))
    b += a
    return b


def test_spikes_that_are_added_to_in_place_are_kept(tmp_path):
    assert to_nir(Joined(add_in_place), tmp_path / "m.nir", samples(), time_steps=3).passed


def test_a_shared_neuron_a_sliced_batch_an_unreset_model_and_odd_steps_are_named(tmp_path):
    used = Joined(lambda net, a: a)
    used(torch.from_numpy(samples()))
    for message, model, steps in (
        (r"l \(LIFNode\): is used twice in one step", Joined(lambda net, a: net.l(net.d(a))), 3),
        ("indexes 0; only slices of channels.* give the network of one step", Joined(lambda net, a: a[0]), 3),
        (r"mean\(\) works along dimension 0.*give it for one step", Joined(lambda net, a: a.mean(0)), 3),
        ("LIFNode: a layer alone is no network; put it into nn.Sequential", neuron.LIFNode(), 3),
        ("unsqueeze: adds or repeats an axis", Joined(lambda net, a: a.unsqueeze(0).repeat(3, 1, 1, 1, 1)), 3),
        ("reset it first: spikingjelly", used, 3),
        ("time_steps is -3", Joined(lambda net, a: a), -3),
        ("time_steps is 4.0", Joined(lambda net, a: a), 4.0),
    ):
        with pytest.raises(SpikeportError, match=message):
            to_nir(model, tmp_path / "m.nir", samples(), time_steps=steps)
    functional.reset_net(used)
    assert to_nir(used, tmp_path / "m.nir", samples(), time_steps=np.int64(3)).passed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_what_its_weights_are_in_float32(tmp_path, dtype):
    model = Joined(lambda net, a: net.m(net.d(a))).to(dtype).eval()
    compile_model(model, tmp_path, samples(), time_steps=4)
    record = simulate(tmp_path / "loihi/program.npz", x=samples(), network=model)
    fired = {layer["layer"]: layer["float_spikes"] for layer in record.details["against_float"]["layers"]}
    spikes, _ = owner_forward(model, samples(), 4)
    assert fired == {name: s.sum() for name, s in spikes.items()}
    assert min(fired.values()) > 0
    assert report(tmp_path, network=model, x=samples()).content["totals"]["training"]["acs"] > 0
    assert next(model.parameters()).dtype == dtype


def test_padding_in_words_is_read_where_it_is_exact():
    kernel = np.random.default_rng(0).normal(size=(2, 2, 3, 3))

    def graph(**options):
        conv = nir.Conv2d(**({"input_shape": (6, 6), "weight": kernel, "stride": 1, "padding": "same", "dilation": 1,
                              "groups": 1, "bias": np.zeros(2)} | options))  # fmt: skip
        nodes = {"input": nir.Input({"input": np.array([2, 6, 6])}), "c": conv}
        nodes["output"] = nir.Output({"output": np.array([2, 6, 6])})
        return with_metadata(nir.NIRGraph(nodes, [("input", "c"), ("c", "output")], type_check=False), 1)

    expected = torch.nn.functional.conv2d(torch.from_numpy(samples()).double(), torch.from_numpy(kernel), padding=1)
    np.testing.assert_allclose(interpret(graph(), samples()).outputs[0], expected.numpy(), atol=1e-12)
    with pytest.raises(SpikeportError, match="c: padding 'same' with kernel .* stride .2, 2. has no exact form"):
        graph(stride=2)


@pytest.mark.parametrize("kernel", [(2, 2), (3, 4), (4, 1), (1, 2)])
@pytest.mark.parametrize("dilation", [1, (1, 2), 3])
def test_an_uneven_same_has_its_odd_zero_behind_as_in_torch(kernel, dilation):
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(4, 1, *kernel)), rng.normal(size=(3, 2, 6, 7))
    node = nir.Conv2d((6, 7), weight, 1, "same", dilation, 2, rng.normal(size=4))
    nodes = {"input": nir.Input({"input": np.array([2, 6, 7])}), "c": node}
    nodes["output"] = nir.Output({"output": np.array([4, 6, 7])})
    graph = with_metadata(nir.NIRGraph(nodes, [("input", "c"), ("c", "output")], type_check=False), 1)
    expected = torch.nn.functional.conv2d(
        *(torch.from_numpy(values) for values in (x, weight, node.bias)), padding="same", dilation=dilation, groups=2
    )
    np.testing.assert_allclose(interpret(graph, x).outputs[0], expected.numpy(), atol=1e-12)
    assert node.padding == "same"


def test_flattening_behind_a_time_axis_says_what_works():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.fire, self.head = neuron.LIFNode(step_mode="m"), layer.Linear(64, 3, step_mode="m")

        def forward(self, x):
            return self.head(self.fire(x).flatten(2))

    with pytest.raises(SpikeportError, match=r"flattens dimensions 2 to -1; .*: layer.Flatten\(\)"):
        trace(adopt(Flat(), 4), (1, 8, 8))


def of_jelly(surrogate_function, detach_reset):
    how = {"v_threshold": 0.3, "surrogate_function": surrogate_function, "detach_reset": detach_reset}
    return nn.Sequential(
        layer.Conv2d(1, 4, 3), neuron.LIFNode(**how), layer.Conv2d(4, 4, 3), neuron.IFNode(**how), layer.Flatten()
    )


def of_leaky(spike_grad):
    how = {"spike_grad": spike_grad, "init_hidden": True, "reset_mechanism": "zero"}
    neurons = [snntorch.Leaky(0.6, threshold=0.3, **how), snntorch.Leaky(0.9, threshold=0.2, **how)]
    return nn.Sequential(nn.Conv2d(1, 4, 3), neurons[0], nn.Conv2d(4, 4, 3), neurons[1], nn.Flatten())


@pytest.mark.parametrize(
    "build",
    [
        *(
            partial(of_jelly, kind(alpha), detached)
            for kind in (surrogate.ATan, surrogate.Sigmoid, surrogate.PiecewiseQuadratic, surrogate.PiecewiseExp)
            for alpha, detached in ((1.0, False), (2.0, True))
        ),
        *(
            partial(of_leaky, grad)
            for grad in (None, snn_surrogate.atan(3.0), snn_surrogate.fast_sigmoid(5), snn_surrogate.sigmoid(4))
        ),
    ],
)
def test_gradients_are_those_of_its_own_framework(build):
    """Surrogate, steepness and whether the reset is detached are taken over, and the parameters are shared."""
    torch.manual_seed(0)
    theirs, x, steps = build(), torch.rand(5, 1, 6, 6), 4
    ours = adopt(theirs, steps)
    share_state(ours, theirs)
    functional.reset_net(theirs)
    for module in theirs.modules():
        if isinstance(module, snntorch.Leaky):
            module.reset_mem()
    weights = list(theirs.parameters())
    assert all(a is b for a, b in zip(weights, ours.parameters(), strict=True))
    expected = torch.autograd.grad(sum(theirs(x) for _ in range(steps)).square().sum() / steps**2, weights)
    found = torch.autograd.grad(ours(x).square().sum(), weights)
    for a, b in zip(found, expected, strict=True):
        assert torch.linalg.norm(a - b) < 1e-5 * torch.linalg.norm(b)
