"""The table: the target's counts land in the row of the layer they come from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import RandomNet
from torch import nn

from spikeport.core import LIF, SpikeportError, TimeMean
from spikeport.core.models import ModelSpec, Twin
from spikeport.core.neurons import HoldTime
from spikeport.export.nir_graph import Metadata, build_nir
from spikeport.export.trace import trace
from spikeport.profiling.comparison import compare, mean_rate
from spikeport.profiling.counting import count_operations
from spikeport.profiling.counts import SERIES
from spikeport.profiling.energy import HOROWITZ, total
from spikeport.profiling.report import _rasters
from spikeport.profiling.rows import TRAINING, totals
from spikeport.targets.loihi.compile import compile
from spikeport.targets.loihi.fixed import simulate_fixed


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    net = RandomNet(["conv", "shortcut", "border", "fire", "skip", "residual"], 6, 8, 3, 5, True).eval()
    x = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    metadata = Metadata(3, input_shape=(2, 8, 8), input_bound=2.0)
    program = compile(build_nir(trace(net, (2, 8, 8)), metadata)[0])
    return count_operations(net, x), program, simulate_fixed(program, x.numpy())


def test_every_event_and_spike_is_in_exactly_one_row(case):
    training, program, record = case
    rows = compare(training, program, {"fixed": record})
    graded = sum(r.graded_events.get("fixed", 0.0) for r in rows)
    events = sum(int(e.sum()) for e in record.events.values()) / record.samples
    spikes = sum(int(s.sum()) for s in record.spikes.values()) / record.samples
    assert totals(rows)["fixed"]["acs"] + graded == pytest.approx(events)
    assert totals(rows)["fixed"]["spikes"] == pytest.approx(spikes)
    assert totals(rows)[TRAINING]["acs"] == pytest.approx(training.total("acs"))
    assert any(r.acs[TRAINING] for r in rows if r.kind == "Skip")
    works = [layer.work() for layer in training.layers.values()]
    assert totals(rows)[TRAINING]["energy_nj"] == pytest.approx(total(HOROWITZ, works))
    assert totals(rows)[TRAINING]["macs"] == pytest.approx(training.total("macs"))


def test_layers_keep_their_order_and_training_is_close_to_the_target(case):
    training, program, record = case
    rows = compare(training, program, {"fixed": record})
    named = [r.layer for r in rows if r.layer]
    assert named == [name for name in training.layers if name in named]
    assert named[0] == "stem.conv"
    first = rows[1]
    assert first.acs["fixed"] == pytest.approx(first.acs[TRAINING], rel=0.2)
    assert mean_rate(program, record) == pytest.approx(training.rate, rel=0.2)


def test_energy_uses_the_same_constants_everywhere(case):
    training, program, record = case
    for row in compare(training, program, {"fixed": record}):
        for witness, acs in row.acs.items():
            assert row.energy_nj[witness] == HOROWITZ.of(acs, row.macs)
            assert row.macs == row.macs_of(witness)


def test_a_record_of_another_program_is_refused(case):
    training, program, record = case
    record = type(record)(**record.__dict__ | {"program": "other"})
    with pytest.raises(SpikeportError, match="fixed record is of another program"):
        compare(training, program, {"fixed": record})


@pytest.mark.parametrize("kind", ["spikes", "events"])
def test_a_record_that_lacks_a_layer_is_refused(case, kind):
    training, program, record = case
    name, *_ = getattr(record, kind)
    record = replace(record, **{kind: {n: v for n, v in getattr(record, kind).items() if n != name}})
    with pytest.raises(SpikeportError, match=f"fixed record is damaged: its {kind} are not the program's"):
        compare(training, program, {"fixed": record})


def test_without_the_model_the_first_layer_is_still_charged(case):
    training, program, record = case
    rows = compare(None, program, {"fixed": record})
    assert [r.macs for r in rows if r.graded_events] == [training.layers["stem.conv"].dense]
    assert all(TRAINING not in r.acs for r in rows)


def test_witnesses_are_compared_on_the_samples_all_of_them_saw(case):
    training, program, record = case
    one = simulate_fixed(program, np.zeros((1, 2, 8, 8)))
    rows = compare(training, program, {"fixed": record, "lava": one})
    expected = sum(int(record.events[s.name][0].sum()) for s in program.synapses if s.pre != "input")
    assert totals(rows)["fixed"]["acs"] == expected
    assert totals(rows)[TRAINING]["acs"] == sum(int(c.acs[0].sum()) for c in training.layers.values() if len(c.acs))


def test_training_may_have_seen_the_fewest_samples(case):
    training, program, record = case
    layers = {
        name: replace(counts, **{series: getattr(counts, series)[:2] for series in SERIES})
        for name, counts in training.layers.items()
    }
    rows = compare(replace(training, samples=2, layers=layers), program, {"fixed": record})
    expected = sum(int(record.events[s.name][:2].sum()) for s in program.synapses if s.pre != "input")
    assert totals(rows)["fixed"]["acs"] == expected / 2
    assert totals(rows)[TRAINING]["acs"] == sum(int(c.acs[:2].sum()) for c in training.layers.values()) / 2


def test_the_mean_rate_leaves_the_neurons_of_a_pool_out():
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), LIF(v_threshold=0.2, time_steps=3, constant_input=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 6, 1), LIF(v_threshold=0.2, time_steps=3), nn.Flatten(), nn.Linear(54, 3), TimeMean(3)),
    ).eval()
    x = torch.randn(2, 2, 6, 6).clamp(-2, 2)
    program = compile(build_nir(trace(net, (2, 6, 6)), Metadata(3, input_shape=(2, 6, 6), input_bound=2.0))[0])
    record = simulate_fixed(program, x.numpy())
    spikes = {p.source: int(record.spikes[p.name].sum()) for p in program.populations if p.spiking}
    assert spikes.keys() == {"1", "2", "4"}
    assert all(spikes.values())
    expected = (spikes["1"] + spikes["4"]) / (2 * 3 * (4 * 36 + 6 * 9))
    assert mean_rate(program, record) == pytest.approx(expected)


def walked(net, x, shape, **metadata):
    """Its counts in training, its program, and the fixed engine's record."""
    graph, _ = build_nir(trace(net, shape), Metadata(3, input_shape=shape, **metadata))
    program = compile(graph, x.numpy())
    return count_operations(net, x), program, simulate_fixed(program, x.numpy())


