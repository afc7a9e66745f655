"""The report: one HTML page without outside resources, its figures as JSON and CSV.

``report.json`` (schema version 1) holds: ``schema``, ``network``, ``summary`` (name -> value), ``rows`` (one object
per layer, see ``spikeport.profiling.comparison.Row``), ``totals`` (witness -> sums per image), ``engines``
(agreement, wraps, saturations), ``paper`` (the paper's counting), ``assumptions`` and ``versions``.
"""

import csv
import io
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch

from spikeport.core.errors import SpikeportError
from spikeport.core.files import read_json, refuse_existing, write_json, write_text
from spikeport.core.progress import Progress, silent
from spikeport.core.runs import Run, load_run
from spikeport.profiling import plots
from spikeport.profiling.comparison import MARK_ABOVE, TRAINING, Row, common_samples, compare, mean_rate, totals
from spikeport.profiling.counts import ModelCounts, count_operations
from spikeport.profiling.energy import AC_PJ, MAC_PJ, RATE_GOAL, horowitz, paper_count
from spikeport.targets.loihi.program import LoihiProgram
from spikeport.targets.onnx import OnnxRecord
from spikeport.targets.record import SpikeRecord, differences

SCHEMA = 1
ENGINES = ("fixed", "lava")
ASSUMPTIONS = (
    f"Energy: {AC_PJ} pJ per synaptic operation (AC) and {MAC_PJ} pJ per multiply-accumulate (MAC), 32-bit floating "
    "point in 45 nm CMOS (M. Horowitz, ISSCC 2014). It counts arithmetic alone: no memory, no neuron updates, no "
    "leakage. It ranks; it does not predict what a chip draws.",
    "The same constants are applied to the counts seen in training, in the fixed engine and in Lava, on the same "
    "images, so that a difference between these columns is spikes alone.",
    "A whole inference is counted: all T steps. The first convolution, under a constant current, is charged once, "
    "in every column; the chip receives its graded input at every step (see graded events).",
    "Taps on padding are no operations. BatchNorm is folded into its convolution and costs nothing. Biases are not "
    "counted as operations.",
    "Max-pooling of spikes is counted as what it becomes on a chip: OR neurons with one synapse per tap.",
    "CNN: dense multiply-accumulates (zeros not skipped) at the same constants.",
    "The paper's counting takes one time step, counts padding and bias, and adds 2 operations per BatchNorm element.",
    "Firing rate: spikes per neuron and step, over all LIF layers, steps and samples.",
)


@dataclass(frozen=True)
class Report:
    """Where the files lie, and their figures (the content of report.json)."""

    page: Path
    content: dict[str, Any]
    rows: list[Row]


def report(
    source: Run | Path | str,
    against: Run | Path | str | None = None,
    out: Path | str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Report:
    """Writes index.html, report.json and layers.csv.

    Args:
        source: the run of an SNN with at least one record in RUN/loihi, or one record (its program beside it).
        against: the run of its CNN twin.
        out: the folder to write; RUN/report where None.
        progress: told (samples counted, samples).

    Raises:
        SpikeportError: nothing simulated yet, a record of another program or of other samples, a wrong kind.
    """
    single = Path(source) if isinstance(source, (str, Path)) and Path(source).is_file() else None
    run = None if single else (source if isinstance(source, Run) else load_run(source))
    if run is not None and run.kind != "snn":
        raise SpikeportError(f"{run.path} is a CNN; give the SNN's run, and this one with --against")
    folder = single.parent if single else run.path / "loihi"  # type: ignore[union-attr]
    program, records = _records(folder, single)
    target = Path(out) if out else (folder / "report" if run is None else run.path / "report")
    refuse_existing(target / "index.html", overwrite)

    training = _count_training(run, records, progress) if run else None
    cnn_run = load_run(against) if isinstance(against, (str, Path)) else against
    cnn = _count_cnn(cnn_run, run) if cnn_run else None
    rows = compare(training, program, records, cnn)
    content = {
        "schema": SCHEMA,
        "network": _network(run, program, common_samples(training, records)),
        "summary": _summary(run, cnn_run, training, cnn, program, records, rows),
        "engines": _engines(records),
        "rows": [row.to_dict() for row in rows],
        "totals": totals(rows),
        "paper": _paper(training, cnn),
        "fit": _optional_json(folder / "compatibility.json"),
        "certificates": _certificates(run, cnn_run),
        "assumptions": list(ASSUMPTIONS),
        "versions": _versions(records),
    }
    figures = {
        "energy": plots.energy_plot(rows),
        "rate": plots.rate_plot(rows),
        "difference": plots.difference_plot(rows),
        "raster": plots.raster_plot(_rasters(program, records), program.time_steps),
    }
    page = _render(content, rows, figures)
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / "report.json", content)
    write_text(target / "layers.csv", _csv(rows))
    write_text(target / "index.html", page)
    return Report(target / "index.html", content, rows)


def _records(folder: Path, single: Path | None) -> tuple[LoihiProgram, dict[str, SpikeRecord]]:
    files = [single] if single else [folder / f"{engine}.npz" for engine in ENGINES]
    found = [SpikeRecord.load(file) for file in files if file.exists()]
    if not found:
        raise SpikeportError(
            f"{folder}: nothing simulated yet; `spikeport simulate {folder.parent} --target loihi` does it"
        )
    return LoihiProgram.load(folder / "program.npz"), {record.engine: record for record in found}


