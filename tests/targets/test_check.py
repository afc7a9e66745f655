"""The fit check: each rule with a program that breaks it alone, and what users and scripts read."""

import json
import re
from dataclasses import replace
from typing import Any

import nir
import numpy as np
import pytest
import torch
from torch import nn

from spikeport.core import LIF, TimeMean
from spikeport.core.errors import SpikeportError
from spikeport.export.nir_graph import Metadata, build_nir
from spikeport.export.trace import trace
from spikeport.targets.loihi import chips
from spikeport.targets.loihi.check import check_graph, check_program
from spikeport.targets.loihi.compatibility import COLUMNS, LAYER_COLUMNS, Compatibility
from spikeport.targets.loihi.program import INPUT, LoihiProgram, Population, Synapse


def program(
    first: dict[str, Any] | None = None, last: dict[str, Any] | None = None, steps: int = 4, hidden: int = 3
) -> LoihiProgram:
    """Four inputs, ``hidden`` neurons, two integrators; the fields of each layer's population or weight replaced."""

    def layer(name: str, channels: int, inputs: int, pre: str, fields: dict[str, Any]) -> tuple[Population, Synapse]:
        fields = dict(fields)
        weight = fields.pop("weight", np.full((channels, inputs, 1, 1), 5, np.int8))
        bias = np.array([-7] * channels, np.int32)
        population = Population(name, name, (channels, 1, 1), 4095, 2048, 64, bias, 2, 64.0, 1)
        return replace(population, **fields), Synapse(f"to_{name}", "", pre, name, weight)

    one, into_one = layer("hidden", hidden, 4, INPUT, first or {})
    two, into_two = layer("output", 2, hidden, "hidden", {"dv": 0, "vth": 131072, "spiking": False} | (last or {}))
    return LoihiProgram(steps, (4, 1, 1), 0.1, (one, two), (into_one, into_two), "output")


def wide(bits: int) -> np.ndarray:
    """Weights [3, 4, 1, 1] of which one needs so many bits."""
    weight = np.ones((3, 4, 1, 1), np.int16)
    weight[1, 2] = -(1 << (bits - 1))
    return weight


#: Four inputs of at most 127 at these weights: 64,516.
LARGE = {"weight": np.full((3, 4, 1, 1), 127, np.int8)}
BROKEN = {
    "weight bits": program({"weight": wide(9)}),
    "threshold": program({"vth": 1 << 17}),
    "bias mantissa": program({"bias_mant": np.array([0, -4096, 0], np.int32)}),
    "bias exponent": program({"bias_exp": 8}),
    "decay of v": program({"dv": 4096}),
    "decay of u": program({"du": -1}),
    "worst-case current": program(LARGE | {"du": 0}),
    "integrator range": program(last={"weight": np.full((2, 3, 1, 1), 127, np.int8)}, steps=400),
}


def broken(found: Compatibility) -> list[tuple[str, str]]:
    return [(row.layer, row.rule) for row in found.rows if not row.fits]


@pytest.mark.parametrize("chip", chips.CHIPS)
def test_a_small_program_fits(chip: str) -> None:
    found = check_program(program(), chip, "graded" if chip == "loihi2" else "spikes")
    assert found.fits
    assert found.errors == ()
    assert found.mapping is not None
    assert len(found.mapping.cores) == found.mapping.chips == 1


@pytest.mark.parametrize("rule", BROKEN)
def test_each_rule_is_broken_alone(rule: str) -> None:
    found = check_program(BROKEN[rule], "loihi2")
    assert broken(found) == [("output" if rule == "integrator range" else "hidden", rule)]
    (error,) = found.errors
    number = r"-?[\d,]+"
    assert re.fullmatch(rf"\w+: {rule} {number} (exceeds {number} of Loihi 2|is below 0); .{{10,}}", error)


def test_loihi_1_takes_weights_of_nine_bits() -> None:
    assert broken(check_program(BROKEN["weight bits"], "loihi1", "spikes")) == []
    assert broken(check_program(program({"weight": wide(10)}), "loihi1", "spikes")) == [("hidden", "weight bits")]


