"""The report: one HTML page without outside resources, its figures as JSON and CSV.

``content.py`` says what is in report.json.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

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
from spikeport.profiling.networks import Network, cnn_of_run, own_cnn, own_snn, snn_of_run
from spikeport.profiling.page import layers_table, render
from spikeport.profiling.rows import Row
from spikeport.profiling.statistics import LayerStatistics, firing_statistics
from spikeport.targets import COMPATIBILITY_FILE, require_own
from spikeport.targets.base import pick_engine
from spikeport.targets.loihi import LoihiProgram, LoihiTarget
from spikeport.targets.record import SpikeRecord

PAGE_FILE, CONTENT_FILE, LAYERS_FILE = "index.html", "report.json", "layers.csv"


@dataclass(frozen=True)
class Report:
    """Where the files lie, and their figures (the content of report.json)."""

    page: Path
    content: dict[str, Any]
    rows: list[Row]


def report(
    source: Run | Path | str,
    against: Run | Path | str | nn.Module | None = None,
    out: Path | str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    models: Sequence[str] = (),
    sample: int = 0,
    check: bool = False,
    seconds: float | None = None,
    network: nn.Module | None = None,
    x: Any = None,
    engine: str | None = None,
) -> Report:
    """Writes index.html, report.json and layers.csv.

    Args:
        source: the run of an SNN with at least one record in RUN/loihi; of a network that is no run the folder it was
            exported to, with records in loihi/, or one record (its program beside it).
        against: the CNN twin: its run, or, beside ``network``, its model.
        out: the folder to write; where None RUN/report, or report beside the record.
        progress: told (samples counted, samples).
        models: energy models to show, of ``energy_table.NAMES``; all where empty.
        sample: the image whose spikes are drawn.
        check: count with syops, ptflops, NeuroBench and SpikingJelly too, and account for every difference.
        seconds: duration of one inference on Loihi 1, for its static power.
        network: the SNN that was exported (of ours, of SpikingJelly or of snnTorch), where it is no run's: it is
            counted as training.
        x: the samples [N, ...] that were simulated, for ``network``.
        engine: report on this engine's record alone; all records where None, on the first images that each is of.

    Raises:
        SpikeportError: nothing simulated yet, a record of another program or of other samples, a wrong kind, an
            unknown energy model, a sample that is not there, an inference of no or endless duration, or of a program
            that Loihi 1 has no energy for, a network of other weights than the program's.
    """
    if seconds is not None and not 0 < seconds < math.inf:
        raise SpikeportError(f"an inference of {seconds} s; give a finite number of seconds above 0")
    if (network is None) != (x is None):
        raise SpikeportError("a network of your own and the samples that were simulated: give both, or neither")
    run, folder, single = _opened(source)
    if single and engine is not None:
        raise SpikeportError(f"{single} is one record; leave the engine out")
    if run is not None and network is not None:
        raise SpikeportError(f"{run.path} is a run, which has its network; leave the other out")
    program_file = single.with_name(Path(LoihiTarget.file).name) if single else folder / LoihiTarget.file
    program, records = _records(program_file, single, engine)
    target = Path(out) if out else folder / "report"
    if (target / MODEL_FILE).exists():  # whose layers.csv is the training's
        raise SpikeportError(f"{target}: a run folder, which has a layers.csv of its own; name another folder")
    for name in (PAGE_FILE, CONTENT_FILE, LAYERS_FILE):
        refuse_existing(target / name, overwrite)

    snn = None
    if run is not None:
        require_own(run, program)
        snn = snn_of_run(run, records)
    elif network is not None:
        snn = own_snn(network, x, program, records)
    cnn = _twin(against, snn, program)
    samples = common_samples(None, records)
    training = count_operations(snn.model, snn.samples(program, 0, samples), progress) if snn else None
    beside = count_operations(cnn.model, cnn.x) if cnn else None
    if training and beside and cnn and not cnn.run:
        _require_twin(training, beside)
    rows = compare(training, program, records, beside)
    if not 0 <= sample < samples:
        raise SpikeportError(f"sample {sample} is not there; the report is on samples 0 to {samples - 1}")
    energies = energy_table(models, rows, training, beside, program, records, seconds)
    if seconds is not None:
        _require_use_of_time(energies)
    evens = _break_evens(energies, training, beside)
    labels = None if snn is None or snn.labels is None else snn.labels[:samples]
    statistics = firing_statistics(training, labels) if training else {}
    subject = Subject(snn, cnn, folder, program, records, training, beside, rows, samples, sample)
    checks = _cross_check(snn, cnn, program) if check else None
    found = report_content(subject, energies, evens, statistics, checks, _fit(program_file))
    page = render(found, rows, _pictures(subject, energies, evens, statistics))
    with ExitStack() as together:  # all three or none
        write_text(together.enter_context(replacing(target / PAGE_FILE)), page)
        write_json(together.enter_context(replacing(target / CONTENT_FILE)), found)
        write_csv(together.enter_context(replacing(target / LAYERS_FILE)), layers_table(rows))
    return Report(target / PAGE_FILE, found, rows)


def _opened(source: Run | Path | str) -> tuple[Run | None, Path, Path | None]:
    """The run, where it is one; the folder of the report's files; the record, where it is one alone."""
    if not isinstance(source, Run):
        path = Path(source)
        if path.is_file():
            return None, path.parent, path
        if (path / LoihiTarget.file).exists() and not (path / MODEL_FILE).exists():
            return None, path, None
    run = source if isinstance(source, Run) else load_run(source)
    if run.kind != "snn":
        raise SpikeportError(f"{run.path} is a CNN; give the SNN's run, and this one with --against")
    return run, run.path, None


