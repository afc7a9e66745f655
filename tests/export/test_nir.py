"""The NIR file: what it holds, who reads it, and what happens when it is damaged."""

import json
from dataclasses import replace

import h5py
import nir
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from networks import RandomNet, random_nets
from torch import nn
from torch.nn.utils import parametrizations

from spikeport.core import LIF, CheckFailed, SpikeportError, TimeMean, convert
from spikeport.core.models import ModelSpec, Twin
from spikeport.core.neurons import HoldTime
from spikeport.export import Certificate, readers, to_nir, verify
from spikeport.export.interpreter import interpret
from spikeport.export.nir_graph import Metadata, build_nir, metadata_of, nir_threshold, read_nir, write_nir
from spikeport.export.trace import trace
from spikeport.export.verify import explain_flips
from spikeport.targets import compile, simulate
from spikeport.targets.loihi.compile import compile as compile_graph


@pytest.fixture
def net():
    net = RandomNet(["conv", "fire", "maxpool", "conv"], 6, 8, 3, 5, True).eval()
    for module in net.modules():
        if isinstance(module, LIF):
            module.tau = max(module.tau, 1.5)  # SpikingJelly reads no tau of 1
    return net


@pytest.fixture
def x():
    return torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0)).numpy()


def test_certificate_names_every_reader_and_each_agrees(tmp_path, net, x):
    certificate = to_nir(net, tmp_path / "m.nir", x)
    assert [w.status for w in certificate.witnesses] == ["agrees"] * 3
    assert [w.reader.split()[0] for w in certificate.witnesses] == ["the", "spikingjelly", "snntorch"]
    assert certificate.spikes_compared > 0
    saved = json.loads((tmp_path / "certificate.json").read_text())
    assert saved["passed"] is True
    assert saved["samples"] == 4


def test_the_certificate_names_the_layers_that_never_fired(tmp_path, net, x):
    net.stages[0].a.bn.bias.data -= 1e3
    to_nir(net, tmp_path / "m.nir", x)
    found = Certificate.load(tmp_path / "m.nir")
    assert "stages.0.a.lif" in found.silent
    assert "stem.lif" not in found.silent
    saved = json.loads((tmp_path / "certificate.json").read_text())
    del saved["silent"]  # as versions before wrote it
    (tmp_path / "certificate.json").write_text(json.dumps(saved))
    assert Certificate.load(tmp_path / "m.nir").silent == ()


def test_files_beside_those_of_another_network_are_refused_by_name(tmp_path, net, x):
    to_nir(net, tmp_path / "a.nir", x)
    compile(tmp_path / "a.nir", tmp_path / "a.npz", calibration=x)
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone/model.net").write_bytes(b"of another program")
    kept = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    for export, file in (
        (lambda **options: to_nir(net, tmp_path / "b.nir", x, **options), "certificate.json"),
        (lambda **options: compile(tmp_path / "a.nir", tmp_path / "b.npz", None, x, **options), "compatibility.json"),
        (lambda **options: compile(tmp_path / "a.nir", tmp_path / "alone/b.npz", None, x, **options), "model.net"),
    ):
        with pytest.raises(SpikeportError, match=f"{file} already exists; it is of another export there: name another"):
            export()
        assert {file: file.read_bytes() for file in tmp_path.rglob("*.*")} == kept
    for path in ("b.npz", "alone/b.npz"):
        compile(tmp_path / "a.nir", tmp_path / path, None, x, overwrite=True)
    assert not (tmp_path / "alone/model.net").exists()
    to_nir(net, tmp_path / "b.nir", x, overwrite=True)
    assert Certificate.load(tmp_path / "b.nir").passed


def test_whether_the_input_is_held_follows_from_the_layers_that_are_called(tmp_path, x):
    layers = nn.Conv2d(2, 2, 3), LIF(v_threshold=0.1), nn.Flatten(), nn.Linear(72, 2), TimeMean(4)
    assert to_nir(nn.Sequential(HoldTime(4), *layers), tmp_path / "held/m.nir", x).passed
    assert metadata_of(read_nir(tmp_path / "held/m.nir")).input == "constant"
    layers[1].unused = LIF(constant_input=True)
    assert to_nir(nn.Sequential(*layers), tmp_path / "changes/m.nir", np.stack([x] * 4)).passed
    assert metadata_of(read_nir(tmp_path / "changes/m.nir")).input == "sequence"


