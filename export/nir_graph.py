"""The canonical graph as NIR: writing, reading, and the metadata NIR has no place for.

NIR says neither T nor dt, nor how spikes are read out, so these travel as one JSON string in the graph's
metadata under ``spikeport``.
"""

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor

from spikeport.core.errors import SpikeportError, reason
from spikeport.core.files import replacing, tuples
from spikeport.core.functional import whole_steps
from spikeport.core.geometry import pair
from spikeport.export import expressions as ex
from spikeport.export.trace import Traced

#: One time step in seconds. snnTorch reads no other.
DT = 1e-4
KEY = "spikeport"
NEURONS = (nir.LIF, nir.IF, nir.CubaLIF)
FORMAT = 1


@dataclass(frozen=True)
class Metadata:
    """What a reader must know beside the graph.

    Attributes:
        time_steps: T.
        dt: seconds per step; tau in the graph is tau (steps) * dt.
        input: "constant" (a tensor held for T steps) or "sequence" (one per step).
        input_shape: of one sample.
        input_bound: the largest magnitude of a normalised input, or None where unknown.
        layers: node -> the layer of the PyTorch model it comes from.
        dataset, mean, std, class_names: how samples were normalised and what the classes are called.
        readout: how outputs become a prediction.
        spike_condition: the model fires at h >= v_threshold. NIR fires at >, so the file holds the next
            smaller float32.
    """

    time_steps: int
    dt: float = DT
    input: str = "constant"
    input_shape: tuple[int, ...] = ()
    input_bound: float | None = None
    layers: dict[str, str] = field(default_factory=dict)
    dataset: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    class_names: tuple[str, ...] = ()
    readout: str = "mean of the class currents over T steps"
    spike_condition: str = ">="
    format: int = FORMAT


def nir_threshold(v_threshold: float) -> float:
    """The NIR threshold (fires at >) of a neuron that fires at >= ``v_threshold``.

    The step is one float32 (a float64 step would vanish in float32 readers).
    """
    return float(np.nextafter(np.float32(v_threshold), np.float32(-np.inf)))


def build_nir(traced: Traced, metadata: Metadata) -> tuple[nir.NIRGraph, dict[ex.Node, str]]:
    """The canonical NIR graph of a traced model, and the name of every node in it.

    The graph carries ``metadata`` with its ``layers`` filled in; the argument itself stays as it is.
    """
    names: dict[ex.Node, str] = {}
    nodes: dict[str, nir.NIRNode] = {}
    edges: list[tuple[str, str]] = []

    def flattened(node: ex.Node) -> str:
        name = f"{emit(node)}_flatten"
        if name not in nodes:
            nodes[name] = nir.Flatten({"input": np.array(node.shape)}, start_dim=0)
            edges.append((names[node], name))
        return name

    def emit(node: ex.Node) -> str:
        if node not in names:
            before = [flattened(p) if node.flat and not p.flat else emit(p) for p in node.inputs]
            name = _unique(node, nodes)
            nodes[name] = _nir_node(node)
            edges.extend((parent, name) for parent in before)
            names[node] = name
        return names[node]

    emit(traced.input)
    head = _head(traced.output)
    nodes["output"] = nir.Output({"output": np.array([int(np.prod(head.shape))])})
    edges.append((emit(head) if head.flat else flattened(head), "output"))
    _refuse_unused(traced, names)

    layers = {name: node.source for node, name in names.items() if not isinstance(node, ex.Input)}
    value = asdict(metadata) | {"layers": layers}
    # nir's own check rejects grouped convolutions (it compares the input with weight.shape[1]) and kernels that are not
    # square (it takes one side for both).
    convolutions = [n for n in nodes.values() if isinstance(n, nir.Conv2d)]
    known = all(n.groups == 1 and n.weight.shape[2] == n.weight.shape[3] for n in convolutions)
    graph = nir.NIRGraph(nodes, edges, metadata={KEY: json.dumps(value)}, type_check=known)
    return graph, names