def _twin(against: Run | Path | str | nn.Module | None, snn: Network | None, program: LoihiProgram) -> Network | None:
    if against is None:
        return None
    if isinstance(against, nn.Module):
        if snn is None:
            raise SpikeportError("--against: a model is counted on its twin's samples; give the SNN's network too")
        return own_cnn(against, snn, program)
    return cnn_of_run(against if isinstance(against, Run) else load_run(against), snn.run if snn else None)


def _require_twin(snn: ModelCounts, cnn: ModelCounts) -> None:
    """Raises SpikeportError where a user's CNN has other layers than the SNN: they would be no twins."""
    sizes = [
        {name: (c.kind, c.dense) for name, c in counts.layers.items() if c.kind in ("Conv2d", "Linear")}
        for counts in (cnn, snn)
    ]
    if sizes[0] != sizes[1]:
        name = next(n for n in (*sizes[0], *sizes[1]) if sizes[0].get(n) != sizes[1].get(n))
        theirs, ours = ("{} of {:,} operations".format(*s[name]) if name in s else "not there" for s in sizes)
        raise SpikeportError(
            f"--against: no twin: its layer {name} is {theirs}, the SNN's is {ours}; twins have the same layers by the "
            "same names"
        )


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
    names = subject.program.metadata.get("class_names") or ()
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
            _rasters(subject.snn, subject.program, subject.records, subject.sample), steps, subject.sample
        ),
    )
    return [picture for picture in pictures if picture]


def _records(program: Path, single: Path | None, engine: str | None) -> tuple[LoihiProgram, dict[str, SpikeRecord]]:
    """The program and the records beside it, or the one that is named, by its file or its engine."""
    chosen = LoihiTarget.engines if engine is None else (pick_engine(LoihiTarget(), engine),)
    names = [LoihiTarget.record.format(engine=name) for name in chosen]
    files = [single] if single else [program.with_name(name) for name in names]
    found = [SpikeRecord.load(file) for file in files if file.exists()]
    if not found:
        own = (program.parent.parent / MODEL_FILE).exists()
        command = f"spikeport simulate {program.parent.parent if own else f'{program} --input X.npy'} --target loihi"
        command += f" --engine {engine}" if engine else ""
        raise SpikeportError(f"{program.parent}: nothing simulated yet; `{command}` does it")
    return LoihiProgram.load(program), {record.engine: record for record in found}


def _cross_check(snn: Network | None, cnn: Network | None, program: LoihiProgram) -> list[dict[str, Any]]:
    if snn is None:
        raise SpikeportError("the cross-check runs other tools on the model; give the run, or the network")
    if not program.held:
        raise SpikeportError(
            "the cross-check runs other tools on one image; this program's input changes from step to step"
        )
    checks = cross_check(snn.model, snn.x[:1], "snn")
    if cnn is not None:
        checks += cross_check(cnn.model, cnn.x[:1], "cnn")
    return [check.to_dict() for check in checks]


def _rasters(
    snn: Network | None, program: LoihiProgram, records: dict[str, SpikeRecord], sample: int
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

    if snn is not None:
        with watched(spiking_layers(snn.model), keep), torch.no_grad():
            x = snn.samples(program, sample, sample + 1)
            snn.model(x if program.held else x.flatten(0, 1))
    return spikes


def _fit(program: Path) -> Any:
    """What compatibility.json beside a program says; None where there is none."""
    path = program.with_name(COMPATIBILITY_FILE)
    return read_record(path, ("chip", "fits", "errors")) if path.exists() else None
