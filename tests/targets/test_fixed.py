"""The fixed engine against the chip's arithmetic written out neuron by neuron and step by step."""

import re
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import event_programs, programs, single
from torch.nn import functional as F

from spikeport.core import CheckFailed, SpikeportError
from spikeport.targets.loihi import LoihiTarget, arithmetic, fixed
from spikeport.targets.loihi.activity import Activity
from spikeport.targets.loihi.convolution import convolution, exactly
from spikeport.targets.loihi.fixed import simulate_fixed
from spikeport.targets.loihi.program import INPUT, LoihiProgram, Synapse
from spikeport.targets.record import SpikeRecord, differences


def scalar_neuron(currents, du, dv, vth, bias):
    """One neuron over time in Python integers: spikes, last v, wraps, saturations."""
    u = v = wraps = saturations = 0
    spikes = []
    for a in currents:
        p = u * (4096 - (du + 1))
        u = (abs(p) >> 12) * (1 if p > 0 else -1) + (a << 6)
        if u > 1 << 23 or u <= -(1 << 23):
            u += -(1 << 24) if u > 0 else 1 << 24
            wraps += 1
        p = v * (4096 - dv)
        v = (abs(p) >> 12) * (1 if p > 0 else -1) + u + bias
        saturations += abs(v) >= (1 << 23) - 1
        v = max(min(v, (1 << 23) - 1), 1 - (1 << 23))
        spikes.append(v > vth << 6)
        v = 0 if spikes[-1] else v
    return spikes, v, wraps, saturations


@given(
    st.lists(st.integers(-140000, 140000), min_size=1, max_size=8),
    st.integers(0, 4095),
    st.integers(0, 4095),
    st.integers(0, 131072),
    st.integers(-4095 << 7, 4095 << 7),
)
def test_arithmetic_equals_the_scalar_neuron(currents, du, dv, vth, bias):
    u, v = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    spikes, wraps, saturations = [], 0, 0
    for a in currents:
        u, v, w, s = arithmetic.charge(u, v, torch.tensor([a]), du, dv, torch.tensor([bias]))
        fired, v = arithmetic.fire(v, vth)
        spikes.append(bool(fired))
        wraps, saturations = wraps + w, saturations + s
    assert (spikes, int(v), wraps, saturations) == scalar_neuron(currents, du, dv, vth, bias)


