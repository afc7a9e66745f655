"""Random Loihi programs for the tests of both engines."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from hypothesis import strategies as st

from spikeport.core.geometry import Pair, Shape
from spikeport.targets.loihi.arithmetic import BIAS_EXP_MAX, BIAS_MANT_MAX, DECAY_ONE, VTH_NEVER, WEIGHT_MAX
from spikeport.targets.loihi.program import INPUT, LoihiProgram, Population, Synapse

INPUT_SCALE = 0.5
MAX_CHANNELS = 6


@st.composite
def programs(draw: st.DrawFn) -> tuple[LoihiProgram, np.ndarray]:
    """A program with joins, branches of different depth, OR pools and groups, and samples for it.

    "wild" programs have large weights and slow decays, so that currents wrap and voltages saturate.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    wild = draw(st.booleans())
    shape = (draw(st.integers(1, 4)), draw(st.integers(3, 9)), draw(st.integers(3, 9)))
    builder = _Builder(rng, shape, WEIGHT_MAX if wild else 20)
    for index in range(draw(st.integers(1, 5).map(lambda n: 6 - n))):
        names = [p.name for p in builder.populations]
        pre = draw(st.sampled_from([INPUT, *names[-1:] * 4]))
        if pre != INPUT and draw(st.integers(0, 3)) == 0 and builder.pool(f"pool{index}", pre):
            continue
        out = draw(_out_shape(builder.shape(pre)))
        other = draw(st.sampled_from([None, pre, *names[:2], *names[:2], INPUT]))
        builder.layer(f"layer{index}", out, [pre, other] if other else [pre], draw(_neuron(wild)))
    last = builder.populations[-1].name
    wanted = (draw(st.integers(1, 5)), 1, 1)
    neuron = draw(_neuron(wild)) | {"vth": VTH_NEVER, "spiking": False, "uneven": ()}
    builder.layer("output", wanted, [last, INPUT] if wild else [last], neuron, covering=True)
    program = builder.program(draw(st.integers(1, 5)))
    samples = (draw(st.integers(1, 4)), *shape)
    return program, rng.integers(-127, 128, samples) * rng.integers(0, 2, samples) * INPUT_SCALE


@st.composite
def event_programs(draw: st.DrawFn) -> tuple[LoihiProgram, np.ndarray]:
    """The same with another input at every step, [T, N, C, H, W], often spikes."""
    program, x = draw(programs())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    most = draw(st.sampled_from([1, 127]))
    program = replace(program, held=False, input_max=most, input_scale=1.0)
    shape = (program.time_steps, len(x), *program.input_shape)
    return program, (rng.integers(-most, most + 1, shape) * rng.integers(0, 2, shape)).astype(float)


