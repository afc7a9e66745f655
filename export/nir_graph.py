"""The canonical graph as NIR: writing, reading, and the metadata NIR has no place for.

NIR says neither T nor dt, nor how spikes are read out, so these travel as one JSON string in the graph's
metadata under ``spikeport``.
"""

import hashlib
import io
import json
import math
from collections.abc import Collection
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
from spikeport.core.settings import check_types
from spikeport.export.expressions import distinct
from spikeport.export.signals import Conv, Input, Linear, Neuron, Node, Pool, Signal
from spikeport.export.trace import Traced

#: One time step in seconds. snnTorch reads no other.
DT = 1e-4
KEY = "spikeport"
FORMAT = 1
#: Of ``Metadata.input`` and ``Metadata.spike_condition``.
INPUTS, CONDITIONS = ("constant", "sequence"), (">", ">=")


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
        weights_sha256: of the run's weights file it was exported from, None for what is no run.
        graph_sha256: of the network itself, see ``graph_digest``.
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
    weights_sha256: str | None = None
    graph_sha256: str | None = None
    readout: str = "mean of the class currents over T steps"
    spike_condition: str = ">="
    format: int = FORMAT


def nir_threshold(v_threshold: float) -> float:
    """The NIR threshold (fires at >) of a neuron that fires at >= ``v_threshold``.

    The step is one float32 (a float64 step would vanish in float32 readers).
    """
    return float(np.nextafter(np.float32(v_threshold), np.float32(-np.inf)))


def model_threshold(v_threshold: Any) -> np.ndarray:
    """The threshold (fires at >=), float64, whose ``nir_threshold`` is this one."""
    return np.nextafter(np.asarray(v_threshold, np.float32), np.float32(np.inf)).astype(np.float64)


def build_nir(traced: Traced, metadata: Metadata) -> tuple[nir.NIRGraph, dict[Node, str]]:
    """The canonical NIR graph of a traced model, and the name of every node in it.

    The graph carries ``metadata`` with its ``layers`` filled in; the argument itself stays as it is.
    """
    names: dict[Node, str] = {}
    nodes: dict[str, nir.NIRNode] = {}
    edges: list[tuple[str, str]] = []
    flat: dict[str, str] = {}  # node -> the Flatten behind it

    def flattened(node: Node) -> str:
        before = emit(node)
        if before not in flat:
            flat[before] = unique(f"{before}_flatten", {*nodes, "output"})
            nodes[flat[before]] = nir.Flatten({"input": np.array(node.shape)}, start_dim=0)
            edges.append((before, flat[before]))
        return flat[before]

    def emit(node: Node) -> str:
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

    layers = {name: node.source for node, name in names.items() if not isinstance(node, Input)}
    value = asdict(metadata) | {"layers": layers}
    # nir's own check rejects grouped convolutions (it compares the input with weight.shape[1]) and kernels that are not
    # square (it takes one side for both).
    convolutions = [n for n in nodes.values() if isinstance(n, nir.Conv2d)]
    known = all(n.groups == 1 and n.weight.shape[2] == n.weight.shape[3] for n in convolutions)
    graph = nir.NIRGraph(nodes, edges, metadata={KEY: json.dumps(value)}, type_check=known)
    return graph, names


def graph_digest(graph: nir.NIRGraph) -> str:
    """SHA-256 of a network: nodes and their numbers, connections, steps, and how its input enters.

    Numbers count in steps of a millionth of the largest beside them: processors differ in the last digits.
    """
    metadata = metadata_of(graph)
    found = hashlib.sha256(json.dumps([metadata.time_steps, metadata.input, sorted(graph.edges)]).encode())
    for name, node in sorted(graph.nodes.items()):
        found.update(f"{name} {type(node).__name__}".encode())
        for key, value in sorted(vars(node).items()):
            numbers = np.asarray(list(value.values()) if isinstance(value, dict) else value)
            if numbers.dtype.kind == "f":
                top = float(np.abs(numbers).max(initial=0.0))
                found.update(f"{key} {top:.6g} {numbers.shape}".encode())
                found.update(np.rint(numbers / (top or 1.0) * 2**20).astype(np.int32).tobytes())
            else:
                found.update(f"{key} {numbers.tolist()}".encode())
    return found.hexdigest()