def _head(output: ex.Signal) -> ex.Node:
    """The one node before the output. Readers do not sum what enters an output, so a sum passes weights of 1 first."""
    if not all(term.whole for term in output.terms):
        raise SpikeportError("the output is a concatenation; end the model with one classifier")
    heads = ex.distinct(output.nodes)
    if len(heads) == 1:
        return heads[0]
    ones = torch.eye(int(np.prod(output.shape)), dtype=torch.float64)
    return ex.Linear("sum", heads, (len(ones), 1, 1), ones, ones.new_zeros(len(ones)), flat=True)


def _refuse_unused(traced: Traced, names: dict[ex.Node, str]) -> None:
    for layer, signal in traced.observed:
        if any(node not in names for node in signal.nodes):
            raise SpikeportError(f"{layer}: the output does not depend on all of its spikes; leave out the rest")


def _unique(node: ex.Node, taken: dict[str, nir.NIRNode]) -> str:
    base = node.source.replace(".", "_").replace("/", "_") or "node"  # HDF5 takes "/" for a folder
    if isinstance(node, ex.Pool):
        base += "_mean"
    name, number = base, 1
    while name in taken or name == "output":
        number += 1
        name = f"{base}_{number}"
    return name


def _nir_node(node: ex.Node) -> nir.NIRNode:
    shape = (int(np.prod(node.shape)),) if node.flat else node.shape
    if isinstance(node, ex.Input):
        return nir.Input({"input": np.array(shape)})
    if isinstance(node, ex.Conv):
        return nir.Conv2d(
            input_shape=node.inputs[0].shape[1:],
            weight=_array(node.weight),
            stride=node.stride,
            padding=node.padding,
            dilation=node.dilation,
            groups=node.groups,
            bias=_array(node.bias),
        )
    if isinstance(node, ex.Linear):
        return nir.Affine(_array(node.weight), _array(node.bias))
    if isinstance(node, ex.Pool):
        return nir.AvgPool2d(np.array(node.kernel), np.array(node.stride), np.array(node.padding))
    assert isinstance(node, ex.Neuron)
    full = lambda value: np.full(shape, value, dtype=np.float64)  # noqa: E731
    if math.isinf(node.tau):
        return nir.IF(
            r=full(node.gain / DT), v_threshold=full(nir_threshold(node.v_threshold)), v_reset=full(node.v_reset)
        )
    return nir.LIF(
        tau=full(node.tau * DT),
        r=full(1.0 if node.gain == 1 / node.tau else node.gain * node.tau),
        v_leak=full(node.v_reset),
        v_threshold=full(nir_threshold(node.v_threshold)),
        v_reset=full(node.v_reset),
    )


def _array(tensor: Tensor) -> Any:
    """What a file holds; a tensor that carries gradients stays one, for quantisation-aware training."""
    return tensor if tensor.requires_grad else tensor.numpy()


def write_nir(graph: nir.NIRGraph, path: Path | str) -> None:
    """Writes a NIR file (HDF5)."""
    with replacing(path) as temporary:
        nir.write(str(temporary), graph)


def read_nir(path: Path | str) -> nir.NIRGraph:
    """Raises SpikeportError where the file is missing, damaged, or not NIR."""
    path = Path(path)
    if not path.is_file():
        raise SpikeportError(f"{path}: no such file; `spikeport export RUN --target nir` writes one")
    try:
        return nir.read(str(path), type_check=False)
    except Exception as error:  # h5py and nir raise many kinds for a damaged file
        raise SpikeportError(
            f"{path}: damaged, truncated or not a NIR file ({reason(error)}); export it again"
        ) from None


def metadata_of(graph: nir.NIRGraph) -> Metadata:
    """Raises SpikeportError where the graph does not carry ours."""
    text = graph.metadata.get(KEY)
    if text is None:
        raise SpikeportError("the NIR graph has no spikeport metadata (T, dt, input); export it with spikeport")
    try:
        value: dict[str, Any] = json.loads(text)
        if value["format"] != FORMAT:
            raise SpikeportError(f"the NIR graph's metadata has format {value['format']}, this version reads {FORMAT}")
        return Metadata(**tuples(value))
    except (TypeError, ValueError, KeyError) as error:
        raise SpikeportError(f"the NIR graph's spikeport metadata is damaged ({error}); export it again") from None


