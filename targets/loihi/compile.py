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
from spikeport.targets.loihi.program import INPUT, LoihiProgram, Population, Shape, Synapse
from spikeport.targets.loihi.synapses import Path, follow, start

#: Graded input: 8 bits with sign, symmetric, so that 0 stays 0 and padding stays exact.
INPUT_MAX = 127


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
    """

    name: str
    source: str
    shape: Shape
    constants: "Constants"
    paths: tuple[Path, ...]
    weights: tuple[Tensor, ...]
    bias: Tensor
    scale: float


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


def compile(graph: nir.NIRGraph, calibration: np.ndarray | None = None) -> LoihiProgram:
    """Compiles a canonical NIR graph with spikeport's metadata.

    Args:
        calibration: real samples [N, C, H, W]; sets the range of the input where the metadata gives none.

    Raises:
        SpikeportError: a node or a value that Loihi cannot hold, with the layer, the limit and the remedy.
    """
    network = layers(graph, calibration)
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
        populations=tuple(populations),
        synapses=tuple(synapses),
        output=network.output,
        metadata={name: getattr(metadata, name) for name in carried},
    )


def layers(graph: nir.NIRGraph, calibration: np.ndarray | None = None) -> Network:
    """The layers of a graph, their scales chosen. Arguments and errors as ``compile``."""
    metadata = metadata_of(graph)
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
            found.append(_layer(name, node, paths, metadata, input_scale, input_max))
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


def _layer(name: str, node: Any, paths: list[Path], metadata: Metadata, input_scale: float, input_max: int) -> Layer:
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
        constants = _neuron_constants(name, node, metadata.dt)
    weights = [path.weight * constants.gain * (input_scale if path.pre == INPUT else 1.0) for path in paths]
    largest = [input_max if path.pre == INPUT else 1 for path in paths]
    currents = torch.stack([path.bias for path in paths]).sum(0)
    if constants.loss_u < 1 and currents.any():
        raise SpikeportError(
            f"{name}: a bias on synapses into CubaLIF neurons decays with their current, which Loihi's bias does not "
            "do; train without bias"
        )
    bias = currents * constants.gain + constants.offset
    if not all(bool(values.isfinite().all()) for values in (*weights, bias)):
        raise SpikeportError(f"{name}: its weights or bias hold NaN or infinity")
    numbers = [weight.detach().numpy() for weight in weights]
    build_up = constants.build_up(metadata.time_steps)
    scale = largest_scale(name, numbers, largest, bias.detach().numpy(), constants.threshold, build_up)
    source = metadata.layers.get(name, name)
    return Layer(name, source, shapes.pop(), constants, tuple(paths), tuple(weights), bias, scale)


def population(layer: Layer, depth: int) -> Population:
    """A layer's neurons in integers."""
    constants, scale = layer.constants, layer.scale
    mant, exponent = quantise_bias(layer.bias.detach().numpy() * scale)
    if constants.threshold is None:
        vth = loihi.VTH_NEVER
    else:
        # Where v stays on the grid of the weights, the next lower integer keeps ">" exact.
        keeps = constants.loss_u == 1 and constants.loss_v in (0.0, 1.0)
        on_grid = keeps and not np.any((mant << exponent) % (1 << loihi.SHIFT))
        vth = int(np.floor(constants.threshold * scale)) if on_grid else int(np.rint(constants.threshold * scale))
    return Population(
        name=layer.name,
        source=layer.source,
        shape=layer.shape,
        du=max(round(constants.loss_u * loihi.DECAY_ONE) - 1, 0),
        dv=min(round(constants.loss_v * loihi.DECAY_ONE), loihi.DECAY_ONE - 1),
        vth=vth,
        bias_mant=mant,
        bias_exp=exponent,
        scale=scale,
        depth=depth,
        spiking=constants.threshold is not None,
    )


def _synapse(layer: Layer, path: Path, weight: Tensor, metadata: Metadata) -> Synapse:
    return Synapse(
        name=f"{path.names[0] if path.names else path.pre}__{layer.name}",
        source=metadata.layers.get(path.names[0], path.names[0]) if path.names else "",
        pre=path.pre,
        post=layer.name,
        weight=torch.round(weight.detach() * layer.scale).to(torch.int8).numpy(),
        stride=path.stride,
        padding=path.padding,
        groups=path.groups,
        links=_links(path),
    )


def _links(path: Path) -> np.ndarray | None:
    """See ``Synapse.links``: what the network's own weights leave out, not what rounding to 8 bits makes zero."""
    connected = path.weight.detach().numpy().any(axis=(2, 3))
    if connected.all():
        return None
    return connected.reshape(path.groups, -1, connected.shape[1]).sum(1).ravel().astype(np.int64)


