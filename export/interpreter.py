"""Runs a NIR graph in float64 with NumPy alone: the reference every exported file is held against."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from spikeport.core.errors import SpikeportError
from spikeport.core.geometry import Pair, pair
from spikeport.export.nir_graph import Metadata, metadata_of, model_threshold
from spikeport.export.nir_nodes import NEURONS, check_neurons, check_synapses, loops, ordered

#: Samples that run at once: float64 maps of more of them leave the cache, and fill gigabytes.
BATCH = 8


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What the interpreter saw.

    Attributes:
        spikes: neuron node -> bool [T, N, ...].
        margins: neuron node -> membrane before the spike minus the threshold of the file, [T, N, ...]
            (only where asked for).
        outputs: class currents, float64 [T, N, K].
    """

    spikes: dict[str, np.ndarray]
    margins: dict[str, np.ndarray]
    outputs: np.ndarray

    @property
    def prediction(self) -> np.ndarray:
        return self.outputs.mean(0)


def interpret(graph: nir.NIRGraph, x: np.ndarray, margins: bool = False, as_model: bool = False) -> Trajectory:
    """Runs samples through the graph, forward Euler with the metadata's dt.

    Args:
        x: [N, ...], held for T steps where the metadata says "constant", else [T, N, ...].
        margins: keep how far every membrane was from its threshold.
        as_model: fire where the exported model does (at >= its threshold) rather than where the file says (above the
            next smaller float32): in float64 membranes can lie between the two, about one in 1e7 does.

    Raises:
        SpikeportError: a node the interpreter does not know, or samples of another shape.
    """
    metadata = metadata_of(graph)
    steps = metadata.time_steps
    held = metadata.input == "constant"
    x = np.asarray(x, np.float64)
    sample_shape = x.shape[1:] if held else x.shape[2:]
    if sample_shape != tuple(metadata.input_shape):
        raise SpikeportError(f"samples have shape {sample_shape}, the graph takes {tuple(metadata.input_shape)}")
    if not held and len(x) != steps:
        raise SpikeportError(f"the input has {len(x)} steps, the graph runs {steps}")

    axis = 0 if held else 1
    spikes: dict[str, np.ndarray] = {}
    kept: dict[str, np.ndarray] = {}
    outputs = []
    for start in range(0, max(x.shape[axis], 1), BATCH):
        part = _interpret(graph, metadata, np.split(x, [start, start + BATCH], axis)[1], margins, as_model)
        outputs.append(part.outputs)
        for maps, whole in ((part.spikes, spikes), (part.margins, kept)):
            for name, found in maps.items():
                if not start:
                    whole[name] = np.empty((steps, x.shape[axis], *found.shape[2:]), found.dtype)
                whole[name][:, start : start + BATCH] = found
    return Trajectory(spikes, kept, np.concatenate(outputs, 1))


def _interpret(graph: nir.NIRGraph, metadata: Metadata, x: np.ndarray, margins: bool, as_model: bool) -> Trajectory:
    steps, held = metadata.time_steps, metadata.input == "constant"
    # A held value has a time axis of length 1: what depends on the input alone is computed once.
    values: dict[str, np.ndarray] = {}
    spikes: dict[str, np.ndarray] = {}
    kept: dict[str, np.ndarray] = {}
    output = None
    recurrent = loops(graph)
    for name, node, before in ordered(graph):
        if isinstance(node, nir.Input):
            values[name] = x[None] if held else x
            continue
        if not before:
            raise SpikeportError(f"{name} ({type(node).__name__}): nothing feeds it")
        shapes = {values[b].shape[2:] for b in before}
        if len(shapes) != 1:
            raise SpikeportError(f"{name}: its inputs have the shapes {sorted(shapes)}; they must agree")
        total = sum((values[b] for b in before[1:]), values[before[0]])
        if isinstance(node, NEURONS):
            check_neurons(name, node, total.shape[2:])
            chains = [[(link, graph.nodes[link]) for link in chain] for chain in recurrent.get(name, [])]
            threshold = node.v_threshold
            if as_model and metadata.spike_condition == ">=":
                # v >= t is v > the next smaller float64.
                threshold = np.nextafter(model_threshold(threshold), -np.inf)
            spikes[name], margin = _neuron(node, threshold, total, steps, metadata.dt, chains)
            values[name] = spikes[name].astype(np.float64)
            if margins:
                kept[name] = margin
        elif isinstance(node, nir.Output):
            output = np.broadcast_to(total, (steps, *total.shape[1:]))
        else:
            result = _stateless(name, node, total.reshape(-1, *total.shape[2:]))
            values[name] = result.reshape(*total.shape[:2], *result.shape[1:])
    if output is None:
        raise SpikeportError("the NIR graph has no output")
    return Trajectory(spikes, kept, output)


