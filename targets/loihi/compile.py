"""From a NIR graph to a Loihi program: layers with one scale each, then integers, depths and relays.

The scale S of a population is shared by all synapses into it, its bias and its threshold. It is the largest for
which every integer fits its register and the worst-case current cannot wrap; see ``largest_scale``.
"""

from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor

from spikeport.core.errors import SpikeportError
from spikeport.export.nir_graph import NEURONS, Metadata, check_neurons, loops, metadata_of, ordered
from spikeport.targets.loihi import arithmetic as loihi
from spikeport.targets.loihi.convolution import worst_currents
from spikeport.targets.loihi.program import INPUT, LoihiProgram, Population, Shape, Synapse
from spikeport.targets.loihi.synapses import Path, follow, start

#: Of ``LoihiProgram.input_mode``.
INPUT_MODES = ("graded", "host-current")
#: Graded input: 8 bits with sign, symmetric, so that 0 stays 0 and padding stays exact.
INPUT_MAX = 127
#: The fewest steps the largest weight of a layer may keep (4 bits with its sign): below, rounding decides what it says.
FEWEST_STEPS = 8


@dataclass(frozen=True, eq=False)
class Layer:
    """A population to be, with the synapses into it, not yet rounded.

    Attributes:
        name, source, shape: see ``Population``.
        constants: what the neurons do in a step.
        paths: how spikes arrive; their weights are the network's own.
        weights: one per path, float64: the network's times what a current of 1 adds, in the input's integers.
        bias: float64 [C], in the same unit.
        scale: S, the integer steps in a current of 1.
        host: float64 [C], the largest current that the host may add; None where it adds none.
    """

    name: str
    source: str
    shape: Shape
    constants: "Constants"
    paths: tuple[Path, ...]
    weights: tuple[Tensor, ...]
    bias: Tensor
    scale: float
    host: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Network:
    """A NIR graph in layers: what quantisation-aware training trains and ``compile`` rounds.

    Attributes:
        metadata: of the graph.
        input_scale, input_max: see ``LoihiProgram``.
        layers: every one after those that feed it.
        output: name of the layer that sums the class currents.
    """

    metadata: Metadata
    input_scale: float
    input_max: int
    layers: tuple[Layer, ...]
    output: str


def compile(graph: nir.NIRGraph, calibration: np.ndarray | None = None, input_mode: str = "graded") -> LoihiProgram:
    """Compiles a canonical NIR graph with spikeport's metadata.

    Args:
        calibration: real samples [N, C, H, W]; sets the range of the input where the metadata gives none.
        input_mode: see ``LoihiProgram``.

    Raises:
        SpikeportError: a node or a value that Loihi cannot hold, with the layer, the limit and the remedy.
    """
    network = layers(graph, calibration, input_mode)
    metadata = network.metadata
    populations: list[Population] = []
    synapses: list[Synapse] = []
    depth = {INPUT: 0}
    for layer in network.layers:
        others = [path.pre for path in layer.paths if path.pre != layer.name]
        depth[layer.name] = 1 + max((depth[pre] for pre in others), default=0)
        for path, weight in zip(layer.paths, layer.weights, strict=True):
            before = depth[layer.name] - 1
            own = path.pre == layer.name
            pre = path.pre if own else _relayed(path.pre, depth, before, populations, synapses)
            synapses.append(replace(_synapse(layer, path, weight, metadata), pre=pre))
        populations.append(population(layer, depth[layer.name]))
    carried = ("dataset", "mean", "std", "class_names", "readout", "dt")
    return LoihiProgram(
        time_steps=metadata.time_steps,
        input_shape=_shape(metadata.input_shape),
        input_scale=network.input_scale,
        input_max=network.input_max,
        held=metadata.input == "constant",
        input_mode=input_mode,
        populations=tuple(populations),
        synapses=tuple(synapses),
        output=network.output,
        metadata={name: getattr(metadata, name) for name in carried},
    )


def require_input_mode(input_mode: str) -> None:
    if input_mode not in INPUT_MODES:
        raise SpikeportError(f"unknown input {input_mode!r}; available: {', '.join(INPUT_MODES)}")


