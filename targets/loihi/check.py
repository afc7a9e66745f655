"""Whether a program fits a chip: every layer, every limit, what is used, what there is, and what to do about it."""

from collections.abc import Iterator
from typing import Any

import nir
import numpy as np

from spikeport.core.errors import SpikeportError
from spikeport.export.nir_graph import metadata_of
from spikeport.targets.loihi import arithmetic as loihi
from spikeport.targets.loihi.chips import CHIPS, RESOURCES, Chip, find_chip
from spikeport.targets.loihi.compatibility import Compatibility, Row
from spikeport.targets.loihi.compile import compile
from spikeport.targets.loihi.convolution import worst_currents
from spikeport.targets.loihi.layers import input_range
from spikeport.targets.loihi.mapping import Mapping, map_program
from spikeport.targets.loihi.program import INPUT, INPUT_MODES, LoihiProgram, Population

#: How samples enter: signed spikes of up to 8 bits; a bias per neuron that the host computes; ordinary spikes.
INPUTS = (*INPUT_MODES, "spikes")


def check_program(
    program: LoihiProgram,
    chip: str | None = None,
    input_mode: str = "graded",
    chips: int | None = None,
    graph: nir.NIRGraph | None = None,
) -> Compatibility:
    """Checks a program against every limit of a chip and maps it onto cores.

    Args:
        chips: how many chips there are; those of the largest system Intel has shown where None.
        graph: what it was compiled from; then rows note how far decays were rounded.

    Raises:
        SpikeportError: an unknown chip or way of input.
    """
    found = find_chip(chip)
    if program.input_mode == "host-current":
        input_mode = "host-current"
    if input_mode not in INPUTS:
        raise SpikeportError(f"unknown input {input_mode!r}; available: {', '.join(INPUTS)}")
    mapping = map_program(program, found, host_input=input_mode == "host-current")
    rows = list(input_rows(program, found, input_mode))
    for population in program.populations:
        rows += _register_rows(program, population, found, input_mode)
        rows += _state_rows(program, population, found, input_mode)
        rows += _core_rows(population, mapping)
    rows += _chip_rows(mapping, chips or found.chips)
    if graph is not None:
        rows += _rounding_notes(graph, program)
    return Compatibility(found, input_mode, tuple(rows), mapping)


def check_graph(
    graph: nir.NIRGraph,
    chip: str | None = None,
    input_mode: str = "graded",
    calibration: np.ndarray | None = None,
) -> Compatibility:
    """Checks a NIR graph: what does not compile becomes a row; what does is checked as a program.

    Args and errors as of ``check_program``; ``calibration`` as of ``compile``, whose errors about it are raised.
    """
    found = find_chip(chip)
    input_range(metadata_of(graph), calibration)  # not a question of the chip
    try:
        program = compile(graph, calibration, input_mode if input_mode in INPUT_MODES else "graded")
    except SpikeportError as error:
        layer = str(error).split(": ")[0]
        layer = layer if layer in graph.nodes else "network"
        return Compatibility(found, input_mode, (Row(layer, "compiles", None, None, "", False, str(error)),), None)
    return check_program(program, chip, input_mode, graph=graph)


def input_rows(program: LoihiProgram, chip: Chip, input_mode: str) -> Iterator[Row]:
    """Whether the chip takes samples as they enter: quickly told, without a mapping."""
    if input_mode == "graded" and program.out_of(INPUT):
        bits = program.input_max.bit_length() + 1
        others = [f"`--chip {other.name}`" for other in CHIPS.values() if other.graded_bits >= bits]
        remedy = " or ".join(["`--input host-current`", *others])
        yield _row("input", "graded spike bits", bits, chip.graded_bits, "bits", remedy)


def _register_rows(program: LoihiProgram, population: Population, chip: Chip, input_mode: str) -> Iterator[Row]:
    """Integers that a register of the chip has to hold."""
    name = population.name
    weights = [s.weight for s in program.into(name) if not (input_mode == "host-current" and s.pre == INPUT)]
    bits = max((max(int(w.max()), -int(w.min()) - 1).bit_length() + 1 for w in weights), default=0)
    yield _row(name, "weight bits", bits, chip.weight_bits, "bits", "quantise it with a smaller scale")
    if weights:
        largest = max(int(np.abs(w.astype(np.int64)).max(initial=0)) for w in weights)
        yield Row(name, "largest weight", largest, None, "steps", True, note=True)
    if population.spiking:
        remedy = "quantise it with a smaller scale, or train it with a smaller threshold"
        yield _row(name, "threshold", population.vth, chip.threshold_max, "x 64", remedy)
    remedy = "quantise it with a larger bias exponent or a smaller scale"
    yield _row(name, "bias mantissa", np.abs(population.bias_mant), chip.bias_mantissa_max, "steps", remedy)
    remedy = "quantise it with a smaller scale, or train it with smaller biases"
    yield _row(name, "bias exponent", population.bias_exp, chip.bias_exponent_max, "", remedy)
    for rule, value in (("decay of v", population.dv), ("decay of u", population.du)):
        legal = chip.decay_max if np.max(value) > chip.decay_max else 0
        remedy = f"the register's nearest value is {legal}: export it again, or train with another tau"
        yield _row(name, rule, value, chip.decay_max, "1 / 4096", remedy)