def _stateless(name: str, node: nir.NIRNode, x: np.ndarray) -> np.ndarray:
    if type(node) not in STATELESS:
        known = ", ".join(kind.__name__ for kind in (*NEURONS, *STATELESS))
        raise SpikeportError(f"{name}: the interpreter does not know {type(node).__name__}; it knows {known}")
    check_synapses(name, node)
    try:
        return STATELESS[type(node)](node, x)
    except ValueError as error:
        shape = x.shape[1:]
        raise SpikeportError(f"{name} ({type(node).__name__}): does not take {shape} ({error})") from None


def _neuron(
    node: Any,
    threshold: np.ndarray,
    current: np.ndarray,
    steps: int,
    dt: float,
    chains: list[list[tuple[str, nir.NIRNode]]],
) -> tuple[np.ndarray, np.ndarray]:
    """NIR's definitions, forward Euler: spike at v > v_threshold, then v = v_reset.

    LIF: tau dv/dt = v_leak - v + r x. IF: dv/dt = r x. CubaLIF: tau_syn dI/dt = -I + w_in x, then
    tau_mem dv/dt = v_leak - v + r I. ``chains``: what the spikes of the step before pass to come back.
    """
    shape = current.shape[1:]
    v = np.broadcast_to(node.v_reset, shape).astype(np.float64)
    synaptic = np.zeros(shape)
    spikes = np.empty((steps, *shape), bool)
    margins = np.empty(spikes.shape)
    last = np.zeros(shape)
    for t in range(steps):
        now = current[min(t, len(current) - 1)]
        for chain in chains:
            returned = last
            for name, link in chain:
                returned = _stateless(name, link, returned)
            if returned.size != last.size:
                raise SpikeportError(f"{name}: brings {returned.shape[1:]} back to neurons of {shape[1:]}")
            now = now + returned.reshape(shape)
        if isinstance(node, nir.CubaLIF):
            synaptic = synaptic + dt / node.tau_syn * (-synaptic + node.w_in * now)
            v = v + dt / node.tau_mem * (node.v_leak - v + node.r * synaptic)
        elif isinstance(node, nir.LIF):
            v = v + dt / node.tau * (node.v_leak - v + node.r * now)
        else:
            v = v + dt * node.r * now
        margins[t] = v - threshold
        spikes[t] = v > threshold
        v = np.where(spikes[t], node.v_reset, v)
        last = spikes[t].astype(np.float64)
    return spikes, margins


def _windows(x: np.ndarray, kernel: Pair, node: nir.NIRNode, dilation: Pair) -> np.ndarray:
    """Views [N, C, oH, oW, kH, kW] of a zero-padded map."""
    (ph, pw), (sh, sw), (dh, dw) = pair(node.padding), pair(node.stride), dilation
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    reach = (dh * (kernel[0] - 1) + 1, dw * (kernel[1] - 1) + 1)
    return sliding_window_view(x, reach, axis=(2, 3))[:, :, ::sh, ::sw, ::dh, ::dw]


def _conv2d(node: nir.Conv2d, x: np.ndarray) -> np.ndarray:
    out, per_group, kh, kw = node.weight.shape
    windows = _windows(x, (kh, kw), node, pair(node.dilation))
    n, channels, height, width = windows.shape[:4]
    groups = int(node.groups)
    if channels != per_group * groups:
        raise SpikeportError(f"a convolution takes {per_group * groups} channels, is given {channels}")
    columns = windows.reshape(n, groups, per_group, height, width, kh, kw).transpose(1, 0, 3, 4, 2, 5, 6)
    columns = columns.reshape(groups, n * height * width, per_group * kh * kw)
    weight = node.weight.reshape(groups, out // groups, -1).transpose(0, 2, 1)
    result = (columns @ weight).reshape(groups, n, height, width, out // groups)
    result = result.transpose(1, 0, 4, 2, 3).reshape(n, out, height, width)
    return result + np.asarray(node.bias).reshape(1, -1, 1, 1)


def _avg_pool(node: nir.AvgPool2d, x: np.ndarray) -> np.ndarray:
    return _windows(x, pair(node.kernel_size), node, (1, 1)).mean((4, 5))


def _sum_pool(node: nir.SumPool2d, x: np.ndarray) -> np.ndarray:
    return _windows(x, pair(node.kernel_size), node, (1, 1)).sum((4, 5))


def _scale(node: nir.Scale, x: np.ndarray) -> np.ndarray:
    return x * np.broadcast_to(node.scale, x.shape[1:])


def _linear(node: nir.Linear, x: np.ndarray) -> np.ndarray:
    return x @ node.weight.T


def _flatten(node: nir.Flatten, x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)


def _affine(node: nir.Affine, x: np.ndarray) -> np.ndarray:
    return x @ node.weight.T + node.bias


#: node type -> its map from [M, ...] to [M, ...]
STATELESS: dict[type, Callable[..., np.ndarray]] = {
    nir.Conv2d: _conv2d,
    nir.AvgPool2d: _avg_pool,
    nir.SumPool2d: _sum_pool,
    nir.Scale: _scale,
    nir.Linear: _linear,
    nir.Flatten: _flatten,
    nir.Affine: _affine,
}
