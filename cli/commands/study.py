"""spikeport study ablation|search|compare|seeds|paper"""

import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spikeport import console
from spikeport.commands.train import NUMBERS, entries, from_flags, integers

if TYPE_CHECKING:
    from spikeport.core import TrainConfig
    from spikeport.profiling.studies import Study
    from spikeport.profiling.studies.table import Row

cli = typer.Typer(
    no_args_is_help=True,
    help="Many trainings as one table: schedules, settings, models, seeds, and the paper's tables beside ours.",
)

Out = Annotated[Path, typer.Option(help="The study's folder.")]
Config = Annotated[Path | None, typer.Option(help="TOML file of training settings, as `train --config` takes it.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="One training setting, as --set epochs=20 --set augment=crop,flip.")
]
Dataset = Annotated[str | None, typer.Option(help="See `spikeport datasets`. Default: digits.")]
Data = Annotated[Path | None, typer.Option(help="Folder of the data set.")]
Epochs = Annotated[int | None, typer.Option(help="Upper limit of epochs. Default: 150.")]
Seeds = Annotated[int, typer.Option(help="How many seeds, from that of the settings on.")]
Processes = Annotated[int, typer.Option(help="Trials trained at the same time.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the study in the folder.")]


@cli.command(epilog="Example: spikeport study ablation --dataset digits --epochs 20 --seeds 2 --out runs/ablation")
def ablation(
    out: Out,
    schedule: Annotated[
        list[str] | None, typer.Option(help="full, head-1 ... ref-2, or the Fire modules that stay, as 4,6,8,9.")
    ] = None,
    config: Config = None,
    dataset: Dataset = None,
    data: Data = None,
    epochs: Epochs = None,
    set_: Set = None,
    seeds: Seeds = 1,
    processes: Processes = 1,
    resume: Resume = False,
    json: console.Json = False,
) -> None:
    """Prune SqueezeNet's Fire modules: the nine schedules of the paper's Table 4.2, or your own."""
    from spikeport.profiling.studies import ablation_study

    base = settings(config, set_, {"keep": "--schedule"}, dataset=dataset, data=data, epochs=epochs)
    conduct(ablation_study(base, schedule or (), seeds), out, resume, processes, json)


@cli.command(
    epilog="Example: spikeport study compare --model squeezenet-p --model mixnet --dataset digits "
    "--dataset cifar10=DIR --epochs 20 --out runs/compare"
)
def compare(
    out: Out,
    model: Annotated[list[str] | None, typer.Option(help="A model; all of them where left out.")] = None,
    kind: Annotated[list[str] | None, typer.Option(help="cnn or snn; both where left out.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="NAME, or NAME=FOLDER. Default: digits.")] = None,
    config: Config = None,
    epochs: Epochs = None,
    set_: Set = None,
    seeds: Seeds = 1,
    processes: Processes = 1,
    resume: Resume = False,
    json: console.Json = False,
) -> None:
    """Compare models, twins and data sets: the paper's Tables 4.1, 4.3 and 4.4, and its Figure 1.1."""
    from spikeport.core.models import KINDS, MODELS
    from spikeport.profiling.studies import compare_study

    base = settings(config, set_, {"model": "--model", "kind": "--kind"}, epochs=epochs)
    datasets = dict(dataset_and_folder(text) for text in dataset) if dataset else None
    study = compare_study(base, model or tuple(MODELS), kind or KINDS, datasets, seeds)
    conduct(study, out, resume, processes, json)


@cli.command(epilog="Example: spikeport study seeds --config runs/snn/config.toml --seeds 5 --out runs/seeds")
def seeds(
    out: Out,
    config: Config = None,
    dataset: Dataset = None,
    data: Data = None,
    epochs: Epochs = None,
    set_: Set = None,
    seeds: Seeds = 3,
    processes: Processes = 1,
    resume: Resume = False,
    json: console.Json = False,
) -> None:
    """Train one network with several seeds: mean and deviation."""
    from spikeport.profiling.studies import seeds_study

    base = settings(config, set_, dataset=dataset, data=data, epochs=epochs)
    conduct(seeds_study(base, seeds), out, resume, processes, json)


@cli.command(
    epilog="Example: spikeport study search --dataset digits --epochs 10 --trials 20 --tau 2.0 --out runs/search"
)
def search(
    out: Out,
    trials: Annotated[int, typer.Option(help="How many trials in all.")] = 20,
    lr: Annotated[str, typer.Option(help="LOW:HIGH, or one value to fix it.")] = "1e-4:1e-2",
    tau: Annotated[str, typer.Option(help="LOW:HIGH, or one value.")] = "1.05:4",
    v_threshold: Annotated[str, typer.Option(help="LOW:HIGH, or one value.")] = "0.5:1.5",
    surrogate: Annotated[str | None, typer.Option(help="Names separated by commas; all five where left out.")] = None,
    sampler: Annotated[str, typer.Option(help="tpe, or random as in the paper.")] = "tpe",
    storage: Annotated[
        str | None, typer.Option(help="URL of a database that machines share; SQLite in the folder where left out.")
    ] = None,
    name: Annotated[str, typer.Option(help="Of the search in that database.")] = "search",
    config: Config = None,
    dataset: Dataset = None,
    data: Data = None,
    epochs: Epochs = None,
    set_: Set = None,
    processes: Processes = 1,
    resume: Resume = False,
    json: console.Json = False,
) -> None:
    """Search learning rate, tau, threshold and surrogate with Optuna; validation accuracy decides."""
    from spikeport.core.surrogates import SURROGATES
    from spikeport.profiling.studies import Search, Space, run_search

    names = tuple(SURROGATES) if surrogate is None else tuple(n.strip() for n in surrogate.split(",") if n.strip())
    space = Space(between(lr, "--lr"), between(tau, "--tau"), between(v_threshold, "--v-threshold"), names)
    varied = {"lr": "--lr", "tau": "--tau", "v_threshold": "--v-threshold", "surrogate": "--surrogate"}
    base = settings(config, set_, varied, dataset=dataset, data=data, epochs=epochs)
    definition = Search(base, space, sampler, name, storage)
    with progress(trials) as told:
        rows = run_search(definition, out, trials, resume, processes, told)
    show(rows, out, json)


@cli.command(epilog="Example: spikeport study paper --table 4.2 --study runs/ablation")
def paper(
    table: Annotated[str, typer.Option(help="4.1, 4.2 or 4.3.")],
    study: Annotated[list[Path] | None, typer.Option(help="A study whose trainings fill the table.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Train small versions on a CPU (minutes).")] = False,
    data: Annotated[Path | None, typer.Option(help="Folder of CIFAR-10, for --quick.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder of --quick. Default: runs/paper-TABLE.")] = None,
    processes: Processes = 1,
    resume: Resume = False,
    json: console.Json = False,
) -> None:
    """Print a table of the paper: its figures, ours, the difference, and the known reason."""
    from spikeport.core.errors import SpikeportError
    from spikeport.profiling.studies import paper_table, run_quick

    if not quick and (data or out or resume or processes != 1):
        raise SpikeportError(
            "--data, --out, --processes and --resume are for --quick; finished studies come in with --study"
        )
    if quick and study:
        raise SpikeportError("--quick trains its own study; leave out --study, or --quick")
    if quick:
        if not data:
            raise SpikeportError("--quick trains on CIFAR-10; add --data FOLDER, or leave out --quick to train nothing")
        folder = out or Path(f"runs/paper-{table}")
        with progress() as told:
            lines = run_quick(table, str(data.resolve()), folder, resume, processes, told)
    else:
        lines = paper_table(table, study or ())
    if json:
        console.print_json([{**vars(line), "difference": line.difference} for line in lines])
        return
    columns = ["row", "quantity", "paper", "ours", "difference", "reason"]
    rows = [[line.row, line.quantity, *line.cells(), line.reason] for line in lines]
    console.table(f"Table {table} of the paper", columns, rows, text_columns=2, remarks=True)


def conduct(study: "Study", out: Path, resume: bool, processes: int, json: bool) -> None:
    """Trains what is missing of a study, and shows its table."""
    from spikeport.profiling.studies import run_study, write_results

    with progress(len(study.trials)) as told:
        run_study(study, out, resume, processes, told)
    show(write_results(study, out), out, json)


@contextmanager
def progress(trials: int | None = None) -> Iterator[Callable[..., None]]:
    """Told the name of a trial that ended, draws a bar on a terminal and prints a line elsewhere.

    Why a trial failed is always printed.
    """
    done = 0
    with console.bar("trials") as bar:

        def told(name: str, failed: str = "") -> None:
            nonlocal done
            done += 1
            bar(done, trials)
            if failed or not console.err.is_terminal:
                line = f"{name}: failed: {failed}" if failed else f"{name}: done"
                console.err.print(line, soft_wrap=True, markup=False, highlight=False)

        try:
            yield told
        except KeyboardInterrupt:
            raise console.Interrupted("the same command with --resume goes on with the study") from None


def show(rows: list["Row"], out: Path, json: bool) -> None:
    from spikeport.profiling.studies.table import QUANTITIES, cells

    if json:
        values = [{"row": r.name, "trials": r.trials} | {q: r.values[q] for q in QUANTITIES} for r in rows]
        console.print_json(values)
        return
    heading, body = cells(rows)
    text = len(heading) - len(QUANTITIES)
    console.table(f"Study in {out}", heading, body, text_columns=text)
    frontier = f"; accuracy against energy: {out / 'pareto.svg'}" if any(row.finished for row in rows) else ""
    console.say(f"table: {out / 'table.csv'}, {out / 'table.md'}{frontier}")


def settings(
    config: Path | None, given: list[str] | None, varied: Mapping[str, str] = MappingProxyType({}), **flags: Any
) -> "TrainConfig":
    """Training settings: the file, then --set, then flags.

    Args:
        varied: what the study sets itself -> the flag that says how; of the file it takes the rest.
    """
    from spikeport.core import SpikeportError, TrainConfig
    from spikeport.core.config import laid_over

    chosen = dict(setting(text) for text in given or ())
    for name in varied.keys() & chosen.keys():
        raise SpikeportError(f"--set {name} has no effect: the study sets it; give {varied[name]}")
    values: dict[str, Any] = TrainConfig.read(config) if config else {}
    for others in (chosen, from_flags(flags)):
        values = laid_over(values, others)
    return TrainConfig(**values)


def setting(text: str) -> tuple[str, Any]:
    """ "width=0.5" as a name and a value; the value as TOML has it, or plain text."""
    from spikeport.core import SpikeportError, TrainConfig

    name, equals, value = text.partition("=")
    known = sorted(field.name for field in fields(TrainConfig))
    if not equals or name not in known:
        raise SpikeportError(f"--set {text}: expected NAME=VALUE with one of {', '.join(known)}")
    try:
        found = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        found = value
    if name in NUMBERS and not isinstance(found, list):
        return name, integers(value, f"--set {name}", NUMBERS[name])
    return name, entries(value) if name == "augment" and not isinstance(found, list) else found


def dataset_and_folder(text: str) -> tuple[str, str | None]:
    name, _, folder = text.partition("=")
    return name, str(Path(folder).resolve()) if folder else None


def between(text: str, flag: str) -> tuple[float, float]:
    """ "1e-4:1e-2" as two numbers, one number as itself twice."""
    from spikeport.core import SpikeportError

    try:
        numbers = [float(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise SpikeportError(f"{flag} {text!r}: expected LOW:HIGH or one number, as 0.5:1.5")
    return numbers[0], numbers[-1]