def layers(graph: nir.NIRGraph, calibration: np.ndarray | None = None, input_mode: str = "graded") -> Network:
    """The layers of a graph, their scales chosen. Arguments and errors as ``compile``."""
    metadata = metadata_of(graph)
    require_input_mode(input_mode)
    host = input_mode == "host-current"
    if host and metadata.input != "constant":
        raise SpikeportError(
            "the host writes biases between samples only, and this input changes within: use `--input graded`"
        )
    input_scale, input_max = _input_range(metadata, calibration)
    values: dict[str, list[Path]] = {}
    found: list[Layer] = []
    output = ""
    recurrent = loops(graph)
    for name, node, before in ordered(graph):
        paths = [path for b in before for path in values[b]]
        if isinstance(node, nir.Input):
            values[name] = [start(INPUT, _shape(metadata.input_shape))]
        elif isinstance(node, (*NEURONS, nir.Output)):
            for chain in recurrent.get(name, []):
                path = start(name, paths[0].shape)
                for link in chain:
                    path = follow(path, link, graph.nodes[link])
                paths.append(path)
            found.append(_layer(name, node, paths, metadata, input_scale, input_max, host))
            values[name] = [start(name, found[-1].shape)]
            output = name if isinstance(node, nir.Output) else output
        else:
            values[name] = [follow(path, name, node, with_bias=k == 0) for k, path in enumerate(paths)]
    if not output:
        raise SpikeportError("the NIR graph has no output")
    return Network(metadata, input_scale, input_max, tuple(found), output)


def _shape(shape: tuple[int, ...]) -> Shape:
    if len(shape) == 1:
        return (shape[0], 1, 1)
    if len(shape) != 3:
        raise SpikeportError(f"input shape {shape}; expected (C, H, W) or (F,)")
    return (shape[0], shape[1], shape[2])


def _input_range(metadata: Metadata, calibration: np.ndarray | None) -> tuple[float, int]:
    """What a graded input of 1 stands for, and the largest one. Spikes and small whole numbers enter as they are."""
    if metadata.input_bound is not None:
        return metadata.input_bound / INPUT_MAX, INPUT_MAX
    if calibration is None or len(calibration) == 0:
        raise SpikeportError("the range of the input is unknown; give real samples with --calibration X.npy")
    if not np.isfinite(calibration).all():
        raise SpikeportError("the calibration samples hold NaN or infinity")
    top = float(np.abs(calibration).max())
    if top <= INPUT_MAX and not np.any(calibration % 1):
        return 1.0, max(int(top), 1)
    return top / INPUT_MAX, INPUT_MAX


def _layer(
    name: str, node: Any, paths: list[Path], metadata: Metadata, input_scale: float, input_max: int, host: bool
) -> Layer:
    if not paths:
        raise SpikeportError(f"{name}: nothing feeds these neurons")
    shapes = {path.shape for path in paths}
    if len(shapes) != 1:
        raise SpikeportError(f"{name}: its inputs have the shapes {sorted(shapes)}; they must agree")
    constants = Constants()
    if isinstance(node, NEURONS):
        shape = paths[0].shape
        flat = np.ndim(node.v_threshold) == 1
        check_neurons(name, node, (int(np.prod(shape)),) if flat else shape)
        constants = _neuron_constants(name, node, shape, metadata.dt)
    gain, offset = (torch.as_tensor(value, dtype=torch.float64) for value in (constants.gain, constants.offset))
    gains = gain.reshape(-1, 1, 1, 1)
    weights = [path.weight * gains * (input_scale if path.pre == INPUT and not host else 1.0) for path in paths]
    hosted = [host and path.pre == INPUT for path in paths]
    currents = torch.stack([path.bias for path in paths]).sum(0)
    if np.any(constants.loss_u < 1) and currents.any():
        raise SpikeportError(
            f"{name}: a bias on synapses into CubaLIF neurons decays with their current, which Loihi's bias does not "
            "do; train without bias"
        )
    bias = currents * gain + offset
    if not all(bool(values.isfinite().all()) for values in (*weights, bias)):
        raise SpikeportError(f"{name}: its weights or bias hold NaN or infinity")
    numbers = [weight.detach().numpy() for weight in weights]
    most: np.ndarray | None = None
    if any(hosted):
        if np.any(constants.loss_u < 1):
            raise SpikeportError(f"{name}: its currents decay, which a bias of the host does not; use `--input graded`")
        sums = [np.abs(w).sum((1, 2, 3)) for w, on_host in zip(numbers, hosted, strict=True) if on_host]
        most = np.sum(sums, axis=0) * input_scale * input_max
    on_chip = [
        (w, (-input_max, input_max) if path.pre == INPUT else (0, 1))
        for w, path, on_host in zip(numbers, paths, hosted, strict=True)
        if not on_host
    ]
    scale = largest_scale(
        name,
        [w for w, _ in on_chip],
        [values for _, values in on_chip],
        bias.detach().numpy(),
        constants,
        metadata.time_steps,
        most,
    )
    biases = bias.detach().numpy()
    _require_steps(name, [w for w, _ in on_chip], biases, scale, constants, metadata.time_steps)
    source = metadata.layers.get(name, name)
    return Layer(name, source, shapes.pop(), constants, tuple(paths), tuple(weights), bias, scale, most)