def test_values_on_the_limit_fit() -> None:
    fields = {"vth": 131071, "bias_mant": np.array([4095, -4095, 0], np.int32), "bias_exp": 7, "dv": 4095, "du": 0}
    found = check_program(program(fields | {"weight": np.full((3, 4, 1, 1), 63, np.int8)}, steps=4), "loihi2")
    assert found.fits, found.errors


def test_worst_case_current_adds_up_what_u_keeps() -> None:
    rows = {(r.layer, r.rule): r.used for r in check_program(program({"du": 2047}, steps=3)).rows}
    assert rows["hidden", "worst-case current"] == 4 * 5 * 127 * (1 + 0.5 + 0.25)
    assert rows["output", "integrator range"] == np.ceil(3 * (3 * 5 - (7 << 2) / 64))


def test_worst_cases_do_not_add_excitation_to_inhibition() -> None:
    """A spike is 1 or 0: what excites a neuron does not inhibit it. A graded input has either sign."""
    signs = np.array([[127, 127, -127]] * 2, np.int8)[:, :, None, None]
    rows = {(r.layer, r.rule): r.used for r in check_program(program(last={"weight": signs})).rows}
    assert rows["output", "worst-case current"] == 2 * 127
    assert rows["output", "integrator range"] == np.ceil(4 * (2 * 127 - (7 << 2) / 64))
    signs = np.array([[127, 127, -127, -127]] * 3, np.int8)[:, :, None, None]
    rows = {(r.layer, r.rule): r.used for r in check_program(program({"weight": signs})).rows}
    assert rows["hidden", "worst-case current"] == 4 * 127 * 127


def test_worst_cases_are_of_the_programs_own_inputs() -> None:
    rows = {(r.layer, r.rule): r.used for r in check_program(replace(program(), input_max=3)).rows}
    assert rows["hidden", "worst-case current"] == 4 * 5 * 3


def test_graded_input_needs_loihi_2() -> None:
    found = check_program(program(), "loihi1", "graded")
    assert broken(found) == [("input", "graded spike bits")]
    assert found.errors == (
        "input: graded spike bits 8 exceeds 0 of Loihi 1; `--input host-current` or `--chip loihi2`",
    )


def test_host_current_is_a_bias() -> None:
    assert check_program(program(), "loihi1", "host-current").fits
    assert broken(check_program(program(LARGE), "loihi1", "host-current")) == [("hidden", "host current")]
    # The weights stay on the host.
    assert check_program(program({"weight": wide(10) // 100}), "loihi1", "host-current").fits


def test_fan_in_beyond_the_axons_of_a_core() -> None:
    found = check_program(program(hidden=4097), "loihi1", "spikes")
    assert broken(found) == [("output", "fan-in axons")]
    assert "4,097 exceeds 4,096 of Loihi 1; a single neuron takes more" in found.errors[0]
    assert "`--width`" in found.errors[0]
    assert "`--chip loihi2`" in found.errors[0]
    assert check_program(program(hidden=4097), "loihi2").fits


@pytest.mark.parametrize(
    ("limits", "rule", "layer"),
    [
        ({"compartments": 1, "axons_out": 1}, "fan-out axons", "hidden"),
        ({"memory_bits": 64}, "synaptic memory", "output"),
    ],
)
def test_what_no_split_helps(monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], rule: str, layer: str) -> None:
    tiny = replace(chips.LOIHI_1, name="tiny", title="Tiny", **limits)
    monkeypatch.setitem(chips.CHIPS, "tiny", tiny)
    hidden = 2 if rule == "fan-out axons" else 3
    assert (layer, rule) in broken(check_program(program(hidden=hidden), "tiny", "spikes"))


def test_more_chips_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(chips.CHIPS, "tiny", replace(chips.LOIHI_2, name="tiny", title="Tiny", cores=2, compartments=1))
    assert check_program(program(), "tiny").fits
    found = check_program(program(), "tiny", chips=2)
    assert broken(found) == [("Tiny", "cores"), ("Tiny", "chips")]
    assert found.errors[1].startswith("Tiny: chips 3 exceeds 2 of Tiny; ")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(SpikeportError, match="unknown chip 'loihi3'; available: loihi1, loihi2"):
        check_program(program(), "loihi3")
    with pytest.raises(SpikeportError, match="unknown input 'dvs'; available: graded, host-current, spikes"):
        check_program(program(), "loihi2", "dvs")  # type: ignore[arg-type]


@pytest.mark.parametrize("chip", chips.CHIPS)
def test_json_round_trip(chip: str) -> None:
    found = check_program(program(), chip)
    text = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert text == found.to_dict()
    assert text["chip"] == chip
    assert text["fits"] == found.fits
    assert len(text["rows"]) == len(found.rows)
    assert text["mapping"]["cores"] == len(text["mapping"]["per_core"]) == 1
    assert text["limits"]["cores"]["value"] == 128
    assert all(limit["source"] for limit in text["limits"].values())


def test_tables() -> None:
    found = check_program(program(hidden=4097), "loihi1", "spikes")
    assert all(len(line) == len(COLUMNS) for line in found.lines())
    table = {line[0]: dict(zip(LAYER_COLUMNS, line, strict=True)) for line in found.layers()}
    assert list(table) == ["hidden", "output"]
    assert table["output"]["fan-in axons"] == "4,097 / 4,096"
    assert table["output"]["breaks"] == "fan-in axons"
    assert table["hidden"]["breaks"] == ""
    assert "Loihi 1" in found.summary()
    assert ("hidden", "fan-in axons", "1", "no public figure", "axons", "yes", "") in check_program(program()).lines()


def graph(tau: float = 2.0, scale: float = 1.0) -> nir.NIRGraph:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), LIF(tau, constant_input=True), nn.Flatten(), nn.Linear(32, 3), TimeMean(4)
    )
    with torch.no_grad():
        model[3].weight *= scale
    return build_nir(trace(model.eval(), (1, 4, 4)), Metadata(4, input_shape=(1, 4, 4), input_bound=1.0))[0]


