"""From a NIR graph to a Loihi program: its layers rounded to integers, their depths, and relays between them."""

from dataclasses import replace
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor

from spikeport.core.errors import SpikeportError
from spikeport.export.nir_graph import Metadata, metadata_of, unique
from spikeport.targets.loihi import arithmetic as loihi
from spikeport.targets.loihi.constants import Values
from spikeport.targets.loihi.fields import check_fields
from spikeport.targets.loihi.layers import Layer, input_range, layers, require_input_mode
from spikeport.targets.loihi.program import INPUT, LoihiProgram, Population, Synapse
from spikeport.targets.loihi.synapses import Path


def compile(
    graph: nir.NIRGraph,
    calibration: np.ndarray | None = None,
    input_mode: str = "graded",
    bias_exp: int = 0,
) -> LoihiProgram:
    """Compiles a canonical NIR graph with spikeport's metadata.

    Args:
        calibration: real samples [N, C, H, W]; sets the range of the input where the metadata gives none.
        input_mode: see ``LoihiProgram``.
        bias_exp: the least exponent of the biases; at 6 they are whole weight steps.

    Raises:
        SpikeportError: a node or a value that Loihi cannot hold, with the layer, the limit and the remedy.
    """
    metadata = metadata_of(graph)
    require_input_mode(input_mode)
    host = input_mode == "host-current"
    if host and metadata.input != "constant":
        raise SpikeportError(
            "the host writes biases between samples only, and this input changes within: use `--input graded`"
        )
    network = layers(graph, input_range(metadata, calibration)._replace(host=host))
    populations: list[Population] = []
    synapses: list[Synapse] = []
    depth = {INPUT: 0}
    layer_names = {layer.name for layer in network.layers}
    for layer in network.layers:
        others = [path.pre for path in layer.paths if path.pre != layer.name]
        depth[layer.name] = 1 + max((depth[pre] for pre in others), default=0)
        for path, weight in zip(layer.paths, layer.weights, strict=True):
            before = depth[layer.name] - 1
            itself = path.pre == layer.name
            pre = path.pre if itself else _relayed(path.pre, depth, before, populations, synapses, layer_names)
            synapses.append(replace(_synapse(layer, path, weight, metadata), pre=pre))
        populations.append(population(layer, depth[layer.name], bias_exp))
    carried = ("dataset", "mean", "std", "class_names", "readout", "dt", "weights_sha256", "graph_sha256")
    program = LoihiProgram(
        time_steps=metadata.time_steps,
        input_shape=network.input_shape,
        input_scale=network.input_scale,
        input_max=network.input_max,
        held=metadata.input == "constant",
        input_mode=input_mode,
        populations=tuple(populations),
        synapses=_with_layer_names(synapses),
        output=network.output,
        metadata={name: getattr(metadata, name) for name in carried},
    )
    check_fields(program)
    return program


def population(layer: Layer, depth: int, bias_exp: int = 0) -> Population:
    """A layer's neurons in integers; ``bias_exp`` as of ``compile``."""
    constants, scale = layer.constants, layer.scale
    mant, exponent = quantise_bias(
        layer.bias.detach().numpy() * scale, None if layer.host is None else layer.host * scale, bias_exp
    )
    if constants.threshold is None:
        vth: Values = loihi.VTH_NEVER
    else:
        # Where v stays on the grid of the weights, the next lower integer keeps ">" exact.
        whole = (mant << exponent) % (1 << loihi.SHIFT) == 0
        on_grid = constants.on_grid & (layer.host is None) & (whole if whole.ndim == 1 else whole.all((1, 2)))
        wanted = constants.threshold * scale
        vth = np.where(on_grid, np.floor(wanted * (1 + 1e-12)), np.rint(wanted))  # 46 * (127 / 23) is below 254
        if exponent == 0:
            mant = _without_rest(mant, vth, on_grid & np.equal(constants.loss_v, 1))
    return Population(
        name=layer.name,
        source=layer.source,
        shape=layer.shape,
        du=_register(constants.du),
        dv=_register(constants.dv),
        vth=_register(vth),
        bias_mant=mant,
        bias_exp=exponent,
        scale=scale,
        depth=depth,
        spiking=constants.threshold is not None,
    )