def population(layer: Layer, depth: int) -> Population:
    """A layer's neurons in integers."""
    constants, scale = layer.constants, layer.scale
    mant, exponent = quantise_bias(
        layer.bias.detach().numpy() * scale, None if layer.host is None else layer.host * scale
    )
    if constants.threshold is None:
        vth: Values = loihi.VTH_NEVER
    else:
        # Where v stays on the grid of the weights, the next lower integer keeps ">" exact.
        on_grid = constants.on_grid and layer.host is None and not np.any((mant << exponent) % (1 << loihi.SHIFT))
        vth = np.floor(constants.threshold * scale) if on_grid else np.rint(constants.threshold * scale)
    return Population(
        name=layer.name,
        source=layer.source,
        shape=layer.shape,
        du=_register(np.maximum(np.rint(constants.loss_u * loihi.DECAY_ONE) - 1, 0)),
        dv=_register(np.minimum(np.rint(constants.loss_v * loihi.DECAY_ONE), loihi.DECAY_ONE - 1)),
        vth=_register(vth),
        bias_mant=mant,
        bias_exp=exponent,
        scale=scale,
        depth=depth,
        spiking=constants.threshold is not None,
    )


def _register(values: Any) -> int | np.ndarray:
    """Whole numbers as ``Population`` holds them."""
    return int(values) if np.ndim(values) == 0 else np.asarray(values).astype(np.int32)


def _synapse(layer: Layer, path: Path, weight: Tensor, metadata: Metadata) -> Synapse:
    first = path.names[0] if path.names else path.pre
    # A layer over a sum of spikes is one synapse from each of them.
    shared = sum(other.names[:1] == path.names[:1] for other in layer.paths) > 1
    host = layer.host is not None and path.pre == INPUT
    scaled = weight.detach() * layer.scale
    return Synapse(
        name=f"{path.pre}__{first}__{layer.name}" if shared and path.names else f"{first}__{layer.name}",
        source=metadata.layers.get(path.names[0], path.names[0]) if path.names else "",
        pre=path.pre,
        post=layer.name,
        weight=(scaled * (1 << loihi.SHIFT) if host else torch.round(scaled).to(torch.int8)).numpy(),
        stride=path.stride,
        padding=path.padding,
        groups=path.groups,
        links=_links(path),
        host=host,
    )


def _links(path: Path) -> np.ndarray | None:
    """See ``Synapse.links``: what the network's own weights leave out, not what rounding to 8 bits makes zero."""
    connected = path.weight.detach().numpy().any(axis=(2, 3))
    if connected.all():
        return None
    return connected.reshape(path.groups, -1, connected.shape[1]).sum(1).ravel().astype(np.int64)


#: One number for a map of neurons, or float64 [C] where its channels differ.
Values = float | np.ndarray


@dataclass(frozen=True, eq=False)
class Constants:
    """A neuron node per step: what u and v lose, what a current of 1 adds, all measured from the reset.

    Attributes:
        loss_u, loss_v: shares of u and v lost in a step (loss_u = 1: no current memory).
        gain: of the synaptic current.
        offset: what v_leak adds to v.
    """

    loss_u: Values = 1.0
    loss_v: Values = 0.0
    gain: Values = 1.0
    threshold: Values | None = None
    offset: Values = 0.0

    @property
    def on_grid(self) -> bool:
        """Whether v only ever holds sums of weights and biases: nothing leaks, or nothing stays (tau = 1).

        At tau = 1 that is the network's v. On the chip dv ends at 4095 of 4096, so 1/4096 of v stays, cut off towards
        zero: nothing of less than 64 weight steps, and less than 32 steps of the most that v can hold.
        """
        return bool(np.all(self.loss_u == 1) and np.isin(self.loss_v, (0.0, 1.0)).all())

    def build_up(self, steps: int) -> Values:
        """What ``steps`` currents of 1 add up to in the membrane."""
        u: Values = 0.0
        v: Values = 0.0
        for _ in range(steps):
            u = u * (1 - self.loss_u) + 1
            v = v * (1 - self.loss_v) + u
        return v