def test_graphs_are_compiled_and_checked() -> None:
    found = check_graph(graph(), "loihi2")
    assert found.fits
    assert found.mapping is not None
    assert sum(core.usage.compartments for core in found.mapping.cores) == 2 * 16 + 3
    assert not any(row.rule == "decay rounding error" for row in found.rows)


def test_a_rounded_decay_is_noted() -> None:
    (note,) = [row for row in check_graph(graph(tau=3.0)).rows if row.rule == "decay rounding error"]
    assert note.fits
    assert note.note
    assert note.used == pytest.approx(1 / 3 - 1365 / 4096, abs=1e-6)
    assert note.cells()[2:4] == ("8.14e-05", "")


def test_the_largest_weight_of_a_layer_is_noted() -> None:
    notes = {row.layer: row for row in check_program(program()).rows if row.rule == "largest weight"}
    assert {layer: note.used for layer, note in notes.items()} == {"hidden": 5, "output": 5}
    assert all(note.note and note.fits for note in notes.values())


def test_an_input_of_unknown_range_is_wrong_use_and_no_misfit() -> None:
    bare = graph()
    bare.metadata["spikeport"] = json.dumps(json.loads(bare.metadata["spikeport"]) | {"input_bound": None})
    with pytest.raises(SpikeportError, match="the range of the input is unknown; give real samples") as raised:
        check_graph(bare)
    assert raised.value.exit_status == 2
    with pytest.raises(SpikeportError, match="calibration has shape"):
        check_graph(bare, calibration=np.ones((2, 1, 4, 5)))
    assert check_graph(bare, calibration=np.ones((2, 1, 4, 4))).fits


def test_what_does_not_compile_is_a_row() -> None:
    found = check_graph(graph(scale=0.0))
    assert not found.fits
    assert found.mapping is None
    ((layer, rule),) = broken(found)
    assert (layer, rule) == ("output", "compiles")
    assert found.errors[0].startswith("output: all of its weights are zero")
    assert json.loads(json.dumps(found.to_dict()))["mapping"] is None
    assert found.summary() == "does not compile"
    assert found.layers() == [("output", "", "", "", "", "", "", "compiles")]
    assert len(found.lines()[0]) == len(COLUMNS)
