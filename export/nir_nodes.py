"""The nodes of a NIR graph: whether each is well formed, and their order.

A file is another's until it is read: nothing in it is taken for granted.
"""

from collections.abc import Iterator

import nir
import numpy as np
from torch import Tensor

from spikeport.core.errors import SpikeportError

NEURONS = (nir.LIF, nir.IF, nir.CubaLIF)


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
        raise SpikeportError(
            f"{name}: its weights have the shape {tuple(np.shape(weight))}; {axes} axes, none empty, are needed"
        )
    if weight is not None and bias is not None and tuple(np.shape(bias)) != (len(weight),):
        raise SpikeportError(f"{name}: {len(weight)} outputs, a bias of shape {tuple(np.shape(bias))}; export it again")
    for field_name, least in geometry.items():
        value = np.asarray(getattr(node, field_name, least))
        whole = not (value % 1).any() and (value >= least).all()
        if not whole or value.shape not in (((),) if field_name == "groups" else ((), (1,), (2,))):
            raise SpikeportError(f"{name}: its {field_name} is {value.tolist()}; whole numbers from {least} are needed")
    groups = int(np.max(getattr(node, "groups", 1)))
    if weight is not None and len(weight) % groups:
        raise SpikeportError(f"{name}: {len(weight)} outputs in {groups} groups; a multiple of {groups} is needed")


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
            for name in stuck:
                if name in before[name]:
                    raise SpikeportError(
                        f"{name} feeds itself directly; put a nir.Linear of its recurrent weights between"
                    )
            way = [stuck[0]]  # backwards, until it comes to a node again
            while way[-1] not in way[:-1]:
                way.append(next(name for name in before[way[-1]] if name not in done))
            cycle = way[way.index(way[-1]) :][::-1]
            raise SpikeportError(
                f"the NIR graph has a cycle, {' -> '.join(cycle)}; only a layer that feeds itself is supported"
            )
        for name in ready:
            yield name, graph.nodes[name], before[name]
        done.update(ready)
