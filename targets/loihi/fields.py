"""What the fields of a program may hold: a file may be damaged, or written by other hands than the compiler's."""

from typing import Any

import numpy as np

from spikeport.core.arrays import kind_of
from spikeport.core.errors import SpikeportError
from spikeport.core.functional import MOST_STEPS
from spikeport.core.geometry import output_size, pair
from spikeport.core.settings import check_types
from spikeport.targets.loihi.arithmetic import BIAS_EXP_MAX, DECAY_ONE, VTH_NEVER
from spikeport.targets.loihi.program import INPUT, INPUT_MAX, INPUT_MODES, LoihiProgram, Population, Synapse

#: Registers of a population and their largest values.
REGISTERS = {"du": DECAY_ONE - 1, "dv": DECAY_ONE - 1, "vth": VTH_NEVER, "bias_exp": BIAS_EXP_MAX}

#: Of a stride, a padding or a dilation.
MOST = 1 << 16


def check_fields(program: LoihiProgram) -> None:
    """Raises SpikeportError, naming layer and field, where an engine could not run the program as it stands."""
    _types("program", program)
    _require("time_steps", program.time_steps, 1 <= program.time_steps <= MOST_STEPS, f"1 to {MOST_STEPS}")
    _require("input_scale", program.input_scale, program.input_scale > 0, "more than 0")
    _require("input_max", program.input_max, 1 <= program.input_max <= INPUT_MAX, f"1 to {INPUT_MAX}")
    _require("input_mode", program.input_mode, program.input_mode in INPUT_MODES, ", ".join(INPUT_MODES))
    _map("input_shape", program.input_shape)
    shapes = {INPUT: program.input_shape}
    for population in program.populations:
        _population(population)
        _require(f"{population.name}: name", population.name, population.name not in shapes, "one of its own")
        # A population's own name is there too: its spikes may come back to it.
        shapes[population.name] = population.shape
        for synapse in program.into(population.name):
            _require(f"{synapse.name}: pre", synapse.pre, synapse.pre in shapes, "a population before it")
            _synapse(synapse, shapes, program.input_mode)
    for synapse in program.synapses:
        _require(f"{synapse.name}: post", synapse.post, synapse.post in shapes.keys() - {INPUT}, "a population")
    names = [s.name for s in program.synapses]
    _require("synapses", len(names), len(set(names)) == len(names), "a name of its own for each")
    integrators = [p.name for p in program.populations if not p.spiking]
    _require("output", program.output, program.output in integrators, "a population that does not spike")


def _population(p: Population) -> None:
    _types(p.name, p)
    _map(f"{p.name}: shape", p.shape)
    _require(f"{p.name}: scale", p.scale, p.scale > 0, "more than 0")
    _require(f"{p.name}: depth", p.depth, p.depth >= 1, "at least 1")
    for name, largest in REGISTERS.items():
        value = np.asarray(getattr(p, name))
        whole = value.dtype.kind == "i" and value.shape in ((), p.shape[:1])
        legal = whole and value.min() >= 0 and value.max() <= largest
        _require(f"{p.name}: {name}", getattr(p, name), legal, f"0 to {largest}, one or one per channel")
    mant = p.bias_mant
    whole = mant.dtype == np.int32 and mant.shape in (p.shape[:1], p.shape)
    _require(f"{p.name}: bias", kind_of(mant), whole, f"int32 [{p.shape[0]}] or {list(p.shape)}")


def _synapse(s: Synapse, shapes: dict[str, Any], input_mode: str) -> None:
    _types(s.name, s)
    for name, least in (("stride", 1), ("padding", 0), ("dilation", 1)):
        value = getattr(s, name)
        legal = len(value) == 2 and least <= min(value) and max(value) <= MOST
        _require(f"{s.name}: {name}", value, legal, f"two numbers, {least} to {MOST}")
    legal = not s.host or (s.pre == INPUT and input_mode == "host-current")
    _require(f"{s.name}: host", s.host, legal, "false: the host computes what follows the input alone")
    (channels, *size), (out, *wanted) = shapes[s.pre], shapes[s.post]
    per_group = channels // s.groups if s.groups >= 1 and channels % s.groups == out % s.groups == 0 else 0
    _require(f"{s.name}: groups", s.groups, per_group > 0, f"a divisor of {channels} and {out} channels")
    dtype = np.float64 if s.host else np.int8
    legal = s.weight.dtype == dtype and s.weight.ndim == 4 and s.weight.shape[:2] == (out, per_group)
    _require(f"{s.name}: weight", kind_of(s.weight), legal, f"{np.dtype(dtype)} [{out}, {per_group}, height, width]")
    _require(f"{s.name}: weight", "NaN or infinity", bool(np.isfinite(s.weight).all()), "finite numbers")
    found = list(output_size(pair(size), *s.geometry))
    _require(f"{s.name}: its map", found, min(s.weight.shape) > 0 and found == wanted, f"{wanted}, that of {s.post}")
    if s.links is not None:
        legal = s.links.dtype == np.int64 and s.links.shape == (channels,)
        legal = legal and s.links.min() >= 0 and s.links.max() <= out // s.groups
        _require(f"{s.name}: links", kind_of(s.links), legal, f"int64 [{channels}], 0 to {out // s.groups}")


def _map(field: str, shape: tuple[int, ...]) -> None:
    _require(field, list(shape), len(shape) == 3 and min(shape) >= 1, "channels, height and width")


def _types(name: str, item: Any) -> None:
    try:
        check_types(item)
    except SpikeportError as error:
        raise SpikeportError(f"{name}: {error}") from None


def _require(field: str, value: Any, legal: bool, expected: str) -> None:
    if not legal:
        raise SpikeportError(f"{field} is {value}; expected {expected}")
