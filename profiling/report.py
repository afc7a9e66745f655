"""The report: one HTML page without outside resources, its figures as JSON and CSV.

``report.json`` is described in docs/energy.md, key by key; ``SCHEMA`` is its version.
"""

import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spikeport.core.errors import SpikeportError
from spikeport.core.files import read_json, refuse_existing, write_json, write_text
from spikeport.core.functional import split_time
from spikeport.core.neurons import LIF
from spikeport.core.progress import Progress, silent
from spikeport.core.runs import Run, load_run
from spikeport.export import CERTIFICATE_FILE, NIR_FILE, ONNX_FILE
from spikeport.profiling import plots
from spikeport.profiling.assumptions import ASSUMPTIONS
from spikeport.profiling.breakeven import break_even
from spikeport.profiling.comparison import TRAINING, Row, common_samples, compare, first_marked, mean_rate, totals
from spikeport.profiling.counting import count_operations
from spikeport.profiling.counts import ModelCounts
from spikeport.profiling.crosscheck import cross_check
from spikeport.profiling.energy import MODELS, RATE_GOAL, horowitz, paper_count
from spikeport.profiling.energy_table import energy_table
from spikeport.profiling.page import layers_csv, render
from spikeport.profiling.statistics import firing_statistics
from spikeport.targets import COMPATIBILITY_FILE
from spikeport.targets.loihi import LoihiProgram, LoihiTarget
from spikeport.targets.onnx import OnnxRecord, OnnxTarget
from spikeport.targets.record import SpikeRecord, differences

SCHEMA = 2
PACKAGES = (
    *("spikeport", "torch", "numpy", "nir", "onnx", "onnxruntime", "spikingjelly", "snntorch"),
    *("syops", "ptflops", "neurobench"),
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
    models: Sequence[str] = (),
    sample: int = 0,
    check: bool = False,
    seconds: float | None = None,
) -> Report:
    """Writes index.html, report.json and layers.csv.

    Args:
        source: the run of an SNN with at least one record in RUN/loihi, or one record (its program beside it).
        against: the run of its CNN twin.
        out: the folder to write; RUN/report where None.
        progress: told (samples counted, samples).
        models: energy models to show, of ``energy_table.NAMES``; all where empty.
        sample: the image whose spikes are drawn.
        check: count with syops, ptflops, NeuroBench and SpikingJelly too, and account for every difference.
        seconds: duration of one inference on Loihi 1, for its static power.

    Raises:
        SpikeportError: nothing simulated yet, a record of another program or of other samples, a wrong kind, an
            unknown energy model, a sample that is not there, an inference of no or endless duration.
    """
    if seconds is not None and not 0 < seconds < math.inf:
        raise SpikeportError(f"an inference of {seconds} s; give a finite number of seconds above 0")
    single = Path(source) if isinstance(source, (str, Path)) and Path(source).is_file() else None
    run = None if single else (source if isinstance(source, Run) else load_run(source))
    if run is not None and run.kind != "snn":
        raise SpikeportError(f"{run.path} is a CNN; give the SNN's run, and this one with --against")
    home = run.path if run else Path(source).parent  # type: ignore[arg-type]
    program_file = home / LoihiTarget.file if run else home / Path(LoihiTarget.file).name
    program, records = _records(program_file, single)
    target = Path(out) if out else home / "report"
    refuse_existing(target / "index.html", overwrite)

    training = _count_training(run, records, progress) if run else None
    cnn_run = load_run(against) if isinstance(against, (str, Path)) else against
    cnn = _count_cnn(cnn_run, run) if cnn_run else None
    rows = compare(training, program, records, cnn)
    samples = common_samples(training, records)
    if not 0 <= sample < samples:
        raise SpikeportError(f"sample {sample} is not there; the report is on samples 0 to {samples - 1}")
    energies = energy_table(models, rows, training, cnn, program, records, seconds)
    even = []
    if training is not None and cnn is not None and training.rate:
        even = [break_even(MODELS[name], training, cnn) for name in energies if name in MODELS]
    labels = run.samples(samples)[1] if run else None
    statistics = firing_statistics(training, labels) if training else {}
    content = {
        "schema": SCHEMA,
        "network": _network(run, program, samples),
        "summary": _summary(run, cnn_run, training, cnn, program, records, rows),
        "energy": {name: entry.to_dict() for name, entry in energies.items()},
        "break_even": {e.model: asdict(e) for e in even},
        "engines": _engines(records),
        "rows": [row.to_dict() for row in rows],
        "totals": totals(rows),
        "layers": _layers(training),
        "statistics": {name: layer.to_dict() for name, layer in statistics.items()},
        "paper": _paper(training, cnn),
        "cross_check": _cross_check(run, cnn_run) if check else None,
        "fit": _optional_json(program_file.with_name(COMPATIBILITY_FILE)),
        "certificates": _certificates(run, cnn_run),
        "assumptions": list(ASSUMPTIONS),
        "versions": _versions(),
    }
    names = run.data.class_names if run else ()
    pictures = [
        plots.energy_plot(rows),
        plots.cause_plot(energies),
        plots.break_even_plot(even, training),
        plots.rate_plot(rows),
        plots.histogram_plot(statistics),
        plots.steps_plot(statistics, names),
        plots.difference_plot(rows),
        plots.divergence_plot(rows),
        plots.raster_plot(_rasters(run, program, records, sample), program.time_steps),
    ]
    content["network"]["sample"] = sample
    page = render(content, rows, [picture for picture in pictures if picture])
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / "report.json", content)
    write_text(target / "layers.csv", layers_csv(rows))
    write_text(target / "index.html", page)
    return Report(target / "index.html", content, rows)