@settings(max_examples=15)
@given(random_nets())
def test_spikingjelly_reads_random_networks_spike_for_spike(tmp_path_factory, case):
    net, x = case
    file = tmp_path_factory.mktemp("nir") / "m.nir"
    traced = trace(net, tuple(x.shape[1:]))
    graph, _ = build_nir(traced, Metadata(traced.time_steps, input_shape=tuple(x.shape[1:])))
    write_nir(graph, file)
    try:
        reading = readers.read_spikingjelly(file, x.numpy())
    except readers.CannotRead as reason:
        assert "Grouped" in str(reason) or "tau" in str(reason)  # noqa: PT017 - what it refuses, by name
        return
    reference = interpret(graph, x.numpy())
    for name, spikes in reference.spikes.items():
        np.testing.assert_array_equal(spikes, reading.spikes[name])


def test_graph_is_canonical(net):
    graph, _ = build_nir(trace(net, (2, 8, 8)), Metadata(3, input_shape=(2, 8, 8)))
    kinds = {type(n) for n in graph.nodes.values()}
    assert kinds <= {nir.Input, nir.Output, nir.Conv2d, nir.LIF, nir.AvgPool2d, nir.Flatten, nir.Affine}
    for node in graph.nodes.values():
        if isinstance(node, nir.LIF):
            for name in ("tau", "r", "v_leak", "v_threshold", "v_reset"):
                assert getattr(node, name).dtype == np.float64
                assert getattr(node, name).ndim == 3


def test_metadata_survives_the_file(tmp_path, net, x):
    to_nir(net, tmp_path / "m.nir", x)
    metadata = metadata_of(read_nir(tmp_path / "m.nir"))
    assert (metadata.time_steps, metadata.dt, metadata.input_shape) == (3, 1e-4, (2, 8, 8))
    assert "stem.lif" in metadata.layers.values()


def test_the_metadata_given_stays_as_it_is(net):
    given = Metadata(3, input_shape=(2, 8, 8))
    graph, _ = build_nir(trace(net, (2, 8, 8)), given)
    assert given.layers == {}
    assert metadata_of(graph).layers


@pytest.mark.parametrize("v_threshold", [1.0, 0.5, 1.3, 1e-3])
def test_threshold_turns_at_least_into_above(v_threshold):
    """A float32 membrane is at or above the model's threshold just where it is above the file's."""
    exported = nir_threshold(v_threshold)
    at = np.float32(v_threshold)
    around = [np.nextafter(at, np.float32(-9)), at, np.nextafter(at, np.float32(9))]
    assert [bool(h >= at) for h in around] == [bool(h > np.float32(exported)) for h in around]


def test_ties_do_not_flip():
    """Weights on a grid make membranes land on the threshold itself, where ">" and ">=" part."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(1, 8, 1), LIF(time_steps=4, constant_input=True)
            self.head, self.end = nn.Conv2d(8, 2, 1), TimeMean(4)

        def forward(self, x):
            return self.end(self.head(self.act(self.conv(x))).mean((2, 3)))

    net = Net().eval()
    net.conv.weight.data = torch.arange(1, 9).view(8, 1, 1, 1) / 8
    net.conv.bias.data.zero_()
    x = torch.arange(16).view(1, 1, 4, 4).float()
    graph, _ = build_nir(trace(net, (1, 4, 4)), Metadata(4, input_shape=(1, 4, 4)))
    found = interpret(graph, x.numpy(), margins=True)
    expected = net.act(net.conv(x)).unflatten(0, (4, -1)).bool().numpy()
    np.testing.assert_array_equal(found.spikes["act"], expected)
    assert (np.abs(found.margins["act"]) < 1e-6).any(), "no membrane met the threshold, so nothing was tested"


def test_a_membrane_between_the_two_thresholds_fires_as_in_the_model():
    """In float64 a membrane can lie above the file's threshold and below the model's."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.head, self.end = (
                LIF(tau=1.0, time_steps=1, constant_input=True),
                nn.Linear(3, 2),
                TimeMean(1),
            )

        def forward(self, x):
            return self.end(self.head(self.act(x)))

    graph, _ = build_nir(trace(Net().eval(), (3,)), Metadata(1, input_shape=(3,)))
    x = np.array([[1.0, 1 - 3e-8, 1 - 2e-7]])  # at it, between the two, below both
    assert interpret(graph, x).spikes["act"].tolist() == [[[True, True, False]]]
    assert interpret(graph, x, as_model=True).spikes["act"].tolist() == [[[True, False, False]]]


