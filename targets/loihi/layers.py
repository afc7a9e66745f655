"""A NIR graph as layers: populations with the synapses into them and one scale each, not yet rounded."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import nir
import numpy as np
import torch
from torch import Tensor

from spikeport.core.errors import SpikeportError
from spikeport.core.geometry import Shape
from spikeport.export.nir_graph import Metadata, metadata_of
from spikeport.export.nir_nodes import NEURONS, loops, ordered
from spikeport.export.signals import map_shape
from spikeport.targets.loihi.constants import Constants, constants_of
from spikeport.targets.loihi.program import INPUT, INPUT_MAX, INPUT_MODES, batch
from spikeport.targets.loihi.scales import CoarseInput, largest_scale, require_steps
from spikeport.targets.loihi.synapses import Path, follow, start

#: Largest graded inputs to try below 127: 6 and 5 bits beside the sign.
INPUT_RANGES = (63, 31)


@dataclass(frozen=True, eq=False)
class Layer:
    """A population to be, with the synapses into it, not yet rounded.

    Attributes:
        name, source, shape: see ``Population``.
        constants: what the neurons do in a step.
        paths: how spikes arrive; their weights are the network's own.
        weights: one per path, float64: the network's times what a current of 1 adds, in the input's integers.
        bias: float64 [C], or [C, H, W] where it differs within maps, in the same unit.
        scale: S, the integer steps in a current of 1.
        host: float64 [C], the largest current that the host may add; None where it adds none.
    """

    name: str
    source: str
    shape: Shape
    constants: Constants
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
        input_shape: channels, height, width.
        input_scale, input_max: see ``LoihiProgram``.
        layers: every one after those that feed it.
        output: name of the layer that sums the class currents.
    """

    metadata: Metadata
    input_shape: Shape
    input_scale: float
    input_max: int
    layers: tuple[Layer, ...]
    output: str


class InputRange(NamedTuple):
    """What a graded input of 1 stands for, and the largest one; ``host``: it arrives as biases."""

    scale: float
    most: int
    host: bool = False


def require_input_mode(input_mode: str) -> None:
    """Raises SpikeportError for one that is not of ``INPUT_MODES``."""
    if input_mode not in INPUT_MODES:
        raise SpikeportError(f"unknown input {input_mode!r}; available: {', '.join(INPUT_MODES)}")


def layers(graph: nir.NIRGraph, given: InputRange) -> Network:
    """The layers of a graph, their scales chosen. Errors as of ``compile``.

    The input has the largest range at which the layers that take it keep half as many steps for their weights: both
    share the room of a current, and what either loses in rounding is lost. Where none does, the smallest.
    """
    metadata = metadata_of(graph)
    bound = given.scale * given.most
    # A scale of 1 would say that the input is whole numbers.
    ranges = [given.most, *(n for n in INPUT_RANGES if given.most == INPUT_MAX and bound != n)]
    *larger, smallest = (InputRange(given.scale * (given.most / n), n, given.host) for n in ranges)
    for fewer in larger:
        with suppress(CoarseInput):
            return _layers(graph, metadata, fewer, balanced=True)
    return _layers(graph, metadata, smallest)


def _layers(graph: nir.NIRGraph, metadata: Metadata, arriving: InputRange, balanced: bool = False) -> Network:
    """``layers`` with an input that arrives so; ``balanced`` as of ``require_steps``."""
    input_shape = map_shape(metadata.input_shape)
    values: dict[str, list[Path]] = {}
    found: list[Layer] = []
    output = ""
    recurrent = loops(graph)
    for name, node, before in ordered(graph):
        paths = [path for b in before for path in values[b]]
        if isinstance(node, nir.Input):
            values[name] = [start(INPUT, input_shape)]
        elif isinstance(node, (*NEURONS, nir.Output)):
            if name == INPUT:
                raise SpikeportError(
                    f"{name}: a {type(node).__name__} node of this name, which Loihi's programs keep for the network's "
                    "input; rename the node"
                )
            for chain in recurrent.get(name, []) if paths else []:
                path = start(name, paths[0].shape)
                for link in chain:
                    path = follow(path, link, graph.nodes[link])
                paths.append(path)
            found.append(_layer(name, node, paths, metadata, arriving, balanced))
            values[name] = [start(name, found[-1].shape)]
            output = name if isinstance(node, nir.Output) else output
        else:
            if not paths:
                raise SpikeportError(f"{name} ({type(node).__name__}): nothing feeds it; leave it out, with its bias")
            values[name] = [follow(path, name, node, with_bias=k == 0) for k, path in enumerate(paths)]
    if not output:
        raise SpikeportError("the NIR graph has no output")
    return Network(metadata, input_shape, arriving.scale, arriving.most, tuple(found), output)


