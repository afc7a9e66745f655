"""The Lava engine equals the fixed engine, integer for integer."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import nir
import numpy as np
import pytest
from graphs import flat, graph_of
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from networks import RandomNet, random_nets
from programs import INPUT_SCALE, event_programs, programs, single
from torch import Tensor

from spikeport.core.errors import SpikeportError
from spikeport.targets.loihi.arithmetic import VTH_NEVER
from spikeport.targets.loihi.compile import compile
from spikeport.targets.loihi.fixed import simulate_fixed
from spikeport.targets.loihi.lava import CONVOLUTIONS, simulate_lava
from spikeport.targets.loihi.program import LoihiProgram
from spikeport.targets.record import SpikeRecord, differences

pytestmark = pytest.mark.usefixtures("lava")
#: 50 in `make test`, 500 in `make test-long`.
NETWORKS = 2 * settings.default.max_examples  # type: ignore[union-attr]


def equal_records(program: LoihiProgram, x: np.ndarray, convolution: str) -> SpikeRecord:
    fixed = simulate_fixed(program, x, rasters=2)
    record = simulate_lava(program, x, rasters=2, convolution=convolution)
    assert differences(fixed, record) == []
    assert record.wraps == fixed.wraps
    assert record.saturations == fixed.saturations
    for kind in ("spikes", "digests", "events", "rasters"):
        assert getattr(record, kind).keys() == getattr(fixed, kind).keys()
        for name, values in getattr(fixed, kind).items():
            found = getattr(record, kind)[name]
            assert found.dtype == values.dtype
            assert np.array_equal(found, values)
    assert np.array_equal(record.outputs, fixed.outputs)
    assert record.output_sums.dtype == fixed.output_sums.dtype
    return record


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(drawn=programs() | event_programs(), convolution=st.sampled_from(CONVOLUTIONS))
def test_random_programs_equal(drawn: tuple[LoihiProgram, np.ndarray], convolution: str) -> None:
    equal_records(*drawn, convolution)


@settings(max_examples=NETWORKS, suppress_health_check=[HealthCheck.too_slow])
@given(case=random_nets(), convolution=st.sampled_from(CONVOLUTIONS))
def test_random_networks_equal(case: tuple[RandomNet, Tensor], convolution: str) -> None:
    net, x = case
    x = 3 * x  # so that most layers fire
    try:
        program = compile(graph_of(net, x, bound=float(x.abs().max())))
    except SpikeportError as error:
        assert "pads a map" in str(error) or "all of its weights are zero" in str(error)  # noqa: PT017
        reject()
    equal_records(program, x.numpy(), convolution)


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
@pytest.mark.parametrize("groups", [130, 256])
def test_more_groups_than_lava_has_bits_for(groups: int, convolution: str) -> None:
    rng = np.random.default_rng(groups)
    weight = rng.integers(-127, 128, (groups, 1, 2, 2)).astype(np.int8)
    program = single(weight, (groups, 3, 3), groups=groups)
    record = equal_records(program, rng.integers(-9, 10, (2, groups, 3, 3)) * INPUT_SCALE, convolution)
    assert record.spikes["layer"].sum() > 0


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_sides_longer_than_lava_has_bits_for(convolution: str) -> None:
    rng = np.random.default_rng(1)
    weight = rng.integers(-127, 128, (2, 1, 3, 3)).astype(np.int8)
    program = single(weight, (1, 5, 150), padding=(1, 1))
    record = equal_records(program, rng.integers(-9, 10, (2, 1, 5, 150)) * INPUT_SCALE, convolution)
    assert record.spikes["layer"].sum() > 0


def test_wraps_are_counted() -> None:
    program = single(np.full((1, 4, 3, 3), 127, np.int8), (4, 5, 5), time_steps=4)
    record = equal_records(program, np.full((1, 4, 5, 5), 127 * INPUT_SCALE), "fast")
    assert record.wraps["layer"] > 0


def test_saturations_are_counted() -> None:
    program = single(np.full((1, 1, 3, 3), 90, np.int8), (1, 5, 5), time_steps=4)
    numb = replace(program.populations[0], vth=VTH_NEVER)
    program = replace(program, populations=(numb, program.populations[1]))
    record = equal_records(program, np.full((1, 1, 5, 5), 127 * INPUT_SCALE), "fast")
    assert record.wraps["layer"] == 0
    assert record.saturations["layer"] > 0


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_a_bias_that_fires_recurrent_neurons_before_the_first_sample(convolution: str) -> None:
    one = np.ones(1)
    nodes = {"input": nir.Input({"input": np.array([1])}), "affine": nir.Affine(np.eye(1), one)}
    nodes |= {"neurons": nir.IF(1e3 * one, 0.5 * one), "back": nir.Linear(-np.eye(1))}
    nodes["output"] = nir.Output({"output": np.array([1])})
    edges = [*pairwise(("input", "affine", "neurons", "back", "neurons")), ("neurons", "output")]
    x = np.array([[0.0], [1.0]])
    program = compile(flat(nodes, edges, steps=3), x)
    record = equal_records(program, x, convolution)
    assert record.spikes["neurons"].tolist() == [[1, 0, 1], [1, 1, 1]]


def test_labels_progress_and_details() -> None:
    program = single(np.ones((1, 1, 1, 1), np.int8), (1, 2, 2))
    seen: list[tuple[int, int]] = []
    labels = np.zeros(3, np.int64)
    record = simulate_lava(program, np.ones((3, 1, 2, 2)), labels, progress=lambda *at: seen.append(at))
    assert seen[-1] == (3, 3)
    assert record.accuracy == 1.0
    assert record.rasters == {}
    assert record.details.keys() == {"python", "lava-nc", "numpy", "steps", "convolution"}
    assert record.details["steps"] == 3 * program.time_steps + program.depth


def test_record_survives_a_file(tmp_path: Path) -> None:
    program = single(np.ones((1, 1, 1, 1), np.int8), (1, 2, 2))
    record = simulate_lava(program, np.ones((1, 1, 2, 2)), rasters=1)
    record.save(tmp_path / "lava.npz")
    assert differences(record, SpikeRecord.load(tmp_path / "lava.npz")) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"convolution": "quick"}, "choose one of fast, stock"),
        ({"x": np.ones((1, 1, 9, 9))}, "the program takes"),
    ],
)
def test_wrong_use_is_told(change: dict, told: str) -> None:
    program = single(np.ones((1, 1, 1, 1), np.int8), (1, 2, 2))
    with pytest.raises(SpikeportError, match=told):
        simulate_lava(program, **{"x": np.ones((1, 1, 2, 2)), **change})


def test_what_lava_would_wrap_is_refused() -> None:
    heavy = single(np.full((1, 600, 1, 1), 127, np.int8), (600, 1, 1))
    with pytest.raises(SpikeportError, match="first: current can reach 9677400, Lava wraps above 8388607"):
        simulate_lava(heavy, np.zeros((1, 600, 1, 1)))


def test_spikes_do_not_weigh_as_much_as_a_graded_input() -> None:
    """The same weights under inputs of at most 1 stay far from what Lava holds."""
    heavy = replace(single(np.full((1, 600, 1, 1), 127, np.int8), (600, 1, 1)), input_max=1)
    record = equal_records(heavy, np.full((1, 600, 1, 1), INPUT_SCALE), "fast")
    assert record.spikes["layer"].sum() > 0


def test_missing_relays_are_refused() -> None:
    program = single(np.ones((1, 1, 1, 1), np.int8), (1, 2, 2))
    late = replace(program.populations[1], depth=3)
    with pytest.raises(SpikeportError, match="output: depth 3 is not one more than its inputs'"):
        simulate_lava(replace(program, populations=(program.populations[0], late)), np.zeros((1, 1, 2, 2)))