def test_notes_say_what_is_behind_a_layer():
    neurons = lambda threshold, held=False: LIF(v_threshold=threshold, time_steps=3, constant_input=held)  # noqa: E731

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(2, 4, 3), neurons(0.2, True))
            self.alone, self.both = nn.Sequential(nn.Conv2d(4, 4, 1), neurons(0.1)), nn.Conv2d(4, 4, 1)
            self.quick, self.slow, self.head, self.mean = neurons(0.1), neurons(0.2), nn.Linear(128, 3), TimeMean(3)

        def forward(self, x):
            x = self.both(self.alone(self.stem(x)))
            return self.mean(self.head(torch.cat([self.quick(x), self.slow(x)], 1).flatten(1)))

    torch.manual_seed(0)
    training, program, record = walked(Two().eval(), torch.randn(2, 2, 6, 6).clamp(-2, 2), (2, 6, 6), input_bound=2.0)
    notes = {row.layer: row.note for row in compare(training, program, {"fixed": record})}
    several, last = "drives several layers of neurons: on the chip a synapse for each", "class currents: no neurons"
    assert [name for name, note in notes.items() if several in note] == ["both"]
    assert [name for name, note in notes.items() if last in note] == ["head"]


def test_layers_that_are_one_synapse_on_the_chip_share_a_row_and_none_is_lost():
    """Depthwise and pointwise, with nothing between; and a mean before the classifier."""
    torch.manual_seed(0)
    separable = (nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1))
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), LIF(v_threshold=0.2, time_steps=3, constant_input=True)),
        *(*separable, LIF(v_threshold=0.2, time_steps=3)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3), TimeMean(3)),
    ).eval()
    twin = nn.Sequential(*(nn.ReLU() if isinstance(m, LIF) else m for m in net if not isinstance(m, TimeMean)))
    x = torch.randn(3, 2, 6, 6).clamp(-2, 2)
    training, program, record = walked(net, x, (2, 6, 6), input_bound=2.0)
    cnn = count_operations(twin.eval(), x)
    rows = compare(training, program, {"fixed": record}, cnn)
    assert [(row.layer, row.composed) for row in rows] == [("0", ()), ("2", ("4",)), ("8", ())]
    for quantity in ("acs", "macs"):
        assert training.total(quantity)
        assert totals(rows)[TRAINING][quantity] == pytest.approx(training.total(quantity))
    assert sum(row.cnn_macs for row in rows) == pytest.approx(cnn.total("macs"))
    assert rows[1].macs == training.layers["4"].mean("macs")
    assert rows[1].difference("fixed") is None
    assert not any(row.marked("fixed") for row in rows)
    assert "on the chip in one with 4" in rows[1].note
    lost = replace(program, synapses=tuple(replace(s, composed=()) for s in program.synapses))
    record = replace(record, program=lost.digest())
    with pytest.raises(SpikeportError, match="4: in no synapse of the program"):
        compare(training, lost, {"fixed": record})


