"""What a study leaves: its table, its frontier, figures of its runs, twins side by side; all from its run folders."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from spikeport.core.figures import FIGURES, draw_figures
from spikeport.core.runs import load_run
from spikeport.profiling.studies.pareto import pareto_plot
from spikeport.profiling.studies.study import TRIALS, Study, finished, trial_name
from spikeport.profiling.studies.table import Row, read_row, write_table
from spikeport.profiling.studies.twins import PICTURE, side_by_side


def write_results(study: Study, folder: Path) -> list[Row]:
    """Writes table.csv, table.md, pareto.svg, twins/ROW/ and the figures of every row's first run; returns the rows."""
    rows = read_rows(study, folder)
    write_rows(folder, rows)
    first = {name: trial for name in study.rows if finished(folder, trial := trial_name(name, study.seeds[0]))}
    for name, trial in first.items():
        if not (folder / TRIALS / trial / FIGURES).exists():
            draw_figures(folder / TRIALS / trial, study.rows[name].rate_goal)
    for cnn, snn in twins(rows):
        if cnn in first and snn in first and not (folder / "twins" / snn / PICTURE).exists():
            of_cnn, of_snn = (load_run(folder / TRIALS / first[name]) for name in (cnn, snn))
            # The data may have moved since they were trained.
            side_by_side(of_cnn, of_snn, folder / "twins" / snn, study.rows[cnn].data)
    return rows


def read_rows(study: Study, folder: Path) -> list[Row]:
    return [
        read_row(folder, name, config, [trial_name(name, seed) for seed in study.seeds])
        for name, config in study.rows.items()
    ]


def write_rows(folder: Path, rows: Sequence[Row]) -> None:
    """table.csv, table.md and pareto.svg."""
    write_table(folder, rows)
    pareto_plot(rows, folder / "pareto.svg")


def twins(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Names of the rows (CNN, SNN) that differ in their kind alone."""
    snns = {replace(row.config, kind="snn"): row.name for row in rows if row.config.kind == "snn"}
    pairs = [(row.name, snns.get(replace(row.config, kind="snn"))) for row in rows if row.config.kind == "cnn"]
    return [(cnn, snn) for cnn, snn in pairs if snn is not None]
