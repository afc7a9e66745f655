"""What report.json says; docs/energy.md describes it, key by key."""

import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from spikeport.core.errors import SpikeportError
from spikeport.core.runs import Run
from spikeport.export import CERTIFICATE_FILE, NIR_FILE, ONNX_FILE, read_nir
from spikeport.export.nir_graph import metadata_of
from spikeport.export.verify import Certificate, of_other_weights
from spikeport.profiling.assumptions import ASSUMPTIONS
from spikeport.profiling.breakeven import BreakEven
from spikeport.profiling.comparison import mean_rate
from spikeport.profiling.counts import ModelCounts
from spikeport.profiling.energy import HOROWITZ, RATE_GOAL, paper_count
from spikeport.profiling.energy_table import Entry
from spikeport.profiling.networks import Network
from spikeport.profiling.rows import TRAINING, Row, first_marked, totals
from spikeport.profiling.statistics import LayerStatistics
from spikeport.targets.loihi import LoihiProgram, LoihiTarget
from spikeport.targets.onnx import OnnxRecord, OnnxTarget
from spikeport.targets.record import SpikeRecord, differences, may_be_of

#: Version of what ``report_content`` returns.
SCHEMA = 3
PACKAGES = (
    *("spikeport", "torch", "numpy", "nir", "onnx", "onnxruntime", "spikingjelly", "snntorch"),
    *("syops", "ptflops", "neurobench"),
)


@dataclass(frozen=True, eq=False)
class Subject:
    """What a report is about.

    Attributes:
        snn, cnn: the SNN and its CNN twin in PyTorch, where they were given.
        folder: of the run, or of the export.
        program, records: what was simulated; engine -> record.
        training, beside: counts of both PyTorch models, where there are such.
        rows: the comparison, layer by layer.
        samples: how many first images every witness saw.
        sample: the image whose spikes are drawn.
    """

    snn: Network | None
    cnn: Network | None
    folder: Path
    program: LoihiProgram
    records: dict[str, SpikeRecord]
    training: ModelCounts | None
    beside: ModelCounts | None
    rows: list[Row]
    samples: int
    sample: int


def report_content(
    subject: Subject,
    energies: dict[str, Entry],
    even: list[BreakEven],
    statistics: dict[str, LayerStatistics],
    checks: list[dict[str, Any]] | None,
    fit: Any,
) -> dict[str, Any]:
    """JSON values.

    Args:
        checks: the cross-check, where it was made.
        fit: the content of compatibility.json, where there is one.
    """
    return {
        "schema": SCHEMA,
        "network": _network(subject),
        "summary": _summary(subject, statistics),
        "energy": {name: entry.to_dict() for name, entry in energies.items()},
        "break_even": {e.model: asdict(e) for e in even},
        "engines": _engines(subject.records),
        "rows": [row.to_dict() for row in subject.rows],
        "totals": totals(subject.rows),
        "layers": _layers(subject.training),
        "statistics": {name: layer.to_dict() for name, layer in statistics.items()},
        "paper": _paper(subject),
        "cross_check": checks,
        "fit": fit,
        "certificates": _certificates(subject),
        "assumptions": list(ASSUMPTIONS),
        "versions": _versions(),
    }


def _network(subject: Subject) -> dict[str, Any]:
    program, snn = subject.program, subject.snn
    run = snn.run if snn else None
    names: dict[str, Any] = {"time_steps": program.time_steps, "input_shape": list(program.input_shape)}
    names["samples_compared"] = subject.samples
    if run is not None:
        names |= {"run": run.path.name, "model": run.spec.to_dict(), "dataset": run.data.name}
    elif snn is not None:
        names |= {"model": {"name": snn.title}}
    return names | {"sample": subject.sample, "trained_for": run.trained_for if run else None}