def with_metadata(graph: nir.NIRGraph, time_steps: int, dt: float = DT, sequence: bool = False) -> nir.NIRGraph:
    """Another framework's graph with what it cannot say of itself: T, dt, and how samples enter.

    A graph that carries our metadata keeps it; graphs within another's take their place in it.

    Raises:
        SpikeportError: no single input or output.
    """
    if KEY in graph.metadata:
        return graph
    graph = _flat(graph)
    first, last = _only(graph, nir.Input, "the NIR graph"), _only(graph, nir.Output, "the NIR graph")
    for source, target in graph.edges:
        if source == last or target == first:
            raise SpikeportError(f"the NIR graph has an edge {source} -> {target}, out of its output or into its input")
    time_steps = whole_steps(time_steps)
    if not (dt > 0 and math.isfinite(dt)):
        raise SpikeportError(f"dt is {dt}; a positive number of seconds is needed")
    shape = tuple(int(n) for n in np.ravel(graph.nodes[first].input_type["input"]))
    metadata = Metadata(time_steps, dt, "sequence" if sequence else "constant", shape, spike_condition=">")
    nodes = {name: _padded(name, n) if isinstance(n, nir.Conv2d) else n for name, n in graph.nodes.items()}
    return nir.NIRGraph(
        nodes, graph.edges, metadata={**graph.metadata, KEY: json.dumps(asdict(metadata))}, type_check=False
    )


def _only(graph: nir.NIRGraph, kind: type[nir.NIRNode], where: str) -> str:
    """The name of its one node of a kind."""
    found = [name for name, node in graph.nodes.items() if isinstance(node, kind)]
    if len(found) != 1:
        raise SpikeportError(f"{where} has {len(found)} {kind.__name__.lower()}s; exactly one is supported")
    return found[0]


def _flat(graph: nir.NIRGraph) -> nir.NIRGraph:
    """The same graph with what the graphs within it hold in their place, each node called graph.node."""
    nodes, edges = {n: node for n, node in graph.nodes.items() if not isinstance(node, nir.NIRGraph)}, [*graph.edges]
    for name, node in graph.nodes.items():
        if isinstance(node, nir.NIRGraph):
            inner = _flat(node)
            first, last = _only(inner, nir.Input, name), _only(inner, nir.Output, name)
            before = [source for source, target in edges if target == name]
            after = [target for source, target in edges if source == name]
            # What enters and leaves the inner graph meets what enters and leaves its place.
            ends = {first: before, last: after}
            nodes |= {f"{name}.{n}": part for n, part in inner.nodes.items() if n not in ends}
            edges = [edge for edge in edges if name not in edge]
            for link in inner.edges:
                sources, targets = (ends.get(n, [f"{name}.{n}"]) for n in link)
                edges += [(source, target) for source in sources for target in targets]
    return nir.NIRGraph(nodes, edges, metadata=graph.metadata, type_check=False)


