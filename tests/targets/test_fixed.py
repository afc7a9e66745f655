"""The fixed engine against the chip's arithmetic written out neuron by neuron and step by step."""

import json
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
        (np.full((1, *shape), 1e19), r"input reaches 1e\+19, the graded input ends at"),
        (np.full((1, *shape), -1e300), "the graded input ends at"),
        (np.full((1, *shape), 3e38, np.float32), "the graded input ends at"),
    ):
        with pytest.raises(SpikeportError, match=message):
            simulate_fixed(program, x)


def test_a_program_of_whole_numbers_takes_no_fractions():
    program = replace(programs_example(), input_scale=1.0, input_max=1)
    x = np.zeros((1, *program.input_shape))
    x[0, 0, 0, :2] = 1, 0.6
    with pytest.raises(SpikeportError, match="input holds 0.6, the program takes whole numbers from -1 to 1"):
        simulate_fixed(program, x)
    assert simulate_fixed(program, np.rint(x)).samples == 1
    assert simulate_fixed(replace(program, input_max=127), x).samples == 1  # one of 127 steps: 8 bits, as always


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


def test_a_file_has_the_name_it_was_given(tmp_path):
    program = programs_example()
    program.save(tmp_path / "program")
    simulate_fixed(program, np.zeros((1, 1, 4, 4))).save(tmp_path / "record.of.mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["program", "record.of.mine"]
    assert LoihiProgram.load(tmp_path / "program").digest() == program.digest()
    assert SpikeRecord.load(tmp_path / "record.of.mine").samples == 1


def refusal(path, kind, change):
    """The message about a file whose header and arrays were changed; its cause alone."""
    with np.load(path) as archive:
        arrays = dict(archive)
    header = json.loads(str(arrays.pop("header")))
    change(header, arrays)
    np.savez(path, header=np.array(json.dumps(header)), **arrays)
    with pytest.raises(SpikeportError, match=re.escape(f"{path}: not a ")) as caught:
        kind.load(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("where", "field", "value", "message"),
    [
        (None, "time_steps", "4", "program: time_steps is '4'; expected a whole number"),
        (None, "time_steps", 0, "time_steps is 0; expected 1 to 65536"),
        (None, "input_scale", 0, "input_scale is 0; expected more than 0"),
        (None, "input_max", 128, "input_max is 128"),
        (None, "input_mode", "dvs", "input_mode is dvs; expected graded, host-current"),
        (None, "input_shape", [1, 0, 4], "input_shape is [1, 0, 4]; expected channels, height and width"),
        (None, "input_shape", [1, 4, 5], "first: its map is [4, 5]; expected [4, 4], that of layer"),
        (None, "output", "layer", "output is layer; expected a population that does not spike"),
        (None, "metadata", [], "metadata is ()"),
        ("populations", "name", "input", "input: name is input; expected one of its own"),
        ("populations", "dv", "x", "layer: dv is 'x'"),
        ("populations", "dv", 4096, "layer: dv is 4096; expected 0 to 4095"),
        ("populations", "bias_exp", 100, "layer: bias_exp is 100; expected 0 to 7"),
        ("populations", "scale", None, "layer: scale is None"),
        ("populations", "scale", -1.0, "layer: scale is -1.0; expected more than 0"),
        ("populations", "depth", 0, "layer: depth is 0"),
        ("populations", "shape", [2, 4], "layer: shape is [2, 4]"),
        ("populations", "colour", 1, "unexpected keyword argument 'colour'"),
        ("synapses", "pre", "layer9", "first: pre is layer9; expected a population before it"),
        ("synapses", "pre", "output", "first: pre is output; expected a population before it"),
        ("synapses", "post", "layer9", "first: post is layer9; expected a population"),
        ("synapses", "post", "input", "first: post is input; expected a population"),
        ("synapses", "stride", [0, 0], "first: stride is (0, 0); expected two numbers, 1 to 65536"),
        ("synapses", "padding", [1, 1], "first: its map is [6, 6]; expected [4, 4], that of layer"),
        ("synapses", "groups", 2, "first: groups is 2; expected a divisor of 1 and 2 channels"),
        ("synapses", "host", True, "first: host is True"),
    ],
)
def test_fields_of_a_program_that_no_engine_can_run_are_named(tmp_path, where, field, value, message):
    programs_example().save(tmp_path / "p.npz")

    def change(header, arrays):
        (header[where][0] if where else header)[field] = value
        if field == "name":
            arrays["bias/input"] = arrays["bias/layer"]

    assert message in refusal(tmp_path / "p.npz", LoihiProgram, change)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "weight/first",
            lambda w: w.astype(float),
            "first: weight is float64 [2, 1, 1, 1]; expected int8 [2, 1, ",
        ),
        ("weight/first", lambda w: w[:1], "first: weight is int8 [1, 1, 1, 1]; expected int8 [2, 1, height, width]"),
        ("weight/first", lambda w: np.array(["a"]), "first: weight is <U1 [1]"),
        ("bias/layer", lambda b: b[:1], "layer: bias is int32 [1]; expected int32 [2] or [2, "),
        ("dv/layer", lambda _: np.array([0, 4096]), "layer: dv is [   0 4096]"),
        ("links/first", lambda _: np.array([3]), "first: links is int64 [1]; expected int64 [1], 0 to 2"),
    ],
)
def test_arrays_of_a_program_that_no_engine_can_run_are_named(tmp_path, name, value, message):
    programs_example().save(tmp_path / "p.npz")
    change = lambda _, arrays: arrays.update({name: value(arrays.get(name))})  # noqa: E731
    assert message in refusal(tmp_path / "p.npz", LoihiProgram, change)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("spikes/layer", lambda a: a - 1, "spikes/layer is int64 [3, 2]; expected whole numbers [3, 2], none below 0"),
        ("spikes/layer", lambda a: a * np.nan, "spikes/layer is float64 [3, 2]"),
        ("spikes/layer", lambda a: a[:1], "spikes/layer is int64 [1, 2]"),
        ("spikes/layer", None, "spikes, digests and rasters are of different layers"),
        ("events/first", lambda a: a[:, :1], "events/first is int64 [3, 1]"),
        ("outputs", lambda a: a[:, :0], "output_sums is int64 [3, 1]; expected int64 [3, 0]"),
        ("outputs", lambda a: a * np.nan, "outputs is float64 [3, 1]; expected finite numbers"),
        ("outputs", None, "missing 1 required positional argument: 'outputs'"),
        ("labels", lambda _: np.zeros(2, int), "labels is int64 [2]; expected classes [3]"),
        ("labels", lambda _: np.full(3, 0.5), "labels is float64 [3]"),
        ("rasters/layer", lambda a: a[:, :1], "rasters/layer is bool [1, 1, 2, 4, 4]; expected bool [n, 2, C, H, W]"),
        ("time_steps", 7, "expected whole numbers [3, 7]"),
        ("time_steps", "2", "time_steps is '2'; expected a whole number"),
        ("wraps", {}, "wraps does not name a count for every layer"),
        ("populations", [], "it is a Loihi program"),
        ("format", 1, "written by another version"),
    ],
)
def test_a_record_that_no_engine_can_have_written_is_refused(tmp_path, name, value, message):
    program = programs_example()
    simulate_fixed(program, np.zeros((3, 1, 4, 4)), rasters=1).save(tmp_path / "fixed.npz")

    def change(header, arrays):
        if callable(value):
            arrays[name] = value(arrays.get(name))
        elif value is None:
            del arrays[name]
        else:
            header[name] = value

    assert message in refusal(tmp_path / "fixed.npz", SpikeRecord, change)


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