def _count_training(run: Run, records: dict[str, SpikeRecord], progress: Progress) -> ModelCounts:
    """Counts of the PyTorch model on the samples that all records hold."""
    x, labels = run.samples(max(r.samples for r in records.values()))
    for record in records.values():
        if record.labels is None or not np.array_equal(record.labels, labels[: record.samples]):
            raise SpikeportError(
                f"the {record.engine} record is of other samples than the first {record.samples} test images of "
                f"{run.data.name}; simulate the run again, or report on the record alone"
            )
    return count_operations(run.model(), torch.from_numpy(x[: common_samples(None, records)]), progress)


def _count_cnn(cnn: Run, snn: Run | None) -> ModelCounts:
    if cnn.kind != "cnn":
        raise SpikeportError(f"--against {cnn.path} is an SNN; give the run of the CNN twin")
    if snn is not None and cnn.data.image_shape != snn.data.image_shape:
        raise SpikeportError(
            f"--against {cnn.path} takes images of {cnn.data.image_shape}, {snn.path} of {snn.data.image_shape}; "
            "train the twins on the same data"
        )
    return count_operations(cnn.model(), torch.from_numpy(cnn.samples(1)[0]))


def _network(run: Run | None, program: LoihiProgram, samples: int) -> dict[str, Any]:
    names: dict[str, Any] = {"time_steps": program.time_steps, "input_shape": list(program.input_shape)}
    names["samples_compared"] = samples
    if run is not None:
        names |= {"run": run.path.name, "model": run.spec.to_dict(), "dataset": run.data.name}
    return names


def _summary(
    run: Run | None,
    cnn_run: Run | None,
    training: ModelCounts | None,
    cnn: ModelCounts | None,
    program: LoihiProgram,
    records: dict[str, SpikeRecord],
    rows: list[Row],
) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    if run is not None and training is not None:
        summary["snn"] = run.results | {
            "parameters": sum(p.numel() for p in run.model().parameters()),
            "energy_nj": totals(rows)[TRAINING]["energy_nj"],
            "macs": training.total("macs"),
            "acs": totals(rows)[TRAINING]["acs"],
        }
    if cnn_run is not None and cnn is not None:
        macs = sum(c.dense for c in cnn.layers.values() if c.kind != "MaxPool2d")
        summary["cnn"] = cnn_run.results | {
            "parameters": sum(p.numel() for p in cnn_run.model().parameters()),
            "macs": macs,
            "energy_nj": horowitz(0, macs),
        }
        record = cnn_run.path / "onnx/record.json"
        if record.exists():
            onnx = OnnxRecord.load(record)
            summary["onnx"] = {"accuracy": onnx.accuracy, "samples": onnx.samples, "latency_ms": onnx.latency_ms}
    for engine, found in records.items():
        summary[engine] = {
            "accuracy": found.accuracy,
            "samples": found.samples,
            "energy_nj": totals(rows)[engine]["energy_nj"],
            "mean_rate": mean_rate(rows, engine, program.time_steps),
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
            "details": r.details,
        }
        for name, r in records.items()
    }
    if all(engine in records for engine in ENGINES):
        found = differences(records["fixed"], records["lava"])
        engines["agreement"] = {
            "samples": min(r.samples for r in records.values()),
            "steps_compared": min(r.samples for r in records.values()) * records["fixed"].time_steps,
            "layers": len(records["fixed"].spikes),
            "differences": found,
        }
    return engines


def _paper(training: ModelCounts | None, cnn: ModelCounts | None) -> dict[str, Any]:
    counted = {"snn": training, "cnn": cnn}
    return {
        kind: {"macs": count.macs, "acs": count.acs, "energy_nj": count.energy_nj}
        for kind, count in ((kind, paper_count(c)) for kind, c in counted.items() if c is not None)
    }


def _rasters(program: LoihiProgram, records: dict[str, SpikeRecord]) -> dict[str, np.ndarray]:
    """The rasters some engine kept, under the names of the model's layers."""
    for record in records.values():
        if record.rasters:
            return {(program.population(n).source or n): maps for n, maps in record.rasters.items()}
    return {}


def _optional_json(path: Path) -> Any:
    return read_json(path) if path.exists() else None


def _certificates(*runs: Run | None) -> dict[str, Any]:
    found = {}
    for run in runs:
        for kind in ("nir", "onnx"):
            if run is not None and (run.path / kind / "certificate.json").exists():
                found[kind] = read_json(run.path / kind / "certificate.json")
    return found


def _versions(records: dict[str, SpikeRecord]) -> dict[str, str]:
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("spikeport", "torch", "numpy", "nir", "onnx", "onnxruntime", "spikingjelly", "snntorch"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _csv(rows: list[Row]) -> str:
    witnesses = list(dict.fromkeys(w for row in rows for w in row.acs))
    per = ("spikes", "rate", "acs", "energy_nj")
    header = ["layer", "kind", "neurons_layer", "neurons", "macs", "cnn_macs", "cnn_energy_nj"]
    header += [f"{quantity}_{w}" for quantity in per for w in witnesses] + ["note"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        line: list[Any] = [
            row.layer,
            row.kind,
            row.neurons_layer,
            row.neurons,
            row.macs,
            row.cnn_macs,
            row.cnn_energy_nj,
        ]
        line += [getattr(row, quantity).get(w) for quantity in per for w in witnesses]
        writer.writerow([*line, row.note])
    return text.getvalue()


def _render(content: dict[str, Any], rows: list[Row], figures: dict[str, str | None]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("spikeport.profiling", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = number
    environment.filters["percent"] = lambda v: "–" if v is None else f"{100 * v:.1f} %"
    witnesses = list(dict.fromkeys(w for row in rows for w in row.acs))
    shown = content | {"rows": rows, "figures": figures, "witnesses": witnesses, "labels": plots.LABELS}
    return environment.get_template("report.html").render(shown, mark=MARK_ABOVE)


def number(value: float | None) -> str:
    """Four significant digits, thousands grouped; a dash for nothing."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
