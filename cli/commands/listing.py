"""spikeport models, spikeport datasets, spikeport targets"""

from pathlib import Path
from typing import Annotated

import typer

from spikeport import console


def register(cli: typer.Typer) -> None:
    cli.command(epilog="Example: spikeport models --json")(models)
    cli.command(epilog="Example: spikeport datasets --download cifar10 --data ~/data")(datasets)
    cli.command(epilog="Example: spikeport targets")(targets)


def models(json: console.Json = False) -> None:
    """List the models with their parameters and MACs (one image, 32x32, 10 classes, the paper's counting)."""
    from spikeport.core.models import KINDS, MODELS, ModelSpec, Twin
    from spikeport.profiling.energy import model_sizes

    rows = [
        {"name": name, "kind": kind} | model_sizes(ModelSpec(name, Twin(kind))) for name in MODELS for kind in KINDS
    ]
    if json:
        console.print_json(rows)
        return
    cells = [[r["name"], r["kind"], f"{r['parameters']:,}", f"{r['macs']:,}"] for r in rows]
    console.table("Models", ["name", "kind", "parameters", "MACs"], cells, text_columns=2)
    for name, entry in MODELS.items():
        console.say(f"{name}: {entry.help}")


def datasets(
    download: Annotated[str | None, typer.Option(help="Fetch, check and unpack the archive of this data set.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder to unpack it in; an archive that lies there is used.")
    ] = None,
    json: console.Json = False,
) -> None:
    """List the data sets with their archives, or fetch one."""
    from spikeport.core.data import DATASETS, download_dataset

    if download is not None:
        with console.bar(f"{download} (bytes)") as progress:
            console.say(f"{download_dataset(download, data, progress)}")
        return
    texts = {name: entry.help for name, entry in DATASETS.items()}
    texts |= {name: f"{texts[name]}; {entry.archive.url}" for name, entry in DATASETS.items() if entry.archive}
    _show("Data sets", texts, json)


def targets(json: console.Json = False) -> None:
    """List the targets."""
    from spikeport.targets import find_target, target_names

    _show("Targets", {name: find_target(name).help for name in target_names()}, json)


def _show(title: str, entries: dict[str, str], json: bool) -> None:
    if json:
        console.print_json([{"name": name, "help": text} for name, text in entries.items()])
    else:
        console.table(title, ["name", ""], list(entries.items()), text_columns=2)
