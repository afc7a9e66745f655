"""The report: one HTML page without outside resources, its figures as JSON and CSV.

``content.py`` says what is in report.json.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spikeport.core.errors import SpikeportError
from spikeport.core.files import read_record, refuse_existing, replacing, write_csv, write_json, write_text
from spikeport.core.functional import split_time
from spikeport.core.hooks import watched
from spikeport.core.progress import Progress, silent
from spikeport.core.rates import spiking_layers
from spikeport.core.runs import MODEL_FILE, Run, load_run
from spikeport.profiling import loihi_energy, plots
from spikeport.profiling.breakeven import BreakEven, break_even
from spikeport.profiling.comparison import common_samples, compare
from spikeport.profiling.content import Subject, report_content
from spikeport.profiling.counting import count_operations
from spikeport.profiling.counts import ModelCounts
from spikeport.profiling.crosscheck import cross_check
from spikeport.profiling.energy import MODELS
from spikeport.profiling.energy_table import Entry, energy_table
from spikeport.profiling.page import layers_table, render
from spikeport.profiling.rows import Row
from spikeport.profiling.statistics import LayerStatistics, firing_statistics
from spikeport.targets import COMPATIBILITY_FILE, require_own
from spikeport.targets.loihi import LoihiProgram, LoihiTarget
from spikeport.targets.record import SpikeRecord, may_be_of

PAGE_FILE, CONTENT_FILE, LAYERS_FILE = "index.html", "report.json", "layers.csv"


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
        out: the folder to write; where None RUN/report, or report beside the record.
        progress: told (samples counted, samples).
        models: energy models to show, of ``energy_table.NAMES``; all where empty.
        sample: the image whose spikes are drawn.
        check: count with syops, ptflops, NeuroBench and SpikingJelly too, and account for every difference.
        seconds: duration of one inference on Loihi 1, for its static power.

    Raises:
        SpikeportError: nothing simulated yet, a record of another program or of other samples, a wrong kind, an
            unknown energy model, a sample that is not there, an inference of no or endless duration, or of a program
            that Loihi 1 has no energy for.
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
    if run is not None:
        require_own(run, program)
    target = Path(out) if out else home / "report"
    if (target / MODEL_FILE).exists():  # whose layers.csv is the training's
        raise SpikeportError(f"{target}: a run folder, which has a layers.csv of its own; name another folder")
    for name in (PAGE_FILE, CONTENT_FILE, LAYERS_FILE):
        refuse_existing(target / name, overwrite)

    training = _count_training(run, records, progress) if run else None
    cnn_run = load_run(against) if isinstance(against, (str, Path)) else against
    cnn = _count_cnn(cnn_run, run) if cnn_run else None
    rows = compare(training, program, records, cnn)
    samples = common_samples(training, records)
    if not 0 <= sample < samples:
        raise SpikeportError(f"sample {sample} is not there; the report is on samples 0 to {samples - 1}")
    energies = energy_table(models, rows, training, cnn, program, records, seconds)
    if seconds is not None:
        _require_use_of_time(energies)
    evens = _break_evens(energies, training, cnn)
    statistics = firing_statistics(training, run.samples(samples)[1]) if run and training else {}
    subject = Subject(run, cnn_run, program, records, training, cnn, rows, samples, sample)
    checks = _cross_check(run, cnn_run) if check else None
    found = report_content(subject, energies, evens, statistics, checks, _fit(program_file))
    page = render(found, rows, _pictures(subject, energies, evens, statistics))
    with ExitStack() as together:  # all three or none
        write_text(together.enter_context(replacing(target / PAGE_FILE)), page)
        write_json(together.enter_context(replacing(target / CONTENT_FILE)), found)
        write_csv(together.enter_context(replacing(target / LAYERS_FILE)), layers_table(rows))
    return Report(target / PAGE_FILE, found, rows)


def _require_use_of_time(energies: dict[str, Entry]) -> None:
    """Raises SpikeportError where no energy model that is shown takes the duration of an inference."""
    loihi1 = energies.get(loihi_energy.NAME)
    why = loihi1.refused if loihi1 else f"energy model {loihi_energy.NAME} is not shown"
    if why:
        raise SpikeportError(f"the time of an inference has no use: {why}; leave it out")


def _break_evens(energies: dict[str, Entry], snn: ModelCounts | None, cnn: ModelCounts | None) -> list[BreakEven]:
    """Of every model that compares twins, where both were counted and the SNN fires."""
    if snn is None or cnn is None or not snn.rate:
        return []
    found = (break_even(MODELS[name], snn, cnn) for name in energies if name in MODELS)
    return [even for even in found if even]


def _pictures(
    subject: Subject, energies: dict[str, Entry], evens: list[BreakEven], statistics: dict[str, LayerStatistics]
) -> list[plots.Picture]:
    """Those that there is something to draw of."""
    rows, steps = subject.rows, subject.program.time_steps
    names = subject.run.data.class_names if subject.run else ()
    pictures = (
        plots.energy_plot(rows),
        plots.cause_plot(energies),
        plots.break_even_plot(evens, subject.training),
        plots.rate_plot(rows),
        plots.histogram_plot(statistics),
        plots.steps_plot(statistics, names),
        plots.difference_plot(rows),
        plots.divergence_plot(rows),
        plots.raster_plot(
            _rasters(subject.run, subject.program, subject.records, subject.sample), steps, subject.sample
        ),
    )
    return [picture for picture in pictures if picture]


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
        same = may_be_of(record.details.get("samples_digest"), x[: record.samples])
        if not same or record.labels is None or not np.array_equal(record.labels, labels[: record.samples]):
            raise SpikeportError(
                f"the {record.engine} record is of other samples than the first {record.samples} test images of "
                f"{run.data.name}; simulate the run again, or report on the record alone"
            )
    return count_operations(run.model(), torch.from_numpy(x[: common_samples(None, records)]), progress)


def _count_cnn(cnn: Run, snn: Run | None) -> ModelCounts:
    if cnn.kind != "cnn":
        raise SpikeportError(f"--against {cnn.path} is an SNN; give the run of the CNN twin")
    if snn is not None:
        for name in ("name", "image_shape", "class_names"):
            theirs, ours = getattr(cnn.data, name), getattr(snn.data, name)
            if theirs != ours:
                raise SpikeportError(
                    f"--against {cnn.path}: the {name} of its data is {theirs}, that of {snn.path} {ours}; train the "
                    "twins on the same data"
                )
        if replace(cnn.spec, twin=snn.spec.twin) != snn.spec:
            raise SpikeportError(
                f"--against {cnn.path} is {_model(cnn)}, {snn.path} is {_model(snn)}: no twin of it; give the run of "
                "the same network with --kind cnn"
            )
    return count_operations(cnn.model(), torch.from_numpy(cnn.samples(1)[0]))


def _model(run: Run) -> str:
    spec = run.spec
    return f"{spec.name} of width {spec.width:g}" + (f" with Fire modules {list(spec.keep)}" if spec.keep else "")


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
            found: dict[str, list[np.ndarray]] = {}
            for n, maps in record.rasters.items():  # a layer over a concatenation is several populations
                name = program.population(n).source or n
                found.setdefault(name, []).append(maps[sample].reshape(program.time_steps, -1))
            return {name: np.concatenate(parts, axis=1) for name, parts in found.items()}
    spikes: dict[str, np.ndarray] = {}

    def keep(name: str, y: torch.Tensor) -> None:
        spikes[name] = split_time(y, program.time_steps).flatten(1).bool().numpy()

    if run is not None:
        model = run.model()
        with watched(spiking_layers(model), keep), torch.no_grad():
            model(torch.from_numpy(run.samples(sample + 1)[0][sample:]))
    return spikes


def _fit(program: Path) -> Any:
    """What compatibility.json beside a program says; None where there is none."""
    path = program.with_name(COMPATIBILITY_FILE)
    return read_record(path, ("chip", "fits", "errors")) if path.exists() else None
