"""The float network beside its integers: the same images, spike for spike, layer by layer."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from spikeport.core.errors import SpikeportError
from spikeport.core.runs import WEIGHTS_FILE, Run
from spikeport.export.nir_graph import Metadata, build_nir
from spikeport.export.trace import trace
from spikeport.export.verify import assembled, observe, of_other_weights
from spikeport.targets.loihi.fixed import simulate_fixed
from spikeport.targets.loihi.program import LoihiProgram

#: Samples whose spike maps are held at once.
BATCH = 16


@dataclass
class LayerDifference:
    """A spiking layer of the model over all samples and steps.

    Attributes:
        neurons: how many neuron-steps there are.
        float_spikes, fixed_spikes: spikes of the model and of its integers.
        differing: neuron-steps at which only one of the two spikes.
    """

    layer: str
    neurons: int = 0
    float_spikes: int = 0
    fixed_spikes: int = 0
    differing: int = 0

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


def against_float(run: Run, program: LoihiProgram, x: np.ndarray, labels: np.ndarray | None) -> dict[str, Any]:
    """Runs the model (PyTorch, float32) and the fixed engine on real samples [N, C, H, W] of classes [N], or None.

    Returns:
        JSON values: ``samples``; ``float_accuracy`` and ``fixed_accuracy`` (None without classes); ``same_class``, the
        share of samples that both put into one class; ``first_difference``, the first layer, in the order they run,
        whose spikes differ, or None; ``layers``, see ``LayerDifference`` (``share`` is differing / neurons).

    Raises:
        SpikeportError: the program is not the run's.
    """
    require_own(run, program)
    model = run.model()
    traced = trace(model, x.shape[1:])
    _, names = build_nir(traced, Metadata(traced.time_steps, input_shape=x.shape[1:]))
    known = {p.name for p in program.populations}
    needed = {names[term.node] for _, signal in traced.observed for term in signal.terms}
    if not needed <= known or traced.time_steps != program.time_steps:
        raise _foreign(run)
    layers = [LayerDifference(layer) for layer, _ in traced.observed]
    classes: list[np.ndarray] = []
    for start in range(0, len(x), BATCH):
        part = x[start : start + BATCH]
        record = simulate_fixed(program, part, rasters=len(part))
        spikes = {name: maps.swapaxes(0, 1) for name, maps in record.rasters.items()}
        seen, logits = observe(model, traced, np.asarray(part, np.float32))
        classes.append(np.stack([logits.argmax(1), record.outputs.argmax(1)]))
        for layer, (_, signal), expected in zip(layers, traced.observed, seen, strict=True):
            found = assembled(signal, names, spikes).reshape(expected.shape)
            layer.neurons += expected.size
            layer.float_spikes += int(expected.sum())
            layer.fixed_spikes += int(found.sum())
            layer.differing += int(np.count_nonzero(found != expected))
    float_class, fixed_class = np.concatenate(classes, axis=1)
    return {
        "samples": len(x),
        "float_accuracy": None if labels is None else float((float_class == labels).mean()),
        "fixed_accuracy": None if labels is None else float((fixed_class == labels).mean()),
        "same_class": float((float_class == fixed_class).mean()),
        "first_difference": next((layer.layer for layer in layers if layer.differing), None),
        "layers": [asdict(layer) | {"share": layer.share} for layer in layers],
    }