class OneSide(nn.Module):
    def forward(self, x):
        return nn.functional.pad(x, (0, 1, 0, 1))


@pytest.mark.parametrize(("middle", "told"), [(OneSide(), True), (nn.ZeroPad2d(1), False)])
def test_zeros_that_the_chip_reads_are_told(middle, told):
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), LIF(v_threshold=0.2, time_steps=3, constant_input=True), middle),
        *(nn.Conv2d(4, 6, 2), LIF(v_threshold=0.2, time_steps=3)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3), TimeMean(3)),
    ).eval()
    x = torch.randn(2, 2, 6, 6).clamp(-2, 2)
    training, program, record = walked(net, x, (2, 6, 6), input_bound=2.0)
    row = next(row for row in compare(training, program, {"fixed": record}) if row.layer == "3")
    assert ("taps of zero" in row.note) == (row.acs["fixed"] > row.acs[TRAINING]) == told


def first_layer(held, x):
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), LIF(v_threshold=0.2, time_steps=3, constant_input=held)),
        *(nn.Flatten(), nn.Linear(144, 3), TimeMean(3)),
    ).eval()
    metadata = {} if held else {"input": "sequence"}
    training, program, record = walked(net, x, (2, 6, 6), **metadata)
    return training.layers["0"], [compare(t, program, {"fixed": record})[0] for t in (training, None)]


