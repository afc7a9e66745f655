"""The table of a study, derived from the run folders of its finished trials."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from spikeport.core.config import TrainConfig
from spikeport.core.files import read_json, write_csv, write_text
from spikeport.core.runs import CONFIG_FILE, load_run
from spikeport.profiling.page import number
from spikeport.profiling.studies.study import MEASURED_FILE, PLACE, TRIALS, finished

#: Column -> its heading; ``energy_nj`` is of the whole inference, ``paper_energy_nj`` as the paper counts (one step).
QUANTITIES = {
    "validation_accuracy": "validation accuracy",
    "test_accuracy": "test accuracy",
    "test_macro_f1": "F1",
    "parameters": "parameters",
    "rate": "rate",
    "macs": "MACs",
    "acs": "ACs",
    "energy_nj": "energy (nJ)",
    "paper_energy_nj": "paper's count (nJ)",
}
FRACTIONS = ("validation_accuracy", "test_accuracy", "test_macro_f1", "rate")


@dataclass(frozen=True)
class Row:
    """One row: means and deviations over the finished ones of its trials.

    Attributes:
        config: the settings of its trials, but for the seed.
        trials: how many it has; ``values`` holds one value for each of them that is finished.
        values: quantity (a key of ``QUANTITIES``, or paper_acs) -> values; a CNN has no rate.
    """

    name: str
    config: TrainConfig
    trials: int
    values: dict[str, list[float]]

    @property
    def finished(self) -> int:
        return len(self.values["test_accuracy"])

    def mean(self, quantity: str) -> float | None:
        values = self.values[quantity]
        return mean(values) if values else None

    def deviation(self, quantity: str) -> float | None:
        """Sample standard deviation; None for fewer than two trials."""
        values = self.values[quantity]
        return stdev(values) if len(values) > 1 else None


def read_row(folder: Path, name: str, config: TrainConfig, trials: Sequence[str]) -> Row:
    """Reads the finished ones of a row's trials. Raises SpikeportError for a damaged run folder."""
    found = []
    for trial in trials:
        if finished(folder, trial):
            path = folder / TRIALS / trial
            found.append(load_run(path).results | read_json(path / MEASURED_FILE))
    values = {quantity: [f[quantity] for f in found] for quantity in (*QUANTITIES, "paper_acs")}
    if config.kind == "cnn":  # no neuron that fires, rather than neurons that never do
        values["rate"] = []
    return Row(name, config, len(trials), values)


def trial_config(folder: Path, trial: str) -> TrainConfig:
    return TrainConfig(**TrainConfig.read(folder / TRIALS / trial / CONFIG_FILE))


def varied(rows: Sequence[Row]) -> list[str]:
    """The settings in which the rows differ: what the study studies."""
    settings = [asdict(row.config) for row in rows]
    fixed = (*PLACE, "seed")
    return [name for name in settings[0] if name not in fixed and len({str(s[name]) for s in settings}) > 1]


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells for people: mean ± deviation."""
    if not rows:
        return [], []
    names = varied(rows)
    heading = ["row", *names, "trials", *QUANTITIES.values()]
    return heading, [
        [
            row.name,
            *(_setting(getattr(row.config, name)) for name in names),
            f"{row.finished}/{row.trials}",
            *(_cell(row, quantity) for quantity in QUANTITIES),
        ]
        for row in rows
    ]


def _setting(value: Any) -> str:
    if value is None:
        return "–"
    return (
        ",".join(map(str, value))
        if isinstance(value, tuple)
        else f"{value:.4g}"
        if type(value) is float
        else str(value)
    )


def _cell(row: Row, quantity: str) -> str:
    value, deviation = row.mean(quantity), row.deviation(quantity)
    if value is None:
        return "–"
    show = (lambda v: f"{v:.4f}") if quantity in FRACTIONS else number
    return show(value) if not deviation else f"{show(value)} ± {show(deviation)}"


def write_table(folder: Path, rows: Sequence[Row]) -> None:
    """table.csv (every mean and deviation in full) and table.md."""
    names = varied(rows) if rows else []
    statistics = [f"{quantity}_{part}" for quantity in QUANTITIES for part in ("mean", "deviation")]
    lines: list[list[Any]] = [["row", *names, "trials", "finished", *statistics]]
    for row in rows:
        numbers = [part for q in QUANTITIES for part in (row.mean(q), row.deviation(q))]
        settings = [_setting(getattr(row.config, name)) for name in names]
        lines.append([row.name, *settings, row.trials, row.finished, *numbers])
    write_csv(folder / "table.csv", lines)
    write_text(folder / "table.md", markdown(*cells(rows)))


def markdown(heading: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
