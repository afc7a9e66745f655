"""The table: the target's counts land in the row of the layer they come from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import RandomNet
from torch import nn

from spikeport.core import LIF, SpikeportError, TimeMean
from spikeport.export.nir_graph import Metadata, build_nir
from spikeport.export.trace import trace
from spikeport.profiling.comparison import TRAINING, compare, mean_rate, totals
from spikeport.profiling.counting import count_operations
from spikeport.profiling.energy import horowitz
from spikeport.targets.loihi.compile import compile
from spikeport.targets.loihi.fixed import simulate_fixed


@pytest.fixture(scope="module")
def case():
    net = RandomNet(["conv", "fire", "skip", "residual"], 6, 8, 3, 5, True).eval()
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
    skips = sum(r.acs[TRAINING] for r in rows if r.kind == "Skip")
    assert totals(rows)[TRAINING]["acs"] - skips == pytest.approx(training.total("acs"))
    assert totals(rows)[TRAINING]["macs"] == pytest.approx(training.total("macs"))


def test_layers_keep_their_order_and_training_is_close_to_the_target(case):
    training, program, record = case
    rows = compare(training, program, {"fixed": record})
    named = [r.layer for r in rows if r.layer]
    assert named == [name for name in training.layers if name in named]
    assert named[0] == "stem.conv"
    first = rows[1]
    assert first.acs["fixed"] == pytest.approx(first.acs[TRAINING], rel=0.2)
    assert mean_rate(rows, "fixed", 3) == pytest.approx(training.rate, rel=0.2)


def test_energy_uses_the_same_constants_everywhere(case):
    training, program, record = case
    for row in compare(training, program, {"fixed": record}):
        for witness, acs in row.acs.items():
            assert row.energy_nj[witness] == horowitz(acs, row.macs)


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
    _, program, record = case
    rows = compare(None, program, {"fixed": record})
    analog = [r for r in rows if r.graded_events]
    assert np.allclose([r.macs for r in analog], [r.graded_events["fixed"] / 3 for r in analog])
    assert all(TRAINING not in r.acs for r in rows)


def test_witnesses_are_compared_on_the_samples_all_of_them_saw(case):
    training, program, record = case
    one = simulate_fixed(program, np.zeros((1, 2, 8, 8)))
    rows = compare(training, program, {"fixed": record, "lava": one})
    expected = sum(int(record.events[s.name][0].sum()) for s in program.synapses if s.pre != "input")
    assert totals(rows)["fixed"]["acs"] == expected
    expected = sum(int(c.acs[0].sum()) for c in training.layers.values() if c.kind != "LIF" and len(c.acs))
    skips = sum(r.acs[TRAINING] for r in rows if r.kind == "Skip")
    assert totals(rows)[TRAINING]["acs"] - skips == expected


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
    rows = compare(count_operations(net, x), program, {"fixed": record})
    assert mean_rate(rows, "fixed", 3) == pytest.approx((spikes["1"] + spikes["4"]) / (2 * 3 * (4 * 36 + 6 * 9)))
