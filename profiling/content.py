"""What report.json says; docs/energy.md describes it, key by key."""

import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from spikeport.core.errors import SpikeportError
from spikeport.core.runs import Run
from spikeport.export import CERTIFICATE_FILE, NIR_FILE, ONNX_FILE
from spikeport.export.verify import Certificate, of_other_weights
from spikeport.profiling.assumptions import ASSUMPTIONS
from spikeport.profiling.breakeven import BreakEven
from spikeport.profiling.comparison import mean_rate
from spikeport.profiling.counts import ModelCounts
from spikeport.profiling.energy import HOROWITZ, RATE_GOAL, paper_count
from spikeport.profiling.energy_table import Entry
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
        run, cnn_run: of the SNN and of its CNN twin, where there are such.
        program, records: what was simulated; engine -> record.
        training, cnn: counts of both PyTorch models, where there are such.
        rows: the comparison, layer by layer.
        samples: how many first images every witness saw.
        sample: the image whose spikes are drawn.
    """

    run: Run | None
    cnn_run: Run | None
    program: LoihiProgram
    records: dict[str, SpikeRecord]
    training: ModelCounts | None
    cnn: ModelCounts | None
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
        "summary": _summary(subject),
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
        "certificates": _certificates(subject.run, subject.cnn_run),
        "assumptions": list(ASSUMPTIONS),
        "versions": _versions(),
    }


def _network(subject: Subject) -> dict[str, Any]:
    program, run = subject.program, subject.run
    names: dict[str, Any] = {"time_steps": program.time_steps, "input_shape": list(program.input_shape)}
    names["samples_compared"] = subject.samples
    if run is not None:
        names |= {"run": run.path.name, "model": run.spec.to_dict(), "dataset": run.data.name}
    return names | {"sample": subject.sample, "trained_for": run.trained_for if run else None}


def _summary(subject: Subject) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    run, cnn_run, training, cnn = subject.run, subject.cnn_run, subject.training, subject.cnn
    sums = totals(subject.rows)
    if run is not None and training is not None:
        summary["snn"] = run.results | {
            "parameters": sum(p.numel() for p in run.model().parameters()),
            "energy_nj": sums[TRAINING]["energy_nj"],
            "macs": training.total("macs"),
            "acs": sums[TRAINING]["acs"],
        }
    if cnn_run is not None and cnn is not None:
        macs = sum(c.dense for c in cnn.layers.values() if c.kind != "MaxPool2d")
        summary["cnn"] = cnn_run.results | {
            "parameters": sum(p.numel() for p in cnn_run.model().parameters()),
            "macs": macs,
            "energy_nj": HOROWITZ.of(0, macs),
        }
        record = (cnn_run.path / OnnxTarget.file).with_name(OnnxTarget.record)
        if record.exists():
            onnx = OnnxRecord.load(record)
            if not may_be_of(onnx.samples_digest, cnn_run.samples(onnx.samples)[0]):
                raise SpikeportError(
                    f"{record} is of other samples than the first {onnx.samples} test images of {cnn_run.data.name}; "
                    "simulate the CNN again"
                )
            if of_other_weights(onnx.weights_sha256, cnn_run):
                raise SpikeportError(f"{record} is of other weights than the run has now; export and simulate again")
            summary["onnx"] = asdict(onnx)
            for name in ("predictions", "samples_digest", "weights_sha256"):
                summary["onnx"].pop(name)
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
    return summary


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
    counted = {"snn": subject.training, "cnn": subject.cnn}
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


def _certificates(*runs: Run | None) -> dict[str, Any]:
    found = {}
    for run in runs:
        for kind, exported in (("nir", NIR_FILE), ("onnx", ONNX_FILE)):
            if run is not None and (run.path / exported).with_name(CERTIFICATE_FILE).exists():
                found[kind] = Certificate.load(run.path / exported).to_dict()
    return found


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