@pytest.mark.parametrize("held", [True, False])
def test_spikes_as_input_are_added_and_not_multiplied(held):
    x = (torch.rand(*(() if held else (3,)), 2, 2, 6, 6, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    counted, rows = first_layer(held, x)
    assert counted.mean("acs") > 0
    for row in rows:
        assert row.acs["fixed"] == counted.mean("acs")
        assert row.macs == row.chip_macs == 0
    assert rows[0].acs[TRAINING] == counted.mean("acs")


@pytest.mark.parametrize("held", [True, False])
def test_an_analog_input_is_multiplied_once_or_at_every_step(held):
    x = torch.rand(*(() if held else (3,)), 2, 2, 6, 6, generator=torch.Generator().manual_seed(0)) + 0.5
    counted, rows = first_layer(held, x)
    assert counted.mean("macs") == counted.dense * (1 if held else 3)
    for row in rows:
        assert row.macs == row.chip_macs == counted.mean("macs")
        assert row.acs["fixed"] == 0


def test_spikes_where_training_saw_none_are_marked(case):
    training, program, record = case
    layers = {n: replace(c, acs=c.acs * 0, macs=c.macs * (n == "stem.conv")) for n, c in training.layers.items()}
    rows = compare(replace(training, layers=layers), program, {"fixed": record})
    woken = [row for row in rows if row.acs["fixed"] and row.layer and row.kind != "Skip"]
    assert woken
    for row in woken:
        assert row.difference("fixed") is None
        assert row.marked("fixed")


class PoolPassedOn(nn.Module):
    """A max-pooling whose spikes are also added to a current, and a dilated convolution."""

    def __init__(self):
        super().__init__()
        self.stem, self.a = nn.Conv2d(2, 4, 3, padding=1), LIF(v_threshold=0.2, time_steps=3, constant_input=True)
        self.pool, self.conv, self.b = nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), LIF(v_threshold=0.4, time_steps=3)
        self.dilated, self.c = nn.Conv2d(4, 4, 3, padding=2, dilation=2), LIF(v_threshold=0.1, time_steps=3)
        self.head, self.mean = nn.Linear(36, 3), TimeMean(3)

    def forward(self, x):
        x = self.pool(self.a(self.stem(x)))
        x = self.b(self.conv(x) + x)
        return self.mean(self.head(self.c(self.dilated(x)).flatten(1)))


@pytest.fixture(scope="module")
def passed_on():
    torch.manual_seed(0)
    net, x = PoolPassedOn().eval(), torch.randn(4, 2, 6, 6).clamp(-2, 2)
    program = compile(build_nir(trace(net, (2, 6, 6)), Metadata(3, input_shape=(2, 6, 6), input_bound=2.0))[0])
    rows = compare(count_operations(net, x), program, {"fixed": simulate_fixed(program, x.numpy())})
    return {row.layer: row for row in rows}


def test_spikes_of_a_pool_that_are_passed_on_are_in_its_row_for_every_witness(passed_on):
    row = passed_on["pool"]
    assert row.acs[TRAINING] > row.spikes[TRAINING] > 0
    assert row.difference("fixed") == pytest.approx(0, abs=0.05)


def test_a_dilated_kernel_costs_the_events_of_its_taps(passed_on):
    row = passed_on["dilated"]
    assert row.acs[TRAINING] > 0
    assert row.difference("fixed") == pytest.approx(0, abs=0.05)


class Twice(nn.Module):
    """One convolution, two layers of neurons behind it."""

    def __init__(self):
        super().__init__()
        self.stem, self.first = nn.Conv2d(2, 2, 1), LIF(v_threshold=0.1, time_steps=3, constant_input=True)
        self.conv = nn.Conv2d(2, 4, 3)
        self.a, self.b = LIF(v_threshold=0.1, time_steps=3), LIF(v_threshold=0.2, time_steps=3)
        self.head, self.mean = nn.Linear(128, 3), TimeMean(3)

    def forward(self, x):
        y = self.conv(self.first(self.stem(x)))
        return self.mean(self.head(torch.cat([self.a(y), self.b(y)], 1).flatten(1)))


def test_a_layer_that_drives_two_layers_of_neurons_shows_the_spikes_of_both():
    torch.manual_seed(0)
    net, x = Twice().eval(), torch.rand(3, 2, 6, 6)
    program = compile(build_nir(trace(net, (2, 6, 6)), Metadata(3, input_shape=(2, 6, 6), input_bound=1.0))[0])
    training, record = count_operations(net, x), simulate_fixed(program, x.numpy())
    rows = compare(training, program, {"fixed": record})
    spikes = sum(int(s.sum()) for s in record.spikes.values()) / 3
    assert totals(rows)["fixed"]["spikes"] == pytest.approx(spikes)
    assert totals(rows)[TRAINING]["spikes"] == pytest.approx(training.total("spikes"))
    (row,) = [row for row in rows if row.layer == "conv"]
    assert row.neurons_layer == "a, b"
    assert "a synapse for each" in row.note


@pytest.mark.parametrize(
    ("name", "form"), [("mixnet", "activations"), ("mnasnet", "activations"), ("xception", "every-layer")]
)
def test_neurons_behind_several_branches_are_counted_once(name, form):
    """Residuals and concatenations of the zoo: every spike in one row, and no synapse marked for being another one."""
    torch.manual_seed(0)
    net = ModelSpec(name, Twin("snn", form, 2, v_threshold=0.5), 10, 1, 16, width=0.125).build().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, 0, 2)
    x = torch.randn(2, 1, 16, 16).clamp(-2, 2)
    graph, _ = build_nir(trace(net, (1, 16, 16)), Metadata(2, input_shape=(1, 16, 16), input_bound=2.0))
    program = compile(graph)
    training, record = count_operations(net, x), simulate_fixed(program, x.numpy())
    rows = compare(training, program, {"fixed": record})
    fired = sum(int(s.sum()) for s in record.spikes.values()) / 2
    assert totals(rows)["fixed"]["spikes"] == pytest.approx(fired)
    assert totals(rows)[TRAINING]["spikes"] == pytest.approx(training.total("spikes"))
    assert sum(row.neurons for row in rows if row.spikes) == sum(p.neurons for p in program.populations if p.spiking)
    pooled = [p.name for p in program.populations if p.source in training.layers]
    rate = sum(record.spikes[n].sum() for n in pooled if training.layers[program.population(n).source].kind == "LIF")
    neurons = sum(c.outputs for c in training.layers.values() if c.kind == "LIF")
    assert mean_rate(program, record) == pytest.approx(rate / 2 / 2 / neurons)
    reached = 0.0
    for row in rows:
        assert not row.marked("fixed") or reached > 0.01, row.layer
        reached = max(reached, row.divergence.get("fixed", 0.0))