@st.composite
def chains(draw: st.DrawFn) -> LoihiProgram:
    """One layer after the other, each fed by the one before alone."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    builder = _Builder(rng, (draw(st.integers(1, 4)), draw(st.integers(3, 9)), draw(st.integers(3, 9))), WEIGHT_MAX)
    pre = INPUT
    for index in range(draw(st.integers(0, 4))):
        if not (draw(st.booleans()) and builder.pool(f"layer{index}", pre)):
            builder.layer(
                f"layer{index}",
                draw(_out_shape(builder.shape(pre))),
                [pre],
                draw(_neuron(wild=False)) | {"uneven": (), "every_bias": False},
            )
        pre = f"layer{index}"
    builder.layer("output", (2, 1, 1), [pre], {"vth": VTH_NEVER, "spiking": False, "bias": 9}, covering=True)
    return builder.program(draw(st.integers(1, 5)))


def uneven_chain() -> tuple[LoihiProgram, np.ndarray]:
    """A chain with groups, uneven geometry, an OR pool and two decays that fires in every layer; and samples for it."""
    rng = np.random.default_rng(0)
    builder = _Builder(rng, (2, 7, 6), 40)
    builder.layer("first", (8, 4, 6), [INPUT], {"dv": 2000, "vth": 500, "bias_exp": 6, "bias": 60})
    builder.pool("pool", "first")
    builder.layer("decaying", (4, 2, 3), ["pool"], {"du": 3000, "dv": 100, "vth": 9, "bias_exp": 6, "bias": 20})
    builder.layer("output", (3, 1, 1), ["decaying"], {"vth": VTH_NEVER, "spiking": False, "bias": 9}, covering=True)
    return builder.program(5), rng.integers(-127, 128, (3, 2, 7, 6)) * INPUT_SCALE


def single(weight: np.ndarray, shape: Shape, time_steps: int = 2, **synapse: object) -> LoihiProgram:
    """One synapse onto firing neurons, and one from them onto a single integrator."""
    builder = _Builder(np.random.default_rng(0), shape, WEIGHT_MAX)
    geometry = Synapse("first", "", INPUT, "layer", weight, **synapse)  # type: ignore[arg-type]
    size = tuple(_size(*axis) for axis in zip(shape[1:], weight.shape[2:], *_pairs(geometry), strict=True))
    builder.synapses.append(geometry)
    builder.add("layer", (len(weight), *size), 1, {"vth": 300})
    builder.layer("output", (1, 1, 1), ["layer"], {"vth": VTH_NEVER, "spiking": False}, covering=True)
    return builder.program(time_steps)


@st.composite
def _neuron(draw: st.DrawFn, wild: bool) -> dict[str, Any]:
    decay = st.one_of(st.sampled_from([0, DECAY_ONE - 1]), st.integers(0, DECAY_ONE - 1))
    return {
        "du": draw(st.just(0) if wild else decay),
        "dv": draw(decay),
        "vth": draw(st.integers(0, 10).map(lambda bits: (1 << bits) - 1)) * (50 if wild else 1),
        "bias_exp": draw(st.integers(0, BIAS_EXP_MAX)),
        "bias": draw(st.sampled_from([0, 10, BIAS_MANT_MAX])),
        "every_bias": draw(st.integers(0, 3)) == 0,
        "uneven": draw(st.sampled_from([(), (), ("vth",), ("dv",), ("du", "dv", "vth")])),
    }


@st.composite
def _out_shape(draw: st.DrawFn, shape: Shape) -> Shape:
    sizes = [sorted({_size(length, *axis) for axis in _axes(length)} - {0}) for length in shape[1:]]
    height, width = (draw(st.sampled_from(size[-4:])) for size in sizes)
    return draw(st.integers(1, MAX_CHANNELS)), height, width


class _Builder:
    """Populations and synapses so far; adds relays where joining branches differ in depth."""

    def __init__(self, rng: np.random.Generator, input_shape: Shape, weight_max: int) -> None:
        self.rng, self.input_shape, self.weight_max = rng, input_shape, weight_max
        self.populations: list[Population] = []
        self.synapses: list[Synapse] = []

    def shape(self, name: str) -> Shape:
        return self.input_shape if name == INPUT else self._population(name).shape

    def depth(self, name: str) -> int:
        return 0 if name == INPUT else self._population(name).depth

    def layer(self, name: str, out: Shape, pres: list[str], neuron: dict[str, Any], covering: bool = False) -> None:
        """A population fed by each of ``pres`` whose map can reach its size, at least by the first."""
        depth = 1 + max(self.depth(pre) for pre in pres)
        for index, pre in enumerate(pres):
            if pre != INPUT:
                pre = self._relayed(pre, depth - 1)
            channels, *size = self.shape(pre)
            options = [
                [(size[i], 1, 0, 1)] if covering else [a for a in _axes(size[i]) if _size(size[i], *a) == out[1 + i]]
                for i in (0, 1)
            ]
            if not all(options):
                assert index, "the first branch must fit"
                continue
            vertical, horizontal = (axes[self.rng.integers(len(axes))] for axes in options)
            kernel, stride, padding, dilation = zip(vertical, horizontal, strict=True)
            groups = int(self.rng.choice([g for g in range(1, channels + 1) if channels % g == out[0] % g == 0]))
            weight = self.rng.integers(-self.weight_max, self.weight_max + 1, (out[0], channels // groups, *kernel))
            links = None
            if self.rng.integers(3) == 0:  # leave some channels out, as a convolution over part of a map does
                weight *= self.rng.integers(0, 2, weight.shape[:2])[:, :, None, None]
                reached = weight.any(axis=(2, 3)).reshape(groups, -1, weight.shape[1])
                links = reached.sum(1).ravel().astype(np.int64)
            weight = weight.astype(np.int8)
            self.synapses.append(
                Synapse(f"{name}.{index}", "", pre, name, weight, stride, padding, dilation, groups, links)
            )
        self.add(name, out, depth, neuron)

    def pool(self, name: str, pre: str) -> bool:
        """OR over 2 x 2, stride 2; False where the map is too small."""
        channels, height, width = self.shape(pre)
        if min(height, width) < 2:
            return False
        weight = np.full((channels, 1, 2, 2), 2, np.int8)
        self.synapses.append(Synapse(f"{name}.0", "", pre, name, weight, (2, 2), groups=channels))
        self.add(name, (channels, height // 2, width // 2), self.depth(pre) + 1, {"dv": DECAY_ONE - 1, "vth": 1})
        return True

    def add(self, name: str, shape: Shape, depth: int, neuron: dict[str, Any]) -> None:
        """``uneven`` names the registers that differ between channels; ``every_bias``: biases differ within maps."""
        values = {"du": DECAY_ONE - 1, "dv": 0, "bias_exp": 0, "bias": 0, "every_bias": False, "uneven": ()} | neuron
        bias, every = values.pop("bias"), values.pop("every_bias")
        for register in values.pop("uneven"):
            values[register] = self.rng.integers(0, values[register] + 1, shape[0]).astype(np.int32)
        mantissa = self.rng.integers(-bias, bias + 1, shape if every else shape[0]).astype(np.int32)
        self.populations.append(Population(name, "", shape, bias_mant=mantissa, scale=1.0, depth=depth, **values))

    def program(self, time_steps: int) -> LoihiProgram:
        return LoihiProgram(
            time_steps, self.input_shape, INPUT_SCALE, tuple(self.populations), tuple(self.synapses), "output"
        )

    def _population(self, name: str) -> Population:
        return next(p for p in self.populations if p.name == name)

    def _relayed(self, pre: str, depth: int) -> str:
        while self.depth(pre) < depth:
            name = f"relay{len(self.populations)}"
            shape = self.shape(pre)
            weight = np.full((shape[0], 1, 1, 1), 2, np.int8)
            self.synapses.append(Synapse(f"{name}.0", "", pre, name, weight, groups=shape[0]))
            self.add(name, shape, self.depth(pre) + 1, {"dv": DECAY_ONE - 1, "vth": 1})
            pre = name
        return pre


def _axes(length: int) -> list[tuple[int, int, int, int]]:
    """Kernel, stride, padding and dilation that fit on an axis."""
    return [axis for axis in product((1, 2, 3, 4), (1, 2, 3), (0, 1, 2), (1, 2)) if _size(length, *axis) > 0]


def _size(length: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return max((length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1, 0)


def _pairs(synapse: Synapse) -> tuple[Pair, Pair, Pair]:
    return synapse.stride, synapse.padding, synapse.dilation