def input_range(metadata: Metadata, calibration: np.ndarray | None) -> InputRange:
    """What the metadata say, or real samples show. Spikes and small whole numbers enter as they are.

    Raises:
        SpikeportError: the metadata gives no range, and the samples are not there, not the network's, not finite or 0.
    """
    if metadata.input_bound is not None:
        return InputRange(metadata.input_bound / INPUT_MAX, INPUT_MAX)
    if calibration is None or calibration.size == 0:
        raise SpikeportError("the range of the input is unknown; give real samples with --calibration X.npy")
    steps = None if metadata.input == "constant" else metadata.time_steps
    values = batch(calibration, map_shape(metadata.input_shape), steps, "calibration", "network").astype(np.float64)
    if not np.isfinite(values).all():
        raise SpikeportError("the calibration samples hold NaN or infinity")
    top = float(np.abs(values).max())
    if top == 0:
        raise SpikeportError("the calibration samples are all 0, which gives the input no range; give real samples")
    if top < INPUT_MAX and not np.any(values % 1):
        return InputRange(1.0, max(int(top), 2 if values.min() < 0 else 1))  # -1 is no spike: a range of 1 would say so
    return InputRange(top / INPUT_MAX, INPUT_MAX)


def _layer(name: str, node: Any, paths: list[Path], metadata: Metadata, arriving: InputRange, balanced: bool) -> Layer:
    """Neurons, or the integrators of the output, with the paths into them."""
    shape = _common_shape(name, paths)
    constants = Constants()
    if isinstance(node, NEURONS):
        constants = constants_of(name, node, shape, metadata.dt, metadata.spike_condition == ">=")
    biases = _biases(name, paths, constants)
    gain = torch.as_tensor(constants.gain, dtype=torch.float64).reshape(-1, 1, 1, 1)
    from_input = [path.pre == INPUT for path in paths]
    factors = [arriving.scale if first and not arriving.host else 1.0 for first in from_input]
    weights = [path.weight * gain * factor for path, factor in zip(paths, factors, strict=True)]
    if not all(bool(values.isfinite().all()) for values in (*weights, biases)):
        raise SpikeportError(f"{name}: its weights or bias hold NaN or infinity")

    numbers = [weight.detach().numpy() for weight in weights]
    ends = torch.stack([biases.amin((1, 2)), biases.amax((1, 2))]).detach().numpy()
    on_host = [first and arriving.host for first in from_input]
    most: np.ndarray | None = None
    if any(on_host):
        if np.any(constants.loss_u < 1):
            raise SpikeportError(f"{name}: its currents decay, which a bias of the host does not; use `--input graded`")
        sums = [np.abs(w).sum((1, 2, 3)) for w, hosted in zip(numbers, on_host, strict=True) if hosted]
        most = np.sum(sums, axis=0) * arriving.scale * arriving.most
    on_chip = [w for w, hosted in zip(numbers, on_host, strict=True) if not hosted]
    ranges = [(-arriving.most, arriving.most) if first else (0, 1) for first in from_input]
    inputs = [values for values, hosted in zip(ranges, on_host, strict=True) if not hosted]
    scale = largest_scale(name, on_chip, inputs, ends, constants, metadata.time_steps, most)
    require_steps(name, on_chip, inputs, ends, scale, constants, metadata.time_steps, balanced)
    source = metadata.layers.get(name, name)
    bias = biases if any(path.bias.ndim == 3 for path in paths) else biases[:, 0, 0]
    return Layer(name, source, shape, constants, tuple(paths), tuple(weights), bias, scale, most)


def _biases(name: str, paths: list[Path], constants: Constants) -> Tensor:
    """What every step adds to the neurons: the paths' biases and the neurons' own offset, [C, H, W] or [C, 1, 1]."""
    maps = [path.bias if path.bias.ndim == 3 else path.bias[:, None, None] for path in paths]
    currents = torch.stack(torch.broadcast_tensors(*maps)).sum(0)
    if np.any(constants.loss_u < 1) and currents.any():
        raise SpikeportError(
            f"{name}: a bias on synapses into CubaLIF neurons decays with their current, which Loihi's bias does not "
            "do; train without bias"
        )
    gain, offset = (torch.as_tensor(value, dtype=torch.float64) for value in (constants.gain, constants.offset))
    return currents * gain.reshape(-1, 1, 1) + offset.reshape(-1, 1, 1)


def _common_shape(name: str, paths: list[Path]) -> Shape:
    if not paths:
        raise SpikeportError(f"{name}: nothing feeds these neurons")
    shapes = {path.shape for path in paths}
    if len(shapes) != 1:
        raise SpikeportError(f"{name}: its inputs have the shapes {sorted(shapes)}; they must agree")
    return shapes.pop()