def _padded(name: str, node: nir.Conv2d) -> nir.Conv2d:
    """The same convolution with its padding in numbers."""
    if not isinstance(node.padding, (str, bytes)):
        return node
    word = node.padding.decode() if isinstance(node.padding, bytes) else str(node.padding)
    kernel, dilation = node.weight.shape[2:], pair(node.dilation)
    reach = [d * (k - 1) if word == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
    if word not in ("same", "valid") or any(r % 2 for r in reach) or (any(reach) and pair(node.stride) != (1, 1)):
        raise SpikeportError(
            f"{name}: padding {word!r} with kernel {kernel} and stride {pair(node.stride)} has no exact form; "
            "export it with padding in numbers"
        )
    node = copy.copy(node)
    node.padding = (reach[0] // 2, reach[1] // 2)
    return node


def _check_numbers(name: str, node: nir.NIRNode, *fields: str) -> None:
    for field_name in fields:
        value = getattr(node, field_name, 0)
        if not isinstance(value, Tensor) and np.asarray(value).dtype.kind not in "biuf":
            raise SpikeportError(f"{name}: its {field_name} is {str(value)!r}, which is no number; export it again")


def check_synapses(name: str, node: nir.NIRNode) -> None:
    """Raises SpikeportError where weights, biases or the geometry of a node are none."""
    geometry = {"kernel_size": 1, "stride": 1, "dilation": 1, "groups": 1, "padding": 0}
    _check_numbers(name, node, "weight", "bias", "scale", *geometry)
    weight, bias = getattr(node, "weight", None), getattr(node, "bias", None)
    axes = 4 if isinstance(node, nir.Conv2d) else 2
    if weight is not None and (np.ndim(weight) != axes or 0 in np.shape(weight)):
        raise SpikeportError(f"{name}: its weights have the shape {tuple(np.shape(weight))}; {axes} axes are needed")
    if weight is not None and bias is not None and tuple(np.shape(bias)) != (len(weight),):
        raise SpikeportError(f"{name}: {len(weight)} outputs, a bias of shape {tuple(np.shape(bias))}; export it again")
    for field_name, least in geometry.items():
        value = np.asarray(getattr(node, field_name, least))
        whole = not (value % 1).any() and (value >= least).all()
        if not whole or value.shape not in ((), (1,), (2,)):
            raise SpikeportError(f"{name}: its {field_name} is {value.tolist()}; whole numbers from {least} are needed")


def check_neurons(name: str, node: nir.NIRNode, shape: tuple[int, ...]) -> None:
    """Raises SpikeportError where a neuron node's arrays do not suit a map of ``shape``."""
    fields = ("tau", "tau_syn", "tau_mem", "w_in", "r", "v_leak", "v_threshold", "v_reset")
    _check_numbers(name, node, *fields)
    for field_name in fields:
        found = np.shape(getattr(node, field_name, 0.0))
        if found not in ((), (1,), tuple(shape)):
            raise SpikeportError(
                f"{name}: its {field_name} has shape {found}, the map it receives has {tuple(shape)}; export it again"
            )


def loops(graph: nir.NIRGraph) -> dict[str, list[tuple[str, ...]]]:
    """The recurrent connections: neurons -> chains of stateless nodes that lead from them back to themselves.

    Their spikes return one step later, as NIR has it.
    """
    after: dict[str, list[str]] = {name: [] for name in graph.nodes}
    entering: dict[str, int] = dict.fromkeys(graph.nodes, 0)
    for source, target in graph.edges:
        if source not in after or target not in after:
            raise SpikeportError(f"the NIR graph has an edge {source} -> {target} to a node it does not hold")
        after[source].append(target)
        entering[target] += 1
    found: dict[str, list[tuple[str, ...]]] = {}
    for name in (n for n, node in graph.nodes.items() if isinstance(node, NEURONS)):
        for first in after[name]:
            chain = [first]
            while not isinstance(graph.nodes[chain[-1]], (*NEURONS, nir.Output)) and len(after[chain[-1]]) == 1:
                if entering[chain[-1]] != 1 or after[chain[-1]][0] in chain:
                    break
                chain.append(after[chain[-1]][0])
            if chain[-1] == name and len(chain) > 1:
                found.setdefault(name, []).append(tuple(chain[:-1]))
    return found


def ordered(graph: nir.NIRGraph) -> Iterator[tuple[str, nir.NIRNode, list[str]]]:
    """Every node after those that feed it, with their names; what ``loops`` gives is left out.

    Raises:
        SpikeportError: dangling edges, or a cycle that is no recurrent connection of one layer.
    """
    recurrent = {name for chains in loops(graph).values() for chain in chains for name in chain}
    before: dict[str, list[str]] = {name: [] for name in graph.nodes if name not in recurrent}
    for source, target in graph.edges:
        if source not in recurrent and target not in recurrent:
            before[target].append(source)
    done: set[str] = set()
    while len(done) < len(before):
        ready = [name for name in before if name not in done and done.issuperset(before[name])]
        if not ready:
            stuck = sorted(set(before) - done)
            raise SpikeportError(
                f"the NIR graph has a cycle through {', '.join(stuck[:3])}; only a layer that feeds itself is supported"
            )
        for name in ready:
            yield name, graph.nodes[name], before[name]
        done.update(ready)