def signed(graph: nir.NIRGraph) -> nir.NIRGraph:
    """The graph, whose metadata has its digest."""
    value = json.loads(graph.metadata[KEY]) | {"graph_sha256": graph_digest(graph)}
    graph.metadata[KEY] = json.dumps(value)
    return graph


def _head(output: Signal) -> Node:
    """The one node before the output. Readers do not sum what enters an output, so a sum passes weights of 1 first."""
    if not all(term.whole for term in output.terms):
        raise SpikeportError("the output joins or slices what layers give; end the model with one classifier")
    heads = distinct(output.nodes)
    if len(heads) == 1:
        return heads[0]
    ones = torch.eye(int(np.prod(output.shape)), dtype=torch.float64)
    return Linear("sum", heads, (len(ones), 1, 1), ones, ones.new_zeros(len(ones)), flat=True)


def _refuse_unused(traced: Traced, names: dict[Node, str]) -> None:
    for layer, signal in traced.observed:
        if any(node not in names for node in signal.nodes):
            raise SpikeportError(f"{layer}: the output does not depend on all of its spikes; leave out the rest")


def _unique(node: Node, taken: dict[str, nir.NIRNode]) -> str:
    base = node.source.replace(".", "_").replace("/", "_") or "node"  # HDF5 takes "/" for a folder
    if isinstance(node, Pool):
        base += "_mean"
    return unique(base, {*taken, "output"})


def unique(base: str, taken: Collection[str]) -> str:
    """The name itself, or numbered where it is taken."""
    name, number = base, 1
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    return name


def _nir_node(node: Node) -> nir.NIRNode:
    shape = (int(np.prod(node.shape)),) if node.flat else node.shape
    if isinstance(node, Input):
        return nir.Input({"input": np.array(shape)})
    if isinstance(node, Conv):
        return nir.Conv2d(
            input_shape=node.inputs[0].shape[1:],
            weight=_array(node.weight),
            stride=node.stride,
            padding=node.padding,
            dilation=node.dilation,
            groups=node.groups,
            bias=_array(node.bias),
        )
    if isinstance(node, Linear):
        return nir.Affine(_array(node.weight), _array(node.bias))
    if isinstance(node, Pool):
        return nir.AvgPool2d(np.array(node.kernel), np.array(node.stride), np.array(node.padding))
    assert isinstance(node, Neuron)
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
    file = io.BytesIO()  # in memory: the library for HDF5 ends the process where it meets a full disk
    nir.write(file, graph)
    with replacing(path) as temporary:
        temporary.write_bytes(file.getvalue())


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
        metadata = Metadata(**tuples(value))
        _check(metadata)
    except (TypeError, ValueError, KeyError, OverflowError, RecursionError) as error:
        raise SpikeportError(f"the NIR graph's spikeport metadata is damaged ({error}); export it again") from None
    return metadata


def _check(metadata: Metadata) -> None:
    """Raises ValueError, naming the field, where a file's metadata holds what a reader cannot use."""
    try:
        check_types(metadata)
        whole_steps(metadata.time_steps)
    except SpikeportError as error:
        raise ValueError(error) from None
    for name, legal, expected in (
        ("dt", metadata.dt > 0, "a positive number of seconds"),
        ("input", metadata.input in INPUTS, " or ".join(INPUTS)),
        ("input_bound", metadata.input_bound is None or metadata.input_bound > 0, "a positive number"),
        ("layers", all(isinstance(layer, str) for layer in metadata.layers.values()), "a name for each node"),
        ("spike_condition", metadata.spike_condition in CONDITIONS, " or ".join(CONDITIONS)),
    ):
        if not legal:
            raise ValueError(f"{name} is {getattr(metadata, name)!r}; expected {expected}")
