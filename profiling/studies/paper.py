"""The paper's Tables 4.1, 4.2 and 4.3, each figure beside ours, with the difference and what is known of it.

Parameters, MACs and the CNN's energy need no training and are always computed. Accuracies, ACs and the SNN's energy
come from finished studies; without one they are "not run".
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from spikeport.core.config import TrainConfig
from spikeport.core.errors import SpikeportError
from spikeport.core.models import MODELS, ModelSpec, Twin
from spikeport.profiling.energy import HOROWITZ, model_sizes
from spikeport.profiling.studies import paper_figures as figures
from spikeport.profiling.studies.ablation import SCHEDULES, ablation_study
from spikeport.profiling.studies.compare import compare_study
from spikeport.profiling.studies.results import read_rows, write_results
from spikeport.profiling.studies.running import run_study
from spikeport.profiling.studies.study import Study, read_study
from spikeport.profiling.studies.table import Row

TABLES = ("4.1", "4.2", "4.3")
#: Width, form and number of steps of the paper's networks are the defaults.
PAPERS = TrainConfig()
#: The 10-minute version for a CPU: it shows how the rows are made, its accuracies mean little.
QUICK: dict[str, Any] = {
    "width": 0.25,
    "train_images": 2000,
    "epochs": 3,
    "batch_size": 32,
    "schedule": "cosine",
    "lr": 0.002,
    "patience": 0,
}


@dataclass(frozen=True)
class Line:
    """One figure of the paper beside ours.

    Attributes:
        row: data set and model, or schedule.
        paper: as printed, in the unit of the quantity ("" where the paper has none).
        ours: in the same unit; None: not run.
        reason: why they differ, or what ours is.
    """

    row: str
    quantity: str
    paper: str
    ours: float | None
    reason: str = ""

    @property
    def difference(self) -> float | None:
        """Relative to the paper's figure."""
        return self.ours / float(self.paper) - 1 if self.paper and self.ours is not None else None

    def cells(self) -> tuple[str, str, str]:
        """The paper's figure, ours and the difference, for people."""
        digits = max(len(self.paper.partition(".")[2]), 1) if self.paper else 4
        ours = "not run" if self.ours is None else f"{self.ours:,.{0 if self.ours >= 1e5 else digits}f}"
        return self.paper or "–", ours, "–" if self.difference is None else f"{self.difference:+.1%}"

    @property
    def equal(self) -> bool:
        """Whether ours rounds to the printed figure, at the digits the paper prints."""
        if self.ours is None or not self.paper:
            return False
        return abs(Decimal(self.ours) - Decimal(self.paper)) <= _last_digit(self.paper) / 2


def _last_digit(printed: str) -> Decimal:
    """The place of the last digit that means something: 0.1 for "736.5", 10 for "4470"."""
    if "." in printed:
        return Decimal(1).scaleb(-len(printed.split(".")[1]))
    return Decimal(10) ** (len(printed) - len(printed.rstrip("0")))


def paper_table(table: str, studies: Sequence[Path] = ()) -> list[Line]:
    """The lines of a table; trained figures are those of the first study that has them.

    Raises:
        SpikeportError: a table the paper does not have, a folder that is not a study's.
    """
    if table not in TABLES:
        raise SpikeportError(f"table {table!r} is not one of {', '.join(TABLES)}")
    found: dict[tuple, Row] = {}
    for folder in studies:
        for row in read_rows(read_study(folder), folder):
            if row.finished:
                found.setdefault(_key(row.config), row)
    lines = {"4.1": _table_4_1, "4.2": _table_4_2, "4.3": _table_4_3}[table](lambda *key: found.get(key))
    return [replace(line, reason="equal, as printed") if line.equal and not line.reason else line for line in lines]


def quick_study(table: str, data: str) -> Study:
    """The trainings of a table on a CIFAR-10 subset, small enough for a CPU."""
    base = TrainConfig(dataset="cifar10", data=data, **QUICK)
    if table == "4.2":
        return ablation_study(base)
    return compare_study(base, kinds=("snn",) if table == "4.1" else ("cnn", "snn"))


def run_quick(
    table: str,
    data: str,
    folder: Path,
    resume: bool = False,
    processes: int = 1,
    on_trial: Callable[[str], None] = lambda name: None,
) -> list[Line]:
    """Trains the quick version of a table into a study folder, and returns the table.

    Raises:
        SpikeportError: as ``run_study`` and ``paper_table``.
    """
    if table not in TABLES:
        raise SpikeportError(f"table {table!r} is not one of {', '.join(TABLES)}")
    study = quick_study(table, data)
    run_study(study, folder, resume, processes, on_trial)
    write_results(study, folder)
    return paper_table(table, [folder])


Find = Callable[..., Row | None]


def _key(config: TrainConfig) -> tuple:
    return (config.dataset, *_network(config.model, config.keep), config.kind)


def _network(model: str, keep: tuple[int, ...] | None = None) -> tuple:
    """SqueezeNet is the same network under three names: its own, SqueezeNet-P, and what --keep names."""
    kept = keep or MODELS[model].arguments.get("keep")
    return ("squeezenet" if kept else model, kept)