def test_a_graph_that_differs_is_an_error_and_leaves_nothing(tmp_path, net, x, monkeypatch):
    monkeypatch.setattr("spikeport.export.nir_graph.nir_threshold", lambda v: v * 1.2)
    with pytest.raises(CheckFailed, match="differs from the model in .* spikes .first at stem.lif"):
        to_nir(net, tmp_path / "m.nir", x)
    assert list(tmp_path.iterdir()) == []


def test_flips_at_the_threshold_are_ties_and_others_are_not(net, x):
    graph, _ = build_nir(trace(net, (2, 8, 8)), Metadata(3, input_shape=(2, 8, 8)))
    reference = interpret(graph, x, margins=True)
    spikes = {name: s.copy() for name, s in reference.spikes.items()}
    first = next(iter(spikes))
    spikes[first][1, 2, 0, 0, 0] ^= True
    ties, unexplained = explain_flips(graph, reference, spikes)
    assert (len(ties), unexplained) == (0, 1)
    reference.margins[first][1, 2, 0, 0, 0] = 1e-9
    ties, unexplained = explain_flips(graph, reference, spikes)
    assert (len(ties), unexplained) == (1, 0)
    later = [name for name in spikes if name != first][-1]
    spikes[later][2, 2, 0] ^= True  # downstream, same sample, later: follows from the tie
    assert explain_flips(graph, reference, spikes)[1] == 0
    spikes[later][2, 3, 0, 0, 0] ^= True  # another sample: does not
    assert explain_flips(graph, reference, spikes)[1] == 1


@pytest.mark.parametrize("threshold", [1.0, 1e-6, 1e-30])
def test_wrong_spikes_are_no_ties_however_small_the_membranes(tmp_path, threshold, monkeypatch):
    torch.manual_seed(0)
    neurons = LIF(v_threshold=threshold, time_steps=3, constant_input=True)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), neurons, nn.Flatten(), nn.Linear(64, 3), TimeMean(3)).eval()
    with torch.no_grad():
        for parameter in net[0].parameters():
            parameter *= 3 * threshold
    x = torch.randn(4, 1, 6, 6).numpy()
    to_nir(net, tmp_path / "m.nir", x)
    read = readers.read_snntorch

    def changed(path, samples):
        reading = read(path, samples)
        return readers.Reading(
            {name: s ^ (np.arange(s.size).reshape(s.shape) % 3 == 0) for name, s in reading.spikes.items()},
            reading.outputs,
        )

    monkeypatch.setattr(readers, "read_snntorch", changed)
    with pytest.raises(CheckFailed, match="flips away from any tie"):
        to_nir(net, tmp_path / "m.nir", x, overwrite=True)


@pytest.mark.parametrize("change", [lambda y: y * 1.001, lambda y: y[..., ::-1], lambda y: y * np.nan])
@pytest.mark.parametrize("package", ["spikingjelly", "snntorch"])
def test_a_reader_with_equal_spikes_and_other_class_currents_differs(tmp_path, net, x, monkeypatch, package, change):
    read = getattr(readers, f"read_{package}")

    def changed(path, samples):
        reading = read(path, samples)
        return readers.Reading(reading.spikes, change(reading.outputs))

    monkeypatch.setattr(readers, f"read_{package}", changed)
    with pytest.raises(CheckFailed, match=rf"{package} .* differs from the model: class currents differ by"):
        to_nir(net, tmp_path / "m.nir", x)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tie", [verify.STEP, verify.TIE])