@dataclass(frozen=True)
class Constants:
    """A neuron node per step: what u and v lose, what a current of 1 adds, all measured from the reset.

    Attributes:
        loss_u, loss_v: shares of u and v lost in a step (loss_u = 1: no current memory).
        gain: of the synaptic current.
        offset: what v_leak adds to v.
    """

    loss_u: float = 1.0
    loss_v: float = 0.0
    gain: float = 1.0
    threshold: float | None = None
    offset: float = 0.0

    def build_up(self, steps: int) -> float:
        """What ``steps`` currents of 1 add up to in the membrane."""
        u = v = 0.0
        for _ in range(steps):
            u = u * (1 - self.loss_u) + 1
            v = v * (1 - self.loss_v) + u
        return v


def _neuron_constants(name: str, node: Any, dt: float) -> Constants:
    def one(field: str) -> float:
        values = np.unique(np.asarray(getattr(node, field), np.float64))
        if len(values) != 1 or not np.isfinite(values[0]):
            raise SpikeportError(f"{name}: {field} differs between neurons or is not finite; Loihi takes one per layer")
        return float(values[0])

    def loss(field: str) -> float:
        share = dt / one(field)
        if not 0 < share <= 1 + 1e-9:
            raise SpikeportError(f"{name}: {field} is {1 / share:.4g} steps; at least 1 is needed")
        return min(share, 1.0)

    r, reset = one("r"), one("v_reset")
    threshold = one("v_threshold") - reset
    if threshold <= 0:
        raise SpikeportError(f"{name}: its threshold is not above its reset")
    if isinstance(node, nir.IF):
        return Constants(gain=r * dt, threshold=threshold)
    leak = one("v_leak") - reset
    if isinstance(node, nir.LIF):
        lost = loss("tau")
        return Constants(loss_v=lost, gain=r * lost, threshold=threshold, offset=leak * lost)
    lost_u, lost = loss("tau_syn"), loss("tau_mem")
    return Constants(lost_u, lost, one("w_in") * lost_u * r * lost, threshold, leak * lost)


def largest_scale(
    name: str,
    weights: list[np.ndarray],
    largest_input: list[int],
    bias: np.ndarray,
    threshold: float | None,
    build_up: float,
) -> float:
    """The largest S for which all of these hold:

    - |w * S| <= 127;
    - threshold * S <= 131071 (17 bits);
    - |bias * S| * 64 <= 4095 << 7 (mantissa 13 bits, exponent at most 7);
    - the worst-case current, sum |w| * largest input, and with the bias and over all steps what it can build up in
      the membrane (``build_up`` times as much), <= 131071: u cannot wrap and v cannot saturate, whatever the input.

    Raises:
        SpikeportError: all weights are zero, or the threshold ends below 1.
    """
    top = max(float(np.abs(w).max(initial=0.0)) for w in weights)
    bias_top = float(np.abs(bias).max())
    if top == 0:
        raise SpikeportError(f"{name}: all of its weights are zero, so it has no scale; remove the layer")
    scale = loihi.WEIGHT_MAX / top
    if threshold is not None:
        scale = min(scale, loihi.VTH_MAX / threshold)
    if bias_top > 0:
        scale = min(scale, (loihi.BIAS_MANT_MAX << loihi.BIAS_EXP_MAX) / (bias_top * (1 << loihi.SHIFT)))
    while True:
        current = sum(
            np.abs(np.rint(w * scale)).sum(axis=(1, 2, 3)) * most
            for w, most in zip(weights, largest_input, strict=True)
        )
        load = build_up * (current + np.abs(bias) * scale + 1)
        excess = float(np.max(load)) / loihi.CURRENT_MAX
        if excess <= 1:
            break
        scale /= max(excess, 1.0005)
    if threshold is not None and threshold * scale < 1:
        raise SpikeportError(
            f"{name}: at the scale its weights allow ({scale:.3g}) the threshold becomes {threshold * scale:.3g} < 1; "
            "train with smaller weights or a larger threshold"
        )
    return scale


def quantise_bias(bias: np.ndarray) -> tuple[np.ndarray, int]:
    """Bias in weight units to mantissas, int32 [C], and their common exponent, the smallest that fits."""
    wanted = bias * (1 << loihi.SHIFT)
    for exponent in range(loihi.BIAS_EXP_MAX + 1):
        mant = np.rint(wanted / (1 << exponent))
        if np.abs(mant).max(initial=0) <= loihi.BIAS_MANT_MAX:
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
            fields: dict[str, Any] = {"source": "", "dv": loihi.DECAY_ONE - 1, "vth": 1, "bias_exp": 0, "scale": 2.0}
            bias = np.zeros(channels, np.int32)
            populations.append(replace(source, name=name, depth=depth[name], bias_mant=bias, **fields))
            weight = np.full((channels, 1, 1, 1), 2, np.int8)
            synapses.append(Synapse(f"{pre}__{name}", "", pre, name, weight, groups=channels))
        pre = name
    return pre