def _without_rest(mant: np.ndarray, vth: np.ndarray, memoryless: np.ndarray) -> np.ndarray:
    """Bias mantissas in units of v that take off what at most stays of a v at the threshold: 1/4096 of it.

    What lies on the grid of the weights stays in its step of 64 so, unless v was thousands of steps below 0.
    """
    rest = np.where(memoryless & (vth < 1 << 2 * loihi.SHIFT), vth // (1 << loihi.SHIFT), 0).astype(mant.dtype)
    less = mant - rest.reshape(rest.shape + (1,) * (mant.ndim - 1) if rest.ndim else ())
    return less if less.min(initial=0) >= -loihi.BIAS_MANT_MAX else mant


def _register(values: Any) -> int | np.ndarray:
    """Whole numbers as ``Population`` holds them: one, or one per channel where they differ."""
    found = np.asarray(values).astype(np.int32)
    return found if np.ptp(found) else int(found.flat[0])


def _synapse(layer: Layer, path: Path, weight: Tensor, metadata: Metadata) -> Synapse:
    first = path.names[0] if path.names else path.pre
    # A layer over a sum of spikes is one synapse from each of them.
    shared = sum(other.names[:1] == path.names[:1] for other in layer.paths) > 1
    host = layer.host is not None and path.pre == INPUT
    layers = list(dict.fromkeys(metadata.layers.get(name, name) for name in path.names))
    if len(layers) > 1 and layers[0] == metadata.layers.get(path.pre):  # only passes these spikes on, to the next
        del layers[0]
    scaled = weight.detach() * layer.scale
    return Synapse(
        name=f"{path.pre}__{first}__{layer.name}" if shared and path.names else f"{first}__{layer.name}",
        source=layers[0] if layers else "",
        composed=tuple(layers[1:]),
        pre=path.pre,
        post=layer.name,
        weight=(scaled * (1 << loihi.SHIFT) if host else torch.round(scaled).to(torch.int8)).numpy(),
        stride=path.stride,
        padding=path.padding,
        dilation=path.dilation,
        groups=path.groups,
        links=_links(path),
        host=host,
    )


def _with_layer_names(synapses: list[Synapse]) -> tuple[Synapse, ...]:
    """The same synapses, numbered where several have one name: one layer may reach another along several ways."""
    names: list[str] = []
    for synapse in synapses:
        names.append(unique(synapse.name, names))
    return tuple(replace(synapse, name=name) for synapse, name in zip(synapses, names, strict=True))


def _links(path: Path) -> np.ndarray | None:
    """See ``Synapse.links``: what the network's own weights leave out, not what rounding to 8 bits makes zero."""
    connected = path.weight.detach().numpy().any(axis=(2, 3))
    if connected.all():
        return None
    return connected.reshape(path.groups, -1, connected.shape[1]).sum(1).ravel().astype(np.int64)


def quantise_bias(bias: np.ndarray, host: np.ndarray | None = None, least: int = 0) -> tuple[np.ndarray, int]:
    """Bias in weight units to mantissas, int32 in its shape, and their common exponent, the smallest that fits.

    Args:
        host: what else the mantissas must have room for, [C].
        least: the smallest exponent to take.
    """
    wanted = bias * (1 << loihi.SHIFT)
    room = np.zeros(1) if host is None else host * (1 << loihi.SHIFT)
    room = room.reshape(-1, *[1] * (bias.ndim - 1))
    for exponent in range(least, loihi.BIAS_EXP_MAX + 1):
        mant = np.rint(wanted / (1 << exponent))
        largest = np.abs(mant) + np.ceil(room / (1 << exponent))
        if largest.max(initial=0) <= loihi.BIAS_MANT_MAX:
            return mant.astype(np.int32), exponent
    raise SpikeportError(f"a bias of {np.abs(bias).max():.4g} weight steps does not fit 13 bits at exponent 7")


def _relayed(
    pre: str,
    depth: dict[str, int],
    wanted: int,
    populations: list[Population],
    synapses: list[Synapse],
    layer_names: set[str],
) -> str:
    """The population that repeats the spikes of ``pre`` at depth ``wanted``: relay neurons, one step each.

    Spikes travel one synapse per step, so branches that join must be equally deep. The input comes from the
    host, which sends it again at any step. ``layer_names``: what no relay may be called.
    """
    while pre != INPUT and depth[pre] < wanted:
        name = unique(f"{pre}_relay", layer_names)
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