class BesideTheImage(nn.Module):
    """A layer over spikes and, beside them, the image."""

    def __init__(self):
        super().__init__()
        self.stem, self.first = nn.Conv2d(2, 4, 3, padding=1), LIF(v_threshold=0.2, time_steps=3, constant_input=True)
        self.hold, self.conv, self.next = HoldTime(3), nn.Conv2d(6, 4, 3, padding=1), LIF(v_threshold=0.2, time_steps=3)
        self.head, self.mean = nn.Linear(144, 3), TimeMean(3)

    def forward(self, x):
        y = torch.cat([self.first(self.stem(x)), self.hold(x)], 1)
        return self.mean(self.head(self.next(self.conv(y)).flatten(1)))


@pytest.mark.parametrize(("mode", "times"), [("graded", 3), ("host-current", 1)])
def test_of_a_layer_over_spikes_and_the_image_the_engines_multiply_the_images_part(mode, times):
    torch.manual_seed(0)
    net, x = BesideTheImage().eval(), torch.randn(2, 2, 6, 6).clamp(-2, 2)
    metadata = Metadata(3, input_shape=(2, 6, 6), input_bound=2.0)
    program = compile(build_nir(trace(net, (2, 6, 6)), metadata)[0], input_mode=mode)
    training, record = count_operations(net, x), simulate_fixed(program, x.numpy())
    rows = compare(training, program, {"fixed": record})
    (row,) = [row for row in rows if row.layer == "conv"]
    assert row.macs == 3 * training.layers["conv"].dense
    assert row.chip_macs == times * training.layers["conv"].dense * 2 / 6
    (of_spikes,) = [s for s in program.synapses if s.source == "conv" and s.pre != "input"]
    assert row.acs["fixed"] == record.events[of_spikes.name].sum() / 2 > 0
    assert "takes the input beside spikes" in row.note
    assert not row.marked("fixed")


@pytest.mark.parametrize(
    ("mode", "values"),
    [
        ("graded", [[0, 1], [0, 1]]),
        ("host-current", [[0, 1], [0, 1]]),  # the host multiplies; spikes are additions in every witness
        ("graded", [[0, 1], [0, 1, 2, 3]]),  # one image of spikes, one that is none
        ("graded", [[-1, 1], [-1, 1]]),  # no spikes
    ],
)
def test_the_first_layer_is_charged_alike_whatever_the_input_holds(mode, values):
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), LIF(v_threshold=0.2, time_steps=3, constant_input=True)),
        *(nn.Flatten(), nn.Linear(144, 3), TimeMean(3)),
    ).eval()
    x = torch.stack([torch.tensor(v).float()[torch.randint(len(v), (2, 6, 6))] for v in values])
    program = compile(build_nir(trace(net, (2, 6, 6)), Metadata(3, input_shape=(2, 6, 6)))[0], x.numpy(), mode)
    training, record = count_operations(net, x), simulate_fixed(program, x.numpy())
    row, *_ = compare(training, program, {"fixed": record})
    assert row.acs["fixed"] == pytest.approx(row.acs[TRAINING])
    assert row.energy_nj["fixed"] == pytest.approx(row.energy_nj[TRAINING])
    assert not row.marked("fixed")
    assert ("spikes as input" in row.note) == (mode == "graded" and values == [[0, 1], [0, 1]])


def test_the_drawn_spikes_are_of_every_population_of_a_layer():
    class Side(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 2, 3, padding=1)
            self.act = LIF(v_threshold=0.1, time_steps=3, constant_input=True)
            self.head, self.mean = nn.Linear(180, 3), TimeMean(3)

        def forward(self, x):
            return self.mean(self.head(self.act(torch.cat([self.a(x), self.b(x)], 1)).flatten(1)))

    torch.manual_seed(0)
    x = torch.rand(2, 2, 6, 6)
    graph, _ = build_nir(trace(Side().eval(), (2, 6, 6)), Metadata(3, input_shape=(2, 6, 6), input_bound=1.0))
    program = compile(graph)
    record = simulate_fixed(program, x.numpy(), rasters=2)
    drawn = _rasters(None, program, {"fixed": record}, 1)["act"]
    assert drawn.shape == (3, 180)
    assert drawn.sum() == sum(int(s[1].sum()) for s in record.spikes.values()) > 0