def direct_convolution(x, synapse):
    """int64 [O, oH, oW] of x [C, H, W], and the number of weights read, by the definition."""
    weight = synapse.weight.astype(np.int64)
    out, per_group, kh, kw = weight.shape
    (sh, sw), (ph, pw), (dh, dw) = synapse.stride, synapse.padding, synapse.dilation
    height = (x.shape[1] + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    width = (x.shape[2] + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    result, events = np.zeros((out, height, width), np.int64), 0
    for o, c, y, z, i, j in np.ndindex(out, per_group, height, width, kh, kw):
        channel = o // (out // synapse.groups) * per_group + c
        row, column = y * sh + i * dh - ph, z * sw + j * dw - pw
        if 0 <= row < x.shape[1] and 0 <= column < x.shape[2] and x[channel, row, column]:
            result[o, y, z] += weight[o, c, i, j] * x[channel, row, column]
            events += synapse.links is None or weight[o, c].any()
    return result, events


@settings(max_examples=40)
@given(programs() | event_programs())
def test_engine_equals_the_network_written_out(case):
    program, x = case
    q = program.quantise(x)
    record = simulate_fixed(program, x, rasters=len(q))
    for n in range(min(len(q), 2)):
        values = {INPUT: np.broadcast_to(q[n], (program.time_steps, *program.input_shape))}
        for p in program.populations:
            current = np.zeros((program.time_steps, *p.shape), np.int64)
            for s in program.into(p.name):
                for t in range(program.time_steps):
                    part, events = direct_convolution(values[s.pre][t], s)
                    current[t] += part
                    assert record.events[s.name][n, t] == events
            bias = np.broadcast_to(p.bias, p.shape)
            spikes, last = np.zeros(current.shape, bool), np.zeros(p.shape, np.int64)
            for place in np.ndindex(*p.shape):
                registers = [int(r if np.ndim(r) == 0 else r[place[0]]) for r in (p.du, p.dv, p.vth)]
                neuron = scalar_neuron([int(a) for a in current[(slice(None), *place)]], *registers, int(bias[place]))
                spikes[(slice(None), *place)], last[place] = neuron[0], neuron[1]
            values[p.name] = spikes.astype(np.int64)
            if p.spiking:
                np.testing.assert_array_equal(record.rasters[p.name][n], spikes)
                np.testing.assert_array_equal(record.spikes[p.name][n], spikes.sum((1, 2, 3)))
            else:
                np.testing.assert_array_equal(record.output_sums[n], last.ravel())


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("batch", [1, 16, 33])
def test_float32_convolution_of_integers_is_exact(kernel, groups, batch):
    """Exact where batches are large enough for a transforming (inexact) algorithm to be chosen."""
    rng = torch.Generator().manual_seed(kernel)
    x = torch.randint(-127, 128, (batch, 16, 12, 12), generator=rng)
    weight = torch.randint(-127, 128, (32, 16 // groups, kernel, kernel), generator=rng).to(torch.int8)
    synapse = Synapse("s", "", "a", "b", weight.numpy(), padding=(kernel // 2,) * 2, groups=groups)
    assert torch.equal(convolved(x, synapse), in_int64(x, synapse))


def test_exact_under_the_users_autocast():
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (16, 8, 9, 9), generator=rng)
    synapse = Synapse("s", "", "a", "b", torch.randint(-127, 128, (8, 8, 3, 3), generator=rng).to(torch.int8).numpy())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(convolved(x, synapse), in_int64(x, synapse))
        program = programs_example()
        inside = simulate_fixed(program, np.full((2, *program.input_shape), 1.5))
    assert differences(inside, simulate_fixed(program, np.full((2, *program.input_shape), 1.5))) == []


def convolved(x, synapse):
    with exactly():
        return convolution(synapse, x.shape[1:], torch.float32)(x.float()).long()


def in_int64(x, synapse):
    """torch convolves integers slowly, with no algorithm but the definition."""
    weight = torch.from_numpy(synapse.weight).long()
    return F.conv2d(x, weight, None, synapse.stride, synapse.padding, synapse.dilation, synapse.groups)


def test_float64_computes_where_float32_is_not_exact(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(-127, 128, (2, 4, 5, 5), generator=rng)
    synapse = Synapse("s", "", "a", "b", torch.randint(-127, 128, (3, 4, 3, 3), generator=rng).to(torch.int8).numpy())
    monkeypatch.setattr("spikeport.targets.loihi.convolution._float32_is_exact", lambda *_: False)
    ready = convolution(synapse, x.shape[1:], torch.float32)
    assert ready.weight.dtype == torch.float64
    currents = ready(x.float())
    assert currents.dtype == torch.float32
    assert torch.equal(currents.long(), in_int64(x, synapse))


def test_sums_beyond_24_bits_are_exact():
    """1,100 inputs of 127 at weights of 127, less 1: float32 would round the sum to an even number."""
    weight = np.full((1, 1100, 1, 1), 127, np.int8)
    weight[0, 0] = 126
    program = single(weight, (1100, 1, 1), time_steps=1)
    x = np.full((1, *program.input_shape), 127.0) * program.input_scale
    x[0, 0] = program.input_scale
    total = 126 + 1099 * 127 * 127
    assert total % 2
    assert total > 1 << 24
    (synapse,) = fixed._layer(program, program.population("layer")).forward
    with exactly():
        assert int(synapse(torch.from_numpy(program.quantise(x)[0]))) == total


@settings(max_examples=10)
@given(programs())
def test_samples_do_not_meet(case):
    """A sample's spikes do not depend on its neighbours or on where batches are cut."""
    program, x = case
    many = np.concatenate([x] * (33 // len(x) + 1))
    record = simulate_fixed(program, many)
    with patch.object(fixed, "MAX_BATCH", 32):
        assert differences(record, simulate_fixed(program, many)) == []
    alone = simulate_fixed(program, x[:1])
    for name in alone.digests:
        np.testing.assert_array_equal(record.digests[name][0], alone.digests[name][0])
        np.testing.assert_array_equal(record.digests[name][-1], simulate_fixed(program, many[-1:]).digests[name][0])


def test_bad_input_is_named():
    program = programs_example()
    shape = program.input_shape
    for x, message in (
        (np.zeros((0, *shape)), "zero samples"),
        (np.zeros((1, *shape[:-1], shape[-1] + 1)), "input has shape"),
        (np.full((1, *shape), np.nan), "NaN or infinity"),
        (np.full((1, *shape), 1e6), "the graded input ends at"),
    ):
        with pytest.raises(SpikeportError, match=message):
            simulate_fixed(program, x)


def programs_example() -> LoihiProgram:
    return single(np.ones((2, 1, 1, 1), np.int8), (1, 4, 4))


@settings(max_examples=10)
@given(programs())
def test_files_give_back_what_was_saved(tmp_path_factory, case):
    program, x = case
    folder = tmp_path_factory.mktemp("files")
    program.save(folder / "program.npz")
    loaded = LoihiProgram.load(folder / "program.npz")
    assert loaded.digest() == program.digest()
    record = simulate_fixed(loaded, x, rasters=1)
    record.save(folder / "fixed.npz")
    again = SpikeRecord.load(folder / "fixed.npz")
    assert differences(record, again) == []
    assert again.rasters.keys() == record.rasters.keys()


@pytest.mark.parametrize(
    ("kind", "name", "told"),
    [
        ("spikes", "layer", "layer: spikes differ at 1 of 2 .*sample 0, step 1"),
        ("digests", "layer", "layer: digests differ at 1 of 2 .*sample 0, step 1"),  # a moved spike: counts agree
        ("events", "first", "first: events differ at 1 of 2 .*sample 0, step 1"),
        ("output_sums", None, "outputs: integer class sums differ"),
    ],
)
def test_one_value_of_any_kind_is_a_difference(kind, name, told):
    program = programs_example()
    x = np.zeros((1, *program.input_shape))
    record, other = simulate_fixed(program, x), simulate_fixed(program, x)
    values = getattr(other, kind)
    (values[name] if name else values)[0, -1] ^= 1
    assert differences(record, record) == []
    (line,) = differences(record, other)
    assert re.match(told, line)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A program's file and what engines make of it: replace them to have an engine that fails."""
    program = programs_example()
    program.save(tmp_path / "program.npz")
    record = simulate_fixed(program, np.ones((1, *program.input_shape)))

    def engines(fixed, lava):
        monkeypatch.setattr("spikeport.targets.loihi.simulate_fixed", lambda *_, **__: replace(record, **fixed))
        monkeypatch.setattr("spikeport.targets.loihi.lava.simulate_lava", lambda *_, **__: replace(record, **lava))

    def run(engine):
        return LoihiTarget().simulate(tmp_path / "program.npz", np.ones((1, *program.input_shape)), engine=engine)

    return record, engines, run


@pytest.mark.parametrize("engine", ["fixed", "lava"])
@pytest.mark.parametrize(("kind", "told"), [("wraps", "wrapped"), ("saturations", "saturated")])
def test_one_wrap_or_saturation_fails_the_run(saved, engine, kind, told):
    _, engines, run = saved
    counted = {kind: {"layer": 0, "output": 1}, "engine": engine}
    engines({}, {})
    run(engine)
    engines(counted, counted)
    with pytest.raises(CheckFailed, match=f"^output: its state {told} 1 times in engine {engine}"):
        run(engine)


def test_a_record_of_lava_that_differs_from_the_fixed_engines_fails_the_run(saved):
    record, engines, run = saved
    engines({}, {"engine": "lava", "digests": record.digests | {"layer": record.digests["layer"] ^ 1}})
    run("fixed")
    with pytest.raises(CheckFailed, match="^Lava and the fixed engine disagree: layer: digests differ at 2 of 2"):
        run("lava")


@pytest.mark.parametrize("kind", [LoihiProgram, SpikeRecord])
def test_missing_and_damaged_files_are_named(tmp_path, kind):
    with pytest.raises(SpikeportError, match="no such file"):
        kind.load(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(SpikeportError, match=r"bad\.npz: not a"):
        kind.load(tmp_path / "bad.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(SpikeportError, match=r"other\.npz: not a"):
        kind.load(tmp_path / "other.npz")


def test_events_skip_the_padding():
    synapse = Synapse("s", "", "a", "b", np.ones((2, 1, 3, 3), np.int8), padding=(1, 1))
    corner, centre = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    corner[0, 0, 0, 0] = centre[0, 0, 1, 1] = 1
    assert [int(Activity(m).events(synapse)[0]) for m in (corner, centre)] == [4 * 2, 9 * 2]