def test_class_currents_may_differ_only_in_a_sample_with_a_flip(net, x, tie):
    graph, _ = build_nir(trace(net, (2, 8, 8)), Metadata(3, input_shape=(2, 8, 8)))
    reference = interpret(graph, x, margins=True)
    spikes = {name: s.copy() for name, s in reference.spikes.items()}
    first = next(iter(spikes))
    spikes[first][1, 2, 0, 0, 0] ^= True
    reference.margins[first][1, 2, 0, 0, 0] = 1e-9
    outputs = reference.outputs.copy()
    outputs[1:, 2] += 0.3
    found = verify._against_reference("reader", graph, reference, readers.Reading(spikes, outputs), tie)
    assert (found.status, found.note, len(found.ties)) == ("agrees up to ties", "", 1)
    assert found.output_error == pytest.approx(0.3)
    outputs[1, 3] += 0.01
    found = verify._against_reference("reader", graph, reference, readers.Reading(spikes, outputs), tie)
    assert found.status == "differs"
    assert found.note.startswith("class currents differ by 0.01 where no spike does, at most")


@pytest.mark.parametrize(("distance", "tied"), [(0.9e-5, True), (-0.9e-5, True), (1.1e-5, False), (-1.1e-5, False)])
def test_a_tie_is_within_1e_5_of_the_threshold(net, x, distance, tied):
    graph, _ = build_nir(trace(net, (2, 8, 8)), Metadata(3, input_shape=(2, 8, 8)))
    reference = interpret(graph, x, margins=True)
    spikes = {name: s.copy() for name, s in reference.spikes.items()}
    spikes["stem_lif"][1, 2, 0, 0, 0] ^= True
    reference.margins["stem_lif"][1, 2, 0, 0, 0] = distance
    ties, unexplained = explain_flips(graph, reference, spikes)
    assert (len(ties), unexplained) == (int(tied), int(not tied))


@pytest.mark.parametrize(("error", "passes"), [(0.9e-9, True), (1.1e-9, False)])
def test_class_currents_agree_within_1e_9(tmp_path, net, x, monkeypatch, error, passes):
    def off(*args, **kwargs):
        found = interpret(*args, **kwargs)
        return replace(found, outputs=found.outputs + error)

    monkeypatch.setattr("spikeport.export.verify.interpret", off)
    if passes:
        assert to_nir(net, tmp_path / "m.nir", x).passed
        return
    with pytest.raises(CheckFailed, match=r"differs from the model: class currents differ by 1\.1e-09"):
        to_nir(net, tmp_path / "m.nir", x)


def test_squeezenet_goes_through_with_all_eight_fires(tmp_path):
    model = ModelSpec("squeezenet", Twin(), width=0.125).build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 0.5)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).numpy()
    certificate = to_nir(model, tmp_path / "m.nir", x)
    assert [w.differing_spikes for w in certificate.witnesses] == [0, 0, 0]
    assert all(count == 0 for count in certificate.witnesses[0].layers.values())


class Events(nn.Module):
    """A network whose input is spikes, another map at every step."""

    def __init__(self):
        super().__init__()
        self.conv, self.fire = nn.Conv2d(2, 6, 3, padding=1), LIF(time_steps=5)
        self.pool, self.head, self.end = nn.MaxPool2d(2), nn.Linear(6 * 16, 3), TimeMean(5)

    def forward(self, x):
        return self.end(self.head(self.pool(self.fire(self.conv(x))).flatten(1)))


def test_event_tensors_go_all_the_way(tmp_path):
    torch.manual_seed(0)
    model = Events().eval()
    model.conv.weight.data *= 4
    events = (np.random.default_rng(0).random((5, 3, 2, 8, 8)) < 0.3).astype(np.float32)
    certificate = to_nir(model, tmp_path / "m.nir", events)
    assert [w.status for w in certificate.witnesses] == ["agrees"] * 3
    assert certificate.samples == 3
    program = compile(tmp_path / "m.nir", tmp_path / "program.npz", calibration=events)
    assert (program.held, program.input_scale, program.input_max) == (False, 1.0, 1)
    record = simulate(tmp_path / "program.npz", x=events)
    reference = interpret(read_nir(tmp_path / "m.nir"), events)
    assert reference.spikes["fire"].mean() > 0
    assert record.spikes["fire"].sum() == pytest.approx(reference.spikes["fire"].sum(), rel=0.1)
    with pytest.raises(SpikeportError, match="the input has 4 steps, the program runs 5"):
        simulate(tmp_path / "program.npz", x=events[:4], overwrite=True)