def _neuron_constants(name: str, node: Any, shape: Shape, dt: float) -> Constants:
    def read(field: str) -> Values:
        values = np.asarray(getattr(node, field), np.float64)
        if not np.isfinite(values).all():
            raise SpikeportError(f"{name}: its {field} is not finite; export it again")
        if len(np.unique(values)) == 1:
            return float(values.flat[0])
        channels = values.reshape(shape[0], -1)
        if np.ptp(channels, axis=1).any():
            raise SpikeportError(f"{name}: {field} differs between neurons of a channel; only channels may differ")
        return channels[:, 0]

    def loss(field: str) -> Values:
        with np.errstate(divide="ignore"):
            share = dt / np.asarray(read(field))
        if not np.all((share > 0) & (share <= 1 + 1e-9)):
            raise SpikeportError(f"{name}: {field} is {np.min(read(field)) / dt:.4g} steps; at least 1 is needed")
        return np.minimum(share, 1.0)

    r, reset = read("r"), read("v_reset")
    threshold = read("v_threshold") - reset
    if np.any(threshold <= 0):
        raise SpikeportError(f"{name}: its threshold is not above its reset")
    if isinstance(node, nir.IF):
        return Constants(gain=r * dt, threshold=threshold)
    leak = read("v_leak") - reset
    if isinstance(node, nir.LIF):
        lost = loss("tau")
        return Constants(loss_v=lost, gain=r * lost, threshold=threshold, offset=leak * lost)
    lost_u, lost = loss("tau_syn"), loss("tau_mem")
    return Constants(lost_u, lost, read("w_in") * lost_u * r * lost, threshold, leak * lost)


def largest_scale(
    name: str,
    weights: list[np.ndarray],
    inputs: list[tuple[int, int]],
    bias: np.ndarray,
    constants: Constants,
    steps: int,
    host: np.ndarray | None = None,
) -> float:
    """The largest S for which all of these hold:

    - |w * S| <= 127;
    - threshold * S <= 131071 (17 bits), and whole where v leaves the grid of the weights: rounding the threshold then
      costs nothing (of several thresholds in a layer, the lowest);
    - |bias * S| * 64 <= 4095 << 7 (mantissa 13 bits, exponent at most 7);
    - ``reach`` <= 131071: u cannot wrap and v cannot saturate, whatever the input.

    Args:
        weights: per synapse [C, ...]; inputs: the smallest and the largest value that enters each.
        host: see ``Layer``; it counts like a bias.

    Raises:
        SpikeportError: all weights are zero, or the threshold ends below 1.
    """
    threshold = constants.threshold
    top = max((float(np.abs(w).max(initial=0.0)) for w in weights), default=0.0)
    most = 0.0 if host is None else host
    bias_top = float(np.max(np.abs(bias) + most))
    if top == 0 and not np.any(most):
        raise SpikeportError(f"{name}: all of its weights are zero, so it has no scale; remove the layer")
    scale = loihi.WEIGHT_MAX / top if top else np.inf
    if threshold is not None:
        scale = min(scale, loihi.VTH_MAX / float(np.max(threshold)))
    if bias_top > 0:
        # Two roundings, of the bias and of the host's current, may add up to one mantissa step.
        mantissa = loihi.BIAS_MANT_MAX - (host is not None)
        scale = min(scale, (mantissa << loihi.BIAS_EXP_MAX) / (bias_top * (1 << loihi.SHIFT)))
    while True:
        if threshold is not None:
            lowest = float(np.min(threshold))
            if lowest * scale < 1:
                raise SpikeportError(
                    f"{name}: at the scale its weights allow ({scale:.3g}) the threshold becomes "
                    f"{lowest * scale:.3g} < 1; train with smaller weights or a larger threshold"
                )
            if not constants.on_grid or host is not None:
                scale = np.floor(lowest * scale * (1 + 1e-12)) / lowest
        integers = [np.rint(w * scale) for w in weights]
        excess = reach(integers, inputs, bias * scale, constants, scale, steps, most * scale) / loihi.CURRENT_MAX
        if excess <= 1:
            return float(scale)
        scale /= max(excess, 1.0005)


