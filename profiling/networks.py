"""The PyTorch networks that a report counts: of runs, or a user's own with the samples that were simulated."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikeport.core.arrays import as_array
from spikeport.core.errors import SpikeportError
from spikeport.core.neurons import LIF
from spikeport.core.runs import Run
from spikeport.export.foreign import is_foreign
from spikeport.export.trace import deployed
from spikeport.targets.loihi import LoihiProgram
from spikeport.targets.loihi.against_float import in_precision, own_model
from spikeport.targets.record import SpikeRecord, may_be_of


@dataclass(frozen=True, eq=False)
class Network:
    """A network in PyTorch and what it is counted on.

    Attributes:
        model: of our layers, in evaluation mode, on the CPU.
        x: [N, C, H, W], or [T, N, C, H, W] where the input changes.
        labels: classes [N], or None.
        run: whose network it is; None of a user's own.
        title: what a user's own is called.
    """

    model: nn.Module
    x: Tensor
    labels: np.ndarray | None = None
    run: Run | None = None
    title: str = ""

    def samples(self, program: LoihiProgram, start: int, end: int) -> Tensor:
        """Samples ``start`` to ``end``, in the form the model takes."""
        return self.x[start:end] if program.held else self.x[:, start:end]

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


def snn_of_run(run: Run, records: dict[str, SpikeRecord]) -> Network:
    """The SNN of a run, with the test images that its records are of.

    Raises:
        SpikeportError: a record is of other samples.
    """
    x, labels = run.samples(max(r.samples for r in records.values()))
    for record in records.values():
        same = may_be_of(record.details.get("samples_digest"), x[: record.samples])
        if not same or record.labels is None or not np.array_equal(record.labels, labels[: record.samples]):
            raise SpikeportError(
                f"the {record.engine} record is of other samples than the first {record.samples} test images of "
                f"{run.data.name}; simulate the run again, or report on the record alone"
            )
    return Network(run.model(), torch.from_numpy(x), labels, run)


def own_snn(model: nn.Module, x: Any, program: LoihiProgram, records: dict[str, SpikeRecord]) -> Network:
    """A user's SNN, of ours, of SpikingJelly or of snnTorch, with the samples that were simulated.

    Raises:
        SpikeportError: the program was compiled from another network, or a record is of other samples.
    """
    x = as_array(x, "the samples")
    if x.ndim < (2 if program.held else 3):
        raise SpikeportError(f"the samples have shape {list(x.shape)}; give those that were simulated")
    given = len(x) if program.held else x.shape[1]
    for record in records.values():
        if given < record.samples:
            raise SpikeportError(
                f"{given} samples; the {record.engine} record is of {record.samples}: give all of them"
            )
        simulated = x[: record.samples] if program.held else x[:, : record.samples]
        if not may_be_of(record.details.get("samples_digest"), simulated):
            raise SpikeportError(
                f"the {record.engine} record is of other samples than the first {record.samples} given; give those, or "
                "simulate again"
            )
    name = type(model).__name__
    model = own_model(model, x.shape, program)
    known = [r.labels for r in records.values() if r.labels is not None]
    labels = max(known, key=len) if known else None
    if labels is not None and any(not np.array_equal(of, labels[: len(of)]) for of in known):
        raise SpikeportError("the records have other classes for the same samples; simulate again")
    return Network(model, torch.from_numpy(in_precision(x, model)), labels, title=name)


def cnn_of_run(cnn: Run, snn: Run | None) -> Network:
    """The CNN of a run. Raises SpikeportError where it is no twin of the SNN's."""
    if cnn.kind != "cnn":
        raise SpikeportError(f"--against {cnn.path} is an SNN; give the run of the CNN twin")
    if snn is not None:
        for name in ("name", "image_shape", "class_names", "mean", "std"):
            theirs, ours = getattr(cnn.data, name), getattr(snn.data, name)
            if theirs != ours and not (name in ("mean", "std") and np.allclose(theirs, ours, 1e-6)):
                raise SpikeportError(
                    f"--against {cnn.path}: the {name} of its data is {theirs}, that of {snn.path} {ours}; train the "
                    "twins on the same data"
                )
        if replace(cnn.spec, twin=snn.spec.twin) != snn.spec:
            raise SpikeportError(
                f"--against {cnn.path} is {_title(cnn)}, {snn.path} is {_title(snn)}: no twin of it; give the run of "
                "the same network with --kind cnn"
            )
    return Network(cnn.model(), torch.from_numpy(cnn.samples(1)[0]), run=cnn)


def own_cnn(model: nn.Module, snn: Network, program: LoihiProgram) -> Network:
    """A user's CNN, on the first sample of its twin.

    Raises:
        SpikeportError: an SNN, or an input that changes.
    """
    if is_foreign(model) or any(isinstance(m, LIF) for m in model.modules()):
        raise SpikeportError(f"--against: {type(model).__name__} is an SNN; give its CNN twin")
    if not program.held:
        raise SpikeportError("--against: a CNN takes one image; this program's input changes from step to step")
    model = deployed(model)
    return Network(model, torch.from_numpy(in_precision(snn.x[:1].numpy(), model)))


def _title(run: Run) -> str:
    spec = run.spec
    return f"{spec.name} of width {spec.width:g}" + (f" with Fire modules {list(spec.keep)}" if spec.keep else "")