def test_missing_truncated_and_foreign_files_are_named(tmp_path, net, x):
    with pytest.raises(SpikeportError, match="no such file"):
        read_nir(tmp_path / "m.nir")
    to_nir(net, tmp_path / "m.nir", x)
    data = (tmp_path / "m.nir").read_bytes()
    (tmp_path / "cut.nir").write_bytes(data[: len(data) // 2])
    with pytest.raises(SpikeportError, match="damaged, truncated or not a NIR file"):
        read_nir(tmp_path / "cut.nir")
    (tmp_path / "text.nir").write_text("hello")
    with pytest.raises(SpikeportError, match="not a NIR file"):
        read_nir(tmp_path / "text.nir")
    with h5py.File(tmp_path / "m.nir", "r+") as file:
        del file["node/metadata/spikeport"]
        file["node/metadata/spikeport"] = "{"
    with pytest.raises(SpikeportError, match="metadata is damaged"):
        metadata_of(read_nir(tmp_path / "m.nir"))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("time_steps", ["4", 2.5, None, 0, -1, True, 300_000_000]),
        ("dt", ["x", None, 0, -1e-4, float("inf"), 10**400]),
        ("input_shape", [16, None, ["2"], [2.5]]),
        ("layers", [[], None, {"stem_conv": 5}]),
        ("input_bound", ["1", -1, 0, True, float("nan")]),
        ("input", ["foo", None]),
        ("spike_condition", ["=>"]),
        ("mean", [0.5]),
        ("class_names", [[1]]),
    ],
)
def test_metadata_that_no_reader_can_use_is_named(net, x, field, values):
    graph, _ = build_nir(trace(net, (2, 8, 8)), Metadata(3, input_shape=(2, 8, 8), input_bound=4.0))
    legal = json.loads(graph.metadata["spikeport"])
    for value in values:
        graph.metadata["spikeport"] = json.dumps(legal | {field: value})
        for run in (interpret, compile_graph):
            with pytest.raises(SpikeportError, match=rf"damaged \(({field} is |int too large).*export it again"):
                run(graph, x)


def test_dangling_edges_and_cycles_are_refused(net, x):
    graph, _ = build_nir(trace(net, (2, 8, 8)), Metadata(3, input_shape=(2, 8, 8)))
    graph.edges.append(("stem_lif", "nowhere"))
    with pytest.raises(SpikeportError, match="edge stem_lif -> nowhere to a node it does not hold"):
        interpret(graph, x)
    graph.edges[-1] = ("output", "stem_conv")
    with pytest.raises(SpikeportError, match="has a cycle, "):
        interpret(graph, x)


def test_samples_must_be_there_finite_and_of_the_right_shape(tmp_path, net, x):
    with pytest.raises(SpikeportError, match="zero samples"):
        to_nir(net, tmp_path / "m.nir", x[:0])
    with pytest.raises(SpikeportError, match="NaN"):
        to_nir(net, tmp_path / "m.nir", x * np.nan)
    graph, _ = build_nir(trace(net, (2, 8, 8)), Metadata(3, input_shape=(2, 8, 8)))
    with pytest.raises(SpikeportError, match=r"samples have shape \(2, 8, 7\)"):
        interpret(graph, x[..., :7])


def chain(*layers, **options):
    return convert(nn.Sequential(*layers), time_steps=3, v_threshold=0.1, **options)


