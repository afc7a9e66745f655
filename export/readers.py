"""Other frameworks as witnesses: they read our NIR file and run it, and we look at their spikes."""

import contextlib
import io
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor, nn

from spikeport.core.errors import reason
from spikeport.core.hooks import watched
from spikeport.export.logs import quiet
from spikeport.export.nir_graph import Metadata, metadata_of, read_nir
from spikeport.export.nir_nodes import NEURONS


@dataclass(frozen=True, eq=False)
class Reading:
    """Spikes per neuron node, bool [T, N, ...], and class currents [T, N, K], as another framework computed them."""

    spikes: dict[str, np.ndarray]
    outputs: np.ndarray


class CannotRead(Exception):
    """The framework is not installed, or does not take this graph; says which."""


def _run(network: nn.Module, neurons: list[str], x: Tensor, metadata: Metadata) -> Reading:
    """Steps a network built by nirtorch; its sub-modules carry the names of the NIR nodes."""
    seen: dict[str, list[Tensor]] = {name: [] for name in neurons}

    def keep(name: str, output: Any) -> None:
        seen[name].append((output[0] if isinstance(output, tuple) else output) > 0)

    outputs, state = [], None
    with watched([(name, network.get_submodule(name)) for name in neurons], keep), torch.no_grad():
        for t in range(metadata.time_steps):
            current = x if metadata.input == "constant" else x[t]
            result = network(current, state)
            value, state = result if isinstance(result, tuple) else (result, None)
            outputs.append(value)
    spikes = {name: torch.stack(steps).numpy() for name, steps in seen.items()}
    return Reading(spikes, torch.stack(outputs).double().numpy())


def _neurons(graph: nir.NIRGraph) -> list[str]:
    return [name for name, node in graph.nodes.items() if isinstance(node, NEURONS)]


def read_spikingjelly(path: Path, x: np.ndarray) -> Reading:
    """SpikingJelly's importer in float64. Raises CannotRead."""
    graph = read_nir(path)
    metadata = metadata_of(graph)
    with quiet("torch._library.triton"):  # it remarks on every machine without a GPU that Triton is missing
        try:
            from spikingjelly.activation_based import nir_exchange

            network = nir_exchange.import_from_nir(graph, dt=metadata.dt, dtype=torch.float64, step_mode="s")
        except Exception as error:  # another framework's code may raise anything
            raise CannotRead(reason(error)) from error
        return _run(network, _neurons(graph), torch.from_numpy(x).double(), metadata)


def read_snntorch(path: Path, x: np.ndarray) -> Reading:
    """snnTorch's importer in float32. Raises CannotRead.

    Its Flatten does not make room for the batch dimension, so that is shifted here; its neurons reset to 0 only.
    """
    graph = read_nir(path)
    metadata = metadata_of(graph)
    for name, node in graph.nodes.items():
        if isinstance(node, nir.Flatten):
            node.start_dim += 1
        if isinstance(node, nir.LIF) and np.any(node.v_reset):
            raise CannotRead(f"{name}: snnTorch reads v_reset as 0")
        if isinstance(node, nir.IF):
            raise CannotRead(f"{name}: snnTorch reads IF as a leaky neuron")
        if isinstance(node, nir.Conv2d) and int(node.groups) > 1:
            raise CannotRead(f"{name}: snnTorch's importer drops groups")
    try:
        from snntorch.import_nir import import_from_nir

        with contextlib.redirect_stdout(io.StringIO()):
            network = import_from_nir(graph).float().eval()
    except Exception as error:  # as above
        raise CannotRead(reason(error)) from error
    return _run(network, _neurons(graph), torch.from_numpy(x).float(), metadata)


def label(package: str, precision: str) -> str:
    """What a certificate calls a reader: the package, its version where it is installed, its precision."""
    try:
        return f"{package} {version(package)} ({precision})"
    except PackageNotFoundError:
        return f"{package} ({precision})"