def _summary(subject: Subject, statistics: dict[str, LayerStatistics]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    snn, cnn, training, beside = subject.snn, subject.cnn, subject.training, subject.beside
    sums = totals(subject.rows)
    if snn is not None and training is not None:
        summary["snn"] = _results(snn) | {
            "parameters": snn.parameters,
            "energy_nj": sums[TRAINING]["energy_nj"],
            "macs": training.total("macs"),
            "acs": sums[TRAINING]["acs"],
        }
    if cnn is not None and beside is not None:
        macs = sum(c.dense for c in beside.layers.values() if c.kind != "MaxPool2d")
        summary["cnn"] = _results(cnn) | {
            "parameters": cnn.parameters,
            "macs": macs,
            "energy_nj": HOROWITZ.of(0, macs),
        }
        onnx = _onnx(cnn.run) if cnn.run else None
        if onnx:
            summary["onnx"] = onnx
    for engine, found in subject.records.items():
        summary[engine] = {
            "accuracy": found.accuracy,
            "samples": found.samples,
            "energy_nj": sums[engine]["energy_nj"],
            "mean_rate": mean_rate(subject.program, found, subject.samples),
            "first_divergent_layer": first_marked(subject.rows, engine),
        }
    summary["mean_rate"] = None if training is None else training.rate
    summary["rate_goal"] = RATE_GOAL
    summary["silent_layers"] = [name for name, layer in statistics.items() if not layer.rate]
    return summary


def _results(network: Network) -> dict[str, Any]:
    """What its run knows of the test set; nobody told it of a network of the user's own."""
    return network.run.results if network.run else {"test_accuracy": None, "test_macro_f1": None}


def _onnx(run: Run) -> dict[str, Any] | None:
    """What ONNX Runtime said of a CNN's run, where it ran. Raises SpikeportError where it is of another network."""
    record = (run.path / OnnxTarget.file).with_name(OnnxTarget.record)
    if not record.exists():
        return None
    onnx = OnnxRecord.load(record)
    if not may_be_of(onnx.samples_digest, run.samples(onnx.samples)[0]):
        raise SpikeportError(
            f"{record} is of other samples than the first {onnx.samples} test images of {run.data.name}; "
            "simulate the CNN again"
        )
    if of_other_weights(onnx.weights_sha256, run):
        raise SpikeportError(f"{record} is of other weights than the run has now; export and simulate again")
    hidden = ("predictions", "samples_digest", "weights_sha256")
    return {name: value for name, value in asdict(onnx).items() if name not in hidden}


def _engines(records: dict[str, SpikeRecord]) -> dict[str, Any]:
    engines: dict[str, Any] = {
        name: {
            "samples": r.samples,
            "wraps": sum(r.wraps.values()),
            "saturations": sum(r.saturations.values()),
            "details": {name: value for name, value in r.details.items() if name != "samples_digest"},
        }
        for name, r in records.items()
    }
    if all(engine in records for engine in LoihiTarget.engines):
        found = differences(records["fixed"], records["lava"])
        engines["agreement"] = {
            "samples": min(r.samples for r in records.values()),
            "steps_compared": min(r.samples for r in records.values()) * records["fixed"].time_steps,
            "layers": len(records["fixed"].spikes),
            "differences": found,
        }
    return engines


def _paper(subject: Subject) -> dict[str, Any]:
    counted = {"snn": subject.training, "cnn": subject.beside}
    return {
        kind: {"macs": count.macs, "acs": count.acs, "energy_nj": count.energy_nj}
        for kind, count in ((kind, paper_count(c)) for kind, c in counted.items() if c is not None)
    }


def _layers(counts: ModelCounts | None) -> dict[str, Any]:
    """Layer -> its counts in training, means per image over all steps."""
    if counts is None:
        return {}
    static = ("kind", "parameters", "bytes", "outputs", "dense", "passes", "analog", "folds_into")
    return {
        name: {key: getattr(layer, key) for key in static}
        | {key: layer.mean(key) for key in ("acs", "macs", "macs_effective", "spikes")}
        | {"bias_adds": layer.bias_adds, "neuron_updates": layer.neuron_updates}
        | {"accesses": asdict(layer.work().accesses)}
        for name, layer in counts.layers.items()
    }


def _certificates(subject: Subject) -> dict[str, Any]:
    folders = [subject.folder, *([subject.cnn.run.path] if subject.cnn and subject.cnn.run else [])]
    found = {}
    for folder in folders:
        for kind, exported in (("nir", NIR_FILE), ("onnx", ONNX_FILE)):
            file = folder / exported
            if not file.with_name(CERTIFICATE_FILE).exists():
                continue
            certificate = Certificate.load(file)
            if kind == "nir" and not _is_of(subject.program, file):
                continue  # a later export: what it says is not of this program
            found[kind] = certificate.to_dict()
    return found


def _is_of(program: LoihiProgram, file: Path) -> bool:
    """Whether a program was compiled from this NIR file, or one of the same network."""
    metadata = metadata_of(read_nir(file))
    hashes = {name: program.metadata.get(name) for name in ("weights_sha256", "graph_sha256")}
    return all(getattr(metadata, name) == value for name, value in hashes.items())


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