@pytest.mark.parametrize(("kernel", "padding"), [((2, 3), 0), ((1, 3), (0, 1)), ((3, 2), (1, 0))])
def test_kernels_that_are_not_square(tmp_path, x, kernel, padding):
    model = chain(
        nn.Conv2d(2, 3, kernel, 1, padding), nn.ReLU(), nn.Conv2d(3, 2, kernel), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    certificate = to_nir(model, tmp_path / "m.nir", x)
    assert [w.status for w in certificate.witnesses] == ["agrees"] * 3
    assert model.training, "the user's model stays as it is"


def test_a_residual_of_currents(tmp_path, x):
    """What joins a neuron came past other neurons and past none."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.relu = nn.Conv2d(2, 2, 3, 1, 1), nn.Conv2d(2, 2, 3, 1, 1), nn.ReLU()
            self.head = nn.Linear(128, 2)

        def forward(self, x):
            x = self.a(x)
            return self.head(self.relu(self.b(self.relu(x)) + x).flatten(1))

    certificate = to_nir(convert(Block(), v_threshold=0.1), tmp_path / "m.nir", x)
    assert certificate.passed
    assert certificate.witnesses[2].status.startswith("agrees")


class Heads(nn.Module):
    """What the neurons send, through several layers into one output."""

    def __init__(self, join):
        super().__init__()
        self.join, self.conv, self.first = join, nn.Conv2d(2, 2, 3), LIF(v_threshold=0.1, constant_input=True)
        self.deep, self.second = nn.Conv2d(2, 2, 1), LIF(v_threshold=0.1)
        self.a, self.b, self.both, self.end = nn.Linear(72, 3), nn.Linear(72, 3), nn.Linear(144, 3), TimeMean(4)

    def forward(self, x):
        y = self.first(self.conv(x))
        return self.end(self.join(self, y, self.second(self.deep(y))))


@pytest.mark.parametrize(
    "join",
    [
        lambda net, y, z: net.a(y.flatten(1)) + net.b(z.flatten(1)),
        lambda net, y, z: net.both(torch.cat([y, z], 1).flatten(1)),
        lambda net, y, z: net.both(torch.cat([y.flatten(1), z.flatten(1)], 1)),
        lambda net, y, z: (y + z).flatten(1),
        lambda net, y, z: sum([y, z]).flatten(1),
    ],
    ids=["two classifiers", "one over two maps", "one over two vectors", "spikes", "spikes, by Python's sum"],
)
def test_every_reader_sums_what_enters_the_output(tmp_path, x, join):
    certificate = to_nir(Heads(join), tmp_path / "m.nir", x)
    assert [w.status for w in certificate.witnesses] == ["agrees"] * 3
    assert sum(target == "output" for _, target in read_nir(tmp_path / "m.nir").edges) == 1
    compile(tmp_path / "m.nir", tmp_path / "p.npz", calibration=x)
    found = simulate(tmp_path / "p.npz", x=x).outputs
    expected = interpret(read_nir(tmp_path / "m.nir"), x).prediction
    assert np.abs(found - expected).mean() < 0.1  # 8 bits


@pytest.mark.parametrize(
    ("join", "message"),
    [
        (lambda net, y, z: net.a(y.flatten(1)), "second: the output does not depend on all of its spikes"),
        (lambda net, y, z: net.both(torch.cat([y, net.first(y)], 1).flatten(1)), "first: takes a constant current and"),
    ],
    ids=["unused", "constant"],
)
def test_neurons_that_are_not_used_or_wrongly_are_named(tmp_path, x, join, message):
    with pytest.raises(SpikeportError, match=message):
        to_nir(Heads(join), tmp_path / "m.nir", x)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_fails_itself_is_named(tmp_path, x):
    class Mixed(nn.Module):
        """One current is held, the other runs for one step only."""

        def __init__(self):
            super().__init__()
            self.conv, self.end = nn.Conv2d(2, 2, 3), TimeMean(4)
            self.held, self.once, self.head = LIF(constant_input=True), LIF(), nn.Linear(72, 3)

        def forward(self, x):
            x = self.conv(x)
            return self.end(self.head((self.held(x) + self.once(x)).flatten(1)))

    with pytest.raises(SpikeportError, match="Mixed fails on the samples: The size of tensor a"):
        to_nir(Mixed(), tmp_path / "m.nir", x)
    assert list(tmp_path.iterdir()) == []


def test_float64_models_tensors_lists_and_names_with_a_slash(tmp_path, x):
    model = nn.Sequential()
    for name, module in (("a/b", nn.Conv2d(2, 2, 3)), ("r", nn.ReLU()), ("f", nn.Flatten()), ("c", nn.Linear(72, 2))):
        model.add_module(name, module)
    twin = convert(model, v_threshold=0.1).double()
    assert to_nir(twin, tmp_path / "1/m.nir", torch.from_numpy(x).requires_grad_()).passed
    assert to_nir(twin, tmp_path / "2/m.nir", x.tolist()).passed
    compile(tmp_path / "2/m.nir", tmp_path / "p.npz", calibration=torch.from_numpy(x))
    assert simulate(tmp_path / "p.npz", x=x.tolist()).samples == 4


def two_heads():
    return Heads(lambda net, y, z: net.a(y.flatten(1)) + net.b(z.flatten(1)))


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_what_is_wrapped_around_a_model_comes_off(tmp_path, x, wrap):
    assert to_nir(wrap(two_heads()), tmp_path / "m.nir", x).passed


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_weights_that_are_computed_become_the_values_they_have(tmp_path, x, norm):
    model = two_heads().eval()
    norm(model.a)
    expected = model(torch.from_numpy(x)).detach()
    assert to_nir(model, tmp_path / "m.nir", x).passed
    np.testing.assert_allclose(interpret(read_nir(tmp_path / "m.nir"), x).prediction, expected, atol=1e-6)
    assert model.a.parametrizations, "the user's model stays as it is"


def test_what_cannot_be_copied_or_read_is_named(tmp_path, x):
    held = two_heads()
    held.state = torch.ones(1, requires_grad=True) * 2
    for message, model in (
        ("TorchScript, which has no layers to read", torch.jit.trace(two_heads(), torch.from_numpy(x))),
        ("holds what an earlier step computed; reset it first", held),
    ):
        with pytest.raises(SpikeportError, match=message):
            to_nir(model, tmp_path / "m.nir", x)


def test_what_cannot_be_written_exactly_is_named(tmp_path, x):
    head = (nn.ReLU(), nn.Flatten(), nn.Linear(72, 2))
    meta = chain(nn.Conv2d(2, 2, 3), *head).to("meta")
    drop = chain(nn.Conv2d(2, 2, 3), *head[:2], Call(lambda y: nn.functional.dropout(y)), head[2])
    mean = chain(nn.Conv2d(2, 2, 3), nn.ReLU(), Call(lambda y: y.mean(1)), nn.Flatten(), nn.Linear(36, 2))
    stepwise = nn.Sequential(nn.Conv2d(2, 2, 3), LIF(), nn.Flatten(), nn.Linear(72, 2), TimeMean(4)).eval()
    for message, model, options in (
        ("has no values yet", meta, {}),
        ("end the model with flatten", chain(nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 6)), {}),
        ("drops at random in evaluation", drop, {}),
        (r"averages over dimensions 1; only mean\(\(2, 3\)\) has an exact form", mean, {}),
        ("time_steps is 8, the model has 3 of its own", chain(nn.Conv2d(2, 2, 3), *head), {"time_steps": 8}),
        (r"samples of shape \(4, 2, 8, 8\); a network whose input changes takes \[T, N, C, H, W\]", stepwise, {}),
        ("an array of object", chain(nn.Conv2d(2, 2, 3), *head), {"samples": np.array([None])}),
    ):
        with pytest.raises(SpikeportError, match=message):
            to_nir(model, tmp_path / "m.nir", **({"samples": x} | options))
    with pytest.raises(SpikeportError, match="returns more than one tensor"):
        chain(nn.Conv2d(2, 2, 3), nn.ReLU(), Call(lambda y: (y, y + y)))
    assert list(tmp_path.iterdir()) == []


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_every_reader_takes_shortcuts_and_borders(tmp_path, x):
    net = RandomNet(["shortcut", "border", "skip"], 6, 8, 3, 5, True).eval()
    certificate = to_nir(net, tmp_path / "m.nir", x)
    assert certificate.passed
    assert len(certificate.witnesses) > 1