def _table_4_1(find: Find) -> Iterator[Line]:
    for (dataset, model), printed in figures.TABLE_4_1.items():
        label = f"{dataset} {model}"
        accuracy, f1, acs, macs, parameters, energy = printed
        size = _sizes(model, "snn", *figures.DATASETS[dataset])
        slip = lambda quantity, key=(dataset, model): figures.SLIPS.get((*key, quantity))  # noqa: E731
        row = find(dataset, *_network(model), "snn")
        yield _trained(label, "accuracy", accuracy, row, "test_accuracy")
        yield _trained(label, "F1", f1, row, "test_macro_f1")
        yield _counted(label, "ACs (k)", acs, row, "paper_acs", 1e3)
        reason = slip("macs") or figures.MAC_REASONS.get(model, "")
        yield _explained(Line(label, "MACs (k)", macs, size["macs"] / 1e3), reason)
        reason = slip("parameters") or figures.PARAMETER_REASONS.get(model, "")
        yield _explained(Line(label, "parameters (k)", parameters, size["parameters"] / 1e3), reason)
        yield _counted(label, "energy (mJ)", energy, row, "paper_energy_nj", 1e6, slip("energy") or "")
        yield _counted(label, "energy, whole (mJ)", "", row, "energy_nj", 1e6)


def _table_4_2(find: Find) -> Iterator[Line]:
    for schedule, (accuracy, parameters, energy) in figures.TABLE_4_2.items():
        row = find("cifar10", "squeezenet", SCHEDULES[schedule], "snn")
        size = _sizes("squeezenet", "snn", 10, 32, SCHEDULES[schedule])
        yield _trained(schedule, "accuracy", accuracy, row, "test_accuracy")
        line = Line(schedule, "parameters", parameters, size["parameters"])
        yield _explained(line, figures.SCHEDULE_REASONS.get(schedule, ""))
        yield _counted(schedule, "energy (mJ)", energy, row, "paper_energy_nj", 1e6)
        yield _counted(schedule, "energy, whole (mJ)", "", row, "energy_nj", 1e6)


def _table_4_3(find: Find) -> Iterator[Line]:
    for model, (cnn_accuracy, snn_accuracy, cnn_energy, snn_energy, ratio) in figures.TABLE_4_3.items():
        cnn, snn = (find("cifar10", *_network(model), kind) for kind in ("cnn", "snn"))
        yield _trained(model, "CNN accuracy (%)", cnn_accuracy, cnn, "test_accuracy", 0.01)
        yield _trained(model, "SNN accuracy (%)", snn_accuracy, snn, "test_accuracy", 0.01)
        paid = HOROWITZ.of(0, _sizes(model, "cnn", 10, 32)["macs"])
        yield _explained(
            Line(model, "CNN energy (mJ)", cnn_energy, paid / 1e6), figures.CNN_ENERGY_REASONS.get(model, "")
        )
        spent = _counted(model, "SNN energy (mJ)", snn_energy, snn, "paper_energy_nj", 1e6)
        yield spent
        gain = paid / 1e6 / spent.ours if spent.ours else None
        yield Line(model, "CNN / SNN energy", ratio, gain, figures.ONE_STEP if gain else "")
        whole = _counted(model, "SNN energy, whole (mJ)", "", snn, "energy_nj", 1e6)
        yield whole
        gain = paid / 1e6 / whole.ours if whole.ours else None
        yield Line(model, "CNN / SNN energy, whole", "", gain, figures.WHOLE if gain else "")


@cache
def _sizes(model: str, kind: str, classes: int, size: int, keep: tuple[int, ...] | None = None) -> dict[str, int]:
    twin = Twin(kind, time_steps=1)  # what the paper counts
    return model_sizes(ModelSpec(model, twin, classes, 3, size, keep=keep))


def _explained(line: Line, reason: str) -> Line:
    return line if line.equal else replace(line, reason=reason)


def _trained(label: str, quantity: str, printed: str, row: Row | None, name: str, unit: float = 1.0) -> Line:
    if row is None:
        return Line(label, quantity, printed, None)
    value = row.mean(name)
    assert value is not None
    return Line(label, quantity, printed, value / unit, _how(row))


def _counted(
    label: str, quantity: str, printed: str, row: Row | None, name: str, unit: float, reason: str = ""
) -> Line:
    """Operations or energy of a trained network; of another form or width they would say nothing beside the paper's."""
    if row is not None and _otherwise(row.config):
        return Line(label, quantity, printed, None, f"counted at {_otherwise(row.config)}: see the study's table.csv")
    if row is None:
        return Line(label, quantity, printed, None, reason)
    value = row.mean(name)
    assert value is not None
    return Line(label, quantity, printed, value / unit, reason or (figures.ONE_STEP if printed else figures.WHOLE))


def _how(row: Row) -> str:
    config = row.config
    told = [
        f"{row.finished} seed(s), at most {config.epochs} epochs",
        f"{config.train_images:,} images" if config.train_images else "",
        _otherwise(config),
        f"in {config.target}'s integers" if config.target else "",
    ]
    return ", ".join(filter(None, told))


def _otherwise(config: TrainConfig) -> str:
    """In what the network is another one than the paper's."""
    snn = config.kind == "snn"
    told = [
        f"width {config.width:g}" if config.width != PAPERS.width else "",
        f"spiking {config.spiking}" if snn and config.spiking != PAPERS.spiking else "",
        f"T = {config.time_steps}" if snn and config.time_steps != PAPERS.time_steps else "",
    ]
    return ", ".join(filter(None, told))
