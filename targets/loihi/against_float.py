"""The float network beside its integers: the same images, spike for spike, layer by layer."""

from dataclasses import asdict, dataclass, replace
from functools import cached_property

import nir
import numpy as np
import torch
from torch import nn

from spikeport.core.errors import SpikeportError
from spikeport.core.neurons import LIF
from spikeport.core.processes import check_processes
from spikeport.core.progress import Progress, silent
from spikeport.core.runs import WEIGHTS_FILE, Run
from spikeport.export.foreign import adopted, is_sequence
from spikeport.export.nir_graph import Metadata, build_nir, graph_digest
from spikeport.export.signals import Node
from spikeport.export.trace import Traced, deployed, trace
from spikeport.export.verify import assembled, observe, of_other_weights
from spikeport.targets.loihi.fixed import simulate_fixed
from spikeport.targets.loihi.processes import in_parts
from spikeport.targets.loihi.program import LoihiProgram
from spikeport.targets.record import SpikeRecord, joined

#: Samples whose spike maps are held at once.
BATCH = 32


@dataclass(frozen=True)
class LayerDifference:
    """A spiking layer of the model over all samples and steps.

    Attributes:
        neurons: how many neuron-steps there are.
        float_spikes, fixed_spikes: spikes of the model and of its integers.
        differing: neuron-steps at which only one of the two spikes.
    """

    layer: str
    neurons: int
    float_spikes: int
    fixed_spikes: int
    differing: int

    @property
    def share(self) -> float:
        return self.differing / self.neurons


def require_own(run: Run, program: LoihiProgram) -> None:
    """Raises SpikeportError where a program was compiled from other weights than a run's.

    One that does not say which (a version before this wrote it, or it is of a model that was no run) passes.
    """
    if of_other_weights(program.metadata.get("weights_sha256"), run):
        raise _foreign(run)


def own_model(model: nn.Module, shape: tuple[int, ...], program: LoihiProgram) -> nn.Module:
    """A copy, in our layers, of a model that is no run and that ``program`` was compiled from.

    Args:
        model: a spiking one, of ours, of SpikingJelly or of snnTorch.
        shape: of the samples, [N, ...] or [T, N, ...].

    Raises:
        SpikeportError: another model.
    """
    found = adopted(deployed(model), shape, program.time_steps)
    name = type(model).__name__
    if not any(isinstance(m, LIF) for m in found.modules()):
        raise SpikeportError(f"{name} has no spiking neurons; give the SNN that was exported")
    sample = shape[2:] if is_sequence(shape) else shape[1:]
    graph, _, _ = _graph_of(found, sample)
    known = program.metadata.get("graph_sha256")
    of_a_run = program.metadata.get("weights_sha256") is not None
    if (known is None and of_a_run) or known not in (None, graph_digest(graph)):
        raise SpikeportError(
            f"{name}: the program was compiled from another network (other layers, neurons, weights, another precision "
            "or form of the input); give the model that was exported, or export and simulate this one"
        )
    return found


def _graph_of(model: nn.Module, shape: tuple[int, ...]) -> tuple[nir.NIRGraph, Traced, dict[Node, str]]:
    traced = trace(model, shape)
    kind = "constant" if traced.constant_input else "sequence"
    graph, names = build_nir(traced, Metadata(traced.time_steps, input=kind, input_shape=shape))
    return graph, traced, names


def in_precision(x: np.ndarray, model: nn.Module) -> np.ndarray:
    """Samples in the precision of the model's weights."""
    double = any(p.dtype == torch.float64 for p in model.parameters())
    return x.astype(np.float64 if double else np.float32)


def _foreign(source: Run | nn.Module) -> SpikeportError:
    if not isinstance(source, Run):
        return SpikeportError(f"{type(source).__name__}: the program was compiled from another network")
    return SpikeportError(
        f"{source.path}: its program was compiled from other weights than {WEIGHTS_FILE} has now; `spikeport export "
        f"{source.path} --target loihi --overwrite` compiles these, if they are whole"
    )


