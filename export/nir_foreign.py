"""NIR graphs of other frameworks: flat, with numbers for padding, and with what NIR does not say of a network."""

import copy
import json
import math
from collections import Counter
from dataclasses import asdict
from typing import Any

import nir
import numpy as np

from spikeport.core.errors import SpikeportError
from spikeport.core.functional import whole_steps
from spikeport.core.geometry import conv_padding, pair
from spikeport.export.nir_graph import DT, KEY, Metadata, unique


def with_metadata(graph: nir.NIRGraph, time_steps: int, dt: float = DT, sequence: bool = False) -> nir.NIRGraph:
    """Another framework's graph with what it cannot say of itself: T, dt, and how samples enter.

    A graph that carries our metadata keeps it; graphs within another's take their place in it.

    Raises:
        SpikeportError: no single input or output.
    """
    if KEY in graph.metadata:
        return graph
    _refuse_duplicates(graph)
    graph = _flat(graph)
    first, last = _only(graph, nir.Input, "the NIR graph"), _only(graph, nir.Output, "the NIR graph")
    for source, target in graph.edges:
        if source == last or target == first:
            raise SpikeportError(f"the NIR graph has an edge {source} -> {target}, out of its output or into its input")
    time_steps = whole_steps(time_steps)
    if not (dt > 0 and math.isfinite(dt)):
        raise SpikeportError(f"dt is {dt}; a positive number of seconds is needed")
    shape = _shape(first, graph.nodes[first].input_type["input"])
    metadata = Metadata(time_steps, dt, "sequence" if sequence else "constant", shape, spike_condition=">")
    nodes = {name: _padded(name, n) if isinstance(n, nir.Conv2d) else n for name, n in graph.nodes.items()}
    return nir.NIRGraph(
        nodes, graph.edges, metadata={**graph.metadata, KEY: json.dumps(asdict(metadata))}, type_check=False
    )


def _refuse_duplicates(graph: nir.NIRGraph) -> None:
    """Raises SpikeportError where the graph, or one within it, has an edge twice, as no NIR graph may."""
    for (source, target), times in Counter(map(tuple, graph.edges)).items():
        if times > 1:
            raise SpikeportError(f"the NIR graph has the edge {source} -> {target} {times} times; export it again")
    for node in graph.nodes.values():
        if isinstance(node, nir.NIRGraph):
            _refuse_duplicates(node)


def _shape(name: str, value: Any) -> tuple[int, ...]:
    """Raises SpikeportError where an input's shape is none."""
    sizes = np.ravel(value)
    if sizes.dtype.kind not in "iuf" or not all(n >= 1 and n % 1 == 0 for n in sizes):
        raise SpikeportError(f"{name}: its shape is {sizes.tolist()}; whole numbers from 1 are needed")
    return tuple(int(n) for n in sizes)


def _only(graph: nir.NIRGraph, kind: type[nir.NIRNode], where: str) -> str:
    """The name of its one node of a kind."""
    found = [name for name, node in graph.nodes.items() if isinstance(node, kind)]
    if len(found) != 1:
        raise SpikeportError(f"{where} has {len(found)} {kind.__name__.lower()}s; exactly one is supported")
    return found[0]


def _flat(graph: nir.NIRGraph) -> nir.NIRGraph:
    """The same graph with what the graphs within it hold in their place, each node called graph.node, or numbered."""
    nodes, edges = {n: node for n, node in graph.nodes.items() if not isinstance(node, nir.NIRGraph)}, [*graph.edges]
    for name, node in graph.nodes.items():
        if isinstance(node, nir.NIRGraph):
            inner = _flat(node)
            first, last = _only(inner, nir.Input, name), _only(inner, nir.Output, name)
            before = [source for source, target in edges if target == name]
            after = [target for source, target in edges if source == name]
            # What enters and leaves the inner graph meets what enters and leaves its place.
            ends = {first: before, last: after}
            for n in (n for n in inner.nodes if n not in ends):
                ends[n] = [unique(f"{name}.{n}", {*nodes, *graph.nodes})]
                nodes[ends[n][0]] = inner.nodes[n]
            edges = [edge for edge in edges if name not in edge]
            for link in inner.edges:
                sources, targets = (ends[n] for n in link)
                edges += [(source, target) for source in sources for target in targets]
    return nir.NIRGraph(nodes, edges, metadata=graph.metadata, type_check=False)


def _padded(name: str, node: nir.Conv2d) -> nir.Conv2d:
    """The same convolution with its padding in numbers."""
    if not isinstance(node.padding, (str, bytes)):
        return node
    word = node.padding.decode() if isinstance(node.padding, bytes) else str(node.padding)
    kernel, dilation = pair(node.weight.shape[2:]), pair(node.dilation)
    if word not in ("same", "valid") or (word == "same" and pair(node.stride) != (1, 1)):
        raise SpikeportError(
            f"{name}: padding {word!r} with kernel {kernel} and stride {pair(node.stride)} has no exact form; "
            "export it with padding in numbers"
        )
    before, behind = conv_padding(word, kernel, dilation)
    node = copy.copy(node)
    node.padding = behind
    if before != behind:  # as many zeros before as behind, and a tap of zero that takes the one too many
        weight = np.asarray(node.weight)
        more = [b - a for a, b in zip(before, behind, strict=True)]
        size = [d * (k - 1) + 1 + m for d, k, m in zip(dilation, kernel, more, strict=True)]
        node.weight = np.zeros((*weight.shape[:2], *size), weight.dtype)
        node.weight[:, :, more[0] :: dilation[0], more[1] :: dilation[1]] = weight
        node.dilation = (1, 1)
    return node
