"""The float network beside its integers: the same images, spike for spike, layer by layer."""

from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import nn

from spikeport.core.errors import SpikeportError
from spikeport.core.processes import check_processes
from spikeport.core.progress import Progress, silent
from spikeport.core.runs import WEIGHTS_FILE, Run
from spikeport.export.nir_graph import Metadata, build_nir
from spikeport.export.signals import Node
from spikeport.export.trace import Traced, trace
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


def _foreign(run: Run) -> SpikeportError:
    return SpikeportError(
        f"{run.path}: its program was compiled from other weights than {WEIGHTS_FILE} has now; `spikeport export "
        f"{run.path} --target loihi --overwrite` compiles these, if they are whole"
    )


@dataclass(frozen=True)
class _Pair:
    """The float model of a run and its integers, for any part of the samples."""

    run: Run
    program: LoihiProgram

    @cached_property
    def model(self) -> tuple[nn.Module, Traced, dict[Node, str]]:
        """With its graph and the names of that graph's nodes. Raises SpikeportError where the program is another's."""
        require_own(self.run, self.program)
        model = self.run.model().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        traced = trace(model, self.run.data.image_shape)
        _, names = build_nir(traced, Metadata(traced.time_steps, input_shape=self.run.data.image_shape))
        known = {p.name for p in self.program.populations}
        needed = {names[term.node] for _, signal in traced.observed for term in signal.terms}
        if not needed <= known or traced.time_steps != self.program.time_steps:
            raise _foreign(self.run)
        return model, traced, names

    def __call__(self, x: np.ndarray, rasters: int) -> tuple[SpikeRecord, list[list[int]], np.ndarray]:
        """The fixed engine's record of samples, what ``LayerDifference`` counts of each layer, the model's classes."""
        model, traced, names = self.model
        record = simulate_fixed(self.program, x, rasters=len(x))
        spikes = {name: maps.swapaxes(0, 1) for name, maps in record.rasters.items()}
        # NumPy counts bools far faster.
        seen, logits = observe(model, traced, np.asarray(x, np.float32), lambda fired: fired != 0)
        counts = []
        for (_, signal), expected in zip(traced.observed, seen, strict=True):
            found = assembled(signal, names, spikes).reshape(expected.shape)
            spiking = (expected, found, found != expected)
            counts.append([expected.size, *(int(np.count_nonzero(maps)) for maps in spiking)])
        kept = {name: maps[:rasters].copy() for name, maps in record.rasters.items()} if rasters else {}
        return replace(record, rasters=kept), counts, logits.argmax(1)


def against_float(
    run: Run,
    program: LoihiProgram,
    x: np.ndarray,
    labels: np.ndarray | None = None,
    rasters: int = 0,
    progress: Progress = silent,
    processes: int = 1,
) -> SpikeRecord:
    """``simulate_fixed`` of real samples [N, C, H, W], with the run's model (PyTorch, float32) beside it.

    Returns:
        The record. Its details have JSON values under "against_float": ``samples``; ``float_accuracy`` and
        ``fixed_accuracy`` (None without classes); ``same_class``, the share of samples that both put into one class;
        ``first_difference``, the first layer, in the order they run, whose spikes differ, or None; ``layers``, see
        ``LayerDifference`` (``share`` is differing / neurons).

    Raises:
        SpikeportError: as ``simulate_fixed``; the program is not the run's.
    """
    check_processes(processes)
    program.quantise(x)  # for its errors
    pair = _Pair(run, program)
    _, traced, _ = pair.model
    processes = min(processes, len(x))
    # Each of several processes makes the model itself: what is sent to them must be little.
    work = pair if processes == 1 else _Pair(replace(run), program)
    found = in_parts(work, x, 0, BATCH, rasters, processes, progress)
    parts, counts, classes = zip(*found, strict=True)
    record = replace(joined(list(parts)), labels=labels)
    sums = np.sum(counts, axis=0).tolist()
    layers = [LayerDifference(layer, *row) for (layer, _), row in zip(traced.observed, sums, strict=True)]
    float_class = np.concatenate(classes)
    compared = {
        "samples": len(x),
        "float_accuracy": None if labels is None else float((float_class == labels).mean()),
        "fixed_accuracy": record.accuracy,
        "same_class": float((float_class == record.outputs.argmax(1)).mean()),
        "first_difference": next((layer.layer for layer in layers if layer.differing), None),
        "layers": [asdict(layer) | {"share": layer.share} for layer in layers],
    }
    return replace(record, details=record.details | {"against_float": compared})