def _require_steps(
    name: str, weights: list[np.ndarray], bias: np.ndarray, scale: float, constants: Constants, steps: int
) -> None:
    """Refuses a scale at which the weights vanish in rounding, unless they are whole numbers there."""
    scaled = [w * scale for w in weights if w.any()]
    integers = [np.rint(w) for w in scaled]
    top = max((np.abs(w).max() for w in integers), default=np.inf)
    exact = all(np.abs(w - i).max() <= 1e-6 * np.abs(w).max() for w, i in zip(scaled, integers, strict=True))
    if top >= FEWEST_STEPS or exact:
        return
    threshold = constants.threshold
    if threshold is not None and float(np.max(threshold)) * scale > loihi.VTH_MAX / 2:
        limit, remedy = f"its threshold must stay <= {loihi.VTH_MAX}", "train with a smaller threshold"
    elif np.abs(bias).max() * scale > (bias_max := loihi.BIAS_MANT_MAX << loihi.BIAS_EXP_MAX >> loihi.SHIFT) / 2:
        limit, remedy = f"its bias must stay <= {bias_max}", "train with smaller biases"
    else:
        limit = f"bias and currents of {steps} steps must stay <= {loihi.CURRENT_MAX}, whatever the input"
        remedy = "use fewer time steps or fewer inputs"
    raise SpikeportError(
        f"{name}: its largest weight becomes {top:.0f} of {loihi.WEIGHT_MAX}, at least {FEWEST_STEPS} are needed: "
        f"{limit}; {remedy}"
    )


def reach(
    weights: list[np.ndarray],
    inputs: list[tuple[int, int]],
    bias: np.ndarray,
    constants: Constants,
    scale: float,
    steps: int,
    host: Values = 0.0,
) -> float:
    """The largest magnitude that u or v can have in ``steps`` steps, whatever the input, in weight units.

    Upwards, v starts each step at most at the threshold, for above it is reset; downwards it builds up.
    """
    worst = [worst_currents(w, low, high) for w, (low, high) in zip(weights, inputs, strict=True)]
    up, down = np.sum(worst, axis=0) if worst else np.zeros((2, len(bias)))
    build_up = constants.build_up(steps)
    rounding = 1 if np.ndim(host) == 0 else 1 << loihi.BIAS_EXP_MAX >> loihi.SHIFT
    rising, falling = up + host + bias + rounding, down + host - bias + rounding
    if constants.threshold is not None and np.all(constants.loss_u == 1):
        rising = rising + (1 - constants.loss_v) * constants.threshold * scale
    else:
        rising = build_up * rising
    return float(np.max([up, down, rising, build_up * falling]))


def quantise_bias(bias: np.ndarray, host: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """Bias in weight units to mantissas, int32 [C], and their common exponent, the smallest that fits.

    Args:
        host: what else the mantissas must have room for.
    """
    wanted = bias * (1 << loihi.SHIFT)
    room = 0.0 if host is None else host * (1 << loihi.SHIFT)
    for exponent in range(loihi.BIAS_EXP_MAX + 1):
        mant = np.rint(wanted / (1 << exponent))
        largest = np.abs(mant) + np.ceil(room / (1 << exponent))
        if largest.max(initial=0) <= loihi.BIAS_MANT_MAX:
            return mant.astype(np.int32), exponent
    raise SpikeportError(f"a bias of {np.abs(bias).max():.4g} weight steps does not fit 13 bits at exponent 7")


def _relayed(
    pre: str, depth: dict[str, int], wanted: int, populations: list[Population], synapses: list[Synapse]
) -> str:
    """The population that repeats the spikes of ``pre`` at depth ``wanted``: relay neurons, one step each.

    Spikes travel one synapse per step, so branches that join must be equally deep. The input comes from the
    host, which sends it again at any step.
    """
    while pre != INPUT and depth[pre] < wanted:
        name = f"{pre}_relay"
        if name not in depth:
            source = next(p for p in populations if p.name == pre)
            channels = source.shape[0]
            depth[name] = depth[pre] + 1
            neuron = {"du": loihi.NO_CURRENT_MEMORY, "dv": loihi.DECAY_ONE - 1, "vth": 1}
            fields: dict[str, Any] = {"source": "", "bias_exp": 0, "scale": 2.0, **neuron}
            bias = np.zeros(channels, np.int32)
            populations.append(replace(source, name=name, depth=depth[name], bias_mant=bias, **fields))
            weight = np.full((channels, 1, 1, 1), 2, np.int8)
            synapses.append(Synapse(f"{pre}__{name}", "", pre, name, weight, groups=channels))
        pre = name
    return pre