@dataclass(frozen=True)
class _Pair:
    """The float model and its integers, for any part of the samples, each of ``shape``."""

    source: Run | nn.Module
    program: LoihiProgram
    shape: tuple[int, ...]

    @cached_property
    def model(self) -> tuple[nn.Module, Traced, dict[Node, str]]:
        """With its graph and the names of that graph's nodes. Raises SpikeportError where the program is another's."""
        if isinstance(self.source, Run):
            require_own(self.source, self.program)
            model = self.source.model().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        else:
            model = self.source  # whose code may ask for the layout it was written for
        _, traced, names = _graph_of(model, self.shape)
        known = {p.name for p in self.program.populations}
        needed = {names[term.node] for _, signal in traced.observed for term in signal.terms}
        if not needed <= known or traced.time_steps != self.program.time_steps:
            raise _foreign(self.source)
        return model, traced, names

    def __call__(self, x: np.ndarray, rasters: int) -> tuple[SpikeRecord, list[list[int]], np.ndarray]:
        """The fixed engine's record of samples, what ``LayerDifference`` counts of each layer, the model's classes."""
        model, traced, names = self.model
        record = simulate_fixed(self.program, x, rasters=x.shape[0 if self.program.held else 1])
        spikes = {name: maps.swapaxes(0, 1) for name, maps in record.rasters.items()}
        # NumPy counts bools far faster.
        seen, logits = observe(model, traced, in_precision(x, model), lambda fired: fired != 0)
        counts = []
        for (_, signal), expected in zip(traced.observed, seen, strict=True):
            found = assembled(signal, names, spikes).reshape(expected.shape)
            spiking = (expected, found, found != expected)
            counts.append([expected.size, *(int(np.count_nonzero(maps)) for maps in spiking)])
        kept = {name: maps[:rasters].copy() for name, maps in record.rasters.items()} if rasters else {}
        return replace(record, rasters=kept), counts, logits.argmax(1)


def against_float(
    source: Run | nn.Module,
    program: LoihiProgram,
    x: np.ndarray,
    labels: np.ndarray | None = None,
    rasters: int = 0,
    progress: Progress = silent,
    processes: int = 1,
) -> SpikeRecord:
    """``simulate_fixed`` of real samples [N, ...] or [T, N, ...], with the float model in PyTorch beside it.

    Args:
        source: the run, or its model in our layers (``own_model``), that the program was compiled from.

    Returns:
        The record. Its details have JSON values under "against_float": ``samples``; ``float_accuracy`` and
        ``fixed_accuracy`` (None without classes); ``same_class``, the share of samples that both put into one class;
        ``first_difference``, the first layer, in the order they run, whose spikes differ, or None; ``layers``, see
        ``LayerDifference`` (``share`` is differing / neurons).

    Raises:
        SpikeportError: as ``simulate_fixed``; the program is another network's.
    """
    check_processes(processes)
    program.quantise(x)  # for its errors
    axis = 0 if program.held else 1
    pair = _Pair(source, program, x.shape[axis + 1 :])
    _, traced, _ = pair.model
    processes = min(processes, x.shape[axis])
    # Each of several processes traces the model itself: what is sent to them must be little.
    work = pair if processes == 1 else replace(pair, source=replace(source) if isinstance(source, Run) else source)
    found = in_parts(work, x, axis, BATCH, rasters, processes, progress)
    parts, counts, classes = zip(*found, strict=True)
    record = replace(joined(list(parts)), labels=labels)
    sums = np.sum(counts, axis=0).tolist()
    layers = [LayerDifference(layer, *row) for (layer, _), row in zip(traced.observed, sums, strict=True)]
    float_class = np.concatenate(classes)
    compared = {
        "samples": x.shape[axis],
        "float_accuracy": None if labels is None else float((float_class == labels).mean()),
        "fixed_accuracy": record.accuracy,
        "same_class": float((float_class == record.outputs.argmax(1)).mean()),
        "first_difference": next((layer.layer for layer in layers if layer.differing), None),
        "layers": [asdict(layer) | {"share": layer.share} for layer in layers],
    }
    return replace(record, details=record.details | {"against_float": compared})