def _state_rows(program: LoihiProgram, population: Population, chip: Chip, input_mode: str) -> Iterator[Row]:
    """Worst cases of u and v in units of a weight: the inputs that drive a neuron up most, or down most."""
    name, steps, host = population.name, program.time_steps, input_mode == "host-current"
    up: np.ndarray = np.zeros(population.shape[0])
    down: np.ndarray = np.zeros(population.shape[0])
    injected: np.ndarray = np.zeros(population.shape[0])
    for synapse in program.into(name):
        if synapse.host:
            sums = np.abs(synapse.weight).sum((1, 2, 3)) / (1 << loihi.SHIFT)
            injected += sums * program.input_max * program.input_scale
            continue
        largest = 1 if input_mode == "spikes" else program.input_max
        low, high = (-largest, largest) if synapse.pre == INPUT else (0, 1)  # spikes have one sign
        excites, inhibits = worst_currents(synapse.weight, low, high)
        if synapse.pre == INPUT and host:
            injected += excites
        else:
            up += excites
            down += inhibits
    kept = np.maximum(loihi.NO_CURRENT_MEMORY - np.asarray(population.du, np.float64), 0).max() / loihi.DECAY_ONE
    up, down = (current * (kept ** np.arange(steps)).sum() for current in (up, down))
    remedy = "its current u may wrap: quantise it with a smaller scale, or give it fewer inputs (a narrower `--width`)"
    yield _row(name, "worst-case current", np.ceil(np.maximum(up, down)), chip.state_max, "weights", remedy)
    lowest, highest = (end(population.bias, (1, 2)) / (1 << loihi.SHIFT) for end in (np.min, np.max))
    if injected.any():
        most = (chip.bias_mantissa_max << chip.bias_exponent_max) >> loihi.SHIFT
        remedy = "the current from the host is a bias: compile it with `--input host-current`, which scales it to fit"
        yield _row(name, "host current", np.ceil(np.maximum(highest, -lowest) + injected), most, "weights", remedy)
    if not population.spiking:
        remedy = f"its sum over {steps} steps may saturate: fewer `--time-steps`, or a smaller scale"
        reach = np.maximum(up + highest, down - lowest) + injected
        yield _row(name, "integrator range", np.ceil(steps * reach), chip.state_max, "weights", remedy)


def _core_rows(population: Population, mapping: Mapping) -> Iterator[Row]:
    """The fullest slice of a population: it exceeds a limit only where no split can help."""
    held, largest = mapping.taken(population.name)
    remedy = f"a single neuron takes more than a core has, so no split helps: {_smaller(mapping.chip)}"
    for resource, (rule, unit) in RESOURCES.items():
        available = mapping.chip.limits[resource]
        yield _row(population.name, rule, getattr(largest, resource), available, unit, remedy)
    yield Row(population.name, "cores", held, None, "cores", True, note=True)


def _chip_rows(mapping: Mapping, chips: int) -> Iterator[Row]:
    chip = mapping.chip
    yield _row(chip.title, "cores", len(mapping.cores), chips * chip.cores, "cores", _smaller(chip))
    yield _row(chip.title, "chips", mapping.chips, chips, "chips", _smaller(chip))


def _rounding_notes(graph: nir.NIRGraph, program: LoihiProgram) -> Iterator[Row]:
    """How far a decay of 12 bits is from the network's, where it is not equal."""
    dt = metadata_of(graph).dt
    for population in program.populations:
        node = graph.nodes.get(population.name)
        voltage, current = getattr(node, "tau_mem", getattr(node, "tau", None)), getattr(node, "tau_syn", None)
        for rule, tau, lost in (
            ("decay rounding error", voltage, np.asarray(population.dv)),
            ("decay rounding error of u", current, np.asarray(population.du) + 1),
        ):
            if tau is None:
                continue
            wanted = (dt / np.asarray(tau, np.float64)).reshape(-1, 1)
            wanted = wanted if len(wanted) == 1 else wanted.reshape(population.shape[0], -1)
            error = np.abs(lost.reshape(-1, 1) / loihi.DECAY_ONE - wanted).max()
            if error > 1e-9:
                yield Row(population.name, rule, float(error), None, "per step", True, note=True)


def _row(layer: str, rule: str, values: Any, available: float | None, unit: str, remedy: str) -> Row:
    """A row for the worst of ``values``, which are legal from 0 to ``available``."""
    low, high = int(np.min(values)), int(np.max(values))
    used = low if low < 0 else high
    fits = low >= 0 and (available is None or high <= available)
    return Row(layer, rule, used, available, unit, fits, "" if fits else remedy)


def _smaller(chip: Chip) -> str:
    larger = [f" or `--chip {other.name}`" for other in CHIPS.values() if other.compartments > chip.compartments]
    return "a narrower `--width`" + "".join(larger)