def _records(program: Path, single: Path | None) -> tuple[LoihiProgram, dict[str, SpikeRecord]]:
    """The program and the records beside it, or the one that is named."""
    names = [LoihiTarget.record.format(engine=engine) for engine in LoihiTarget.engines]
    files = [single] if single else [program.with_name(name) for name in names]
    found = [SpikeRecord.load(file) for file in files if file.exists()]
    if not found:
        raise SpikeportError(
            f"{program.parent}: nothing simulated yet; `spikeport simulate {program.parent.parent} --target loihi` "
            "does it"
        )
    return LoihiProgram.load(program), {record.engine: record for record in found}


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
        record = (cnn_run.path / OnnxTarget.file).with_name(OnnxTarget.record)
        if record.exists():
            summary["onnx"] = asdict(OnnxRecord.load(record))
            summary["onnx"].pop("predictions")
    for engine, found in records.items():
        summary[engine] = {
            "accuracy": found.accuracy,
            "samples": found.samples,
            "energy_nj": totals(rows)[engine]["energy_nj"],
            "mean_rate": mean_rate(rows, engine, program.time_steps),
            "first_divergent_layer": first_marked(rows, engine),
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
    if all(engine in records for engine in LoihiTarget.engines):
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


def _cross_check(run: Run | None, cnn: Run | None) -> list[dict[str, Any]]:
    if run is None:
        raise SpikeportError("the cross-check runs other tools on the model; give the run, not a record")
    checks = cross_check(run.model(), torch.from_numpy(run.samples(1)[0]), "snn")
    if cnn is not None:
        checks += cross_check(cnn.model(), torch.from_numpy(cnn.samples(1)[0]), "cnn")
    return [check.to_dict() for check in checks]


def _rasters(
    run: Run | None, program: LoihiProgram, records: dict[str, SpikeRecord], sample: int
) -> dict[str, np.ndarray]:
    """Layer -> spikes [T, neurons] of one sample: an engine's where it kept them, else those of the model."""
    for record in records.values():
        if record.rasters and all(len(maps) > sample for maps in record.rasters.values()):
            found = {(program.population(n).source or n): maps[sample] for n, maps in record.rasters.items()}
            return {name: maps.reshape(program.time_steps, -1) for name, maps in found.items()}
    if run is None:
        return {}
    model, spikes = run.model(), {}

    def keep(name: str) -> Any:
        def hook(module: LIF, args: Any, y: torch.Tensor) -> None:
            spikes[name] = split_time(y, module.time_steps).flatten(1).bool().numpy()

        return hook

    for name, module in model.named_modules():
        if isinstance(module, LIF):
            module.register_forward_hook(keep(name))
    with torch.no_grad():
        model(torch.from_numpy(run.samples(sample + 1)[0][sample:]))
    return spikes


def _optional_json(path: Path) -> Any:
    return read_json(path) if path.exists() else None


def _certificates(*runs: Run | None) -> dict[str, Any]:
    found = {}
    for run in runs:
        for kind, exported in (("nir", NIR_FILE), ("onnx", ONNX_FILE)):
            if run is not None and (file := (run.path / exported).with_name(CERTIFICATE_FILE)).exists():
                found[kind] = read_json(file)
    return found


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
