"""spikeport check"""

from pathlib import Path
from typing import Annotated, Any

import typer

from spikeport import console
from spikeport.commands.export import load_array

EPILOG = """Examples:

spikeport check runs/snn --target loihi

spikeport check runs/snn --target loihi --chip loihi1 --input host-current

spikeport check model.nir --target loihi --chip loihi1 --json

spikeport check mynets:vgg --weights vgg.pt --calibration X.npy --time-steps 4 --target loihi

spikeport check other.nir --time-steps 8 --calibration X.npy --target loihi"""


def register(cli: typer.Typer) -> None:
    cli.command(epilog=EPILOG)(check)


def check(
    source: Annotated[str, typer.Argument(help="A run folder, a NIR file, or pkg.module:factory.")],
    target: Annotated[str, typer.Option(help="loihi.")] = "loihi",
    chip: Annotated[str | None, typer.Option(help="loihi1 or loihi2. Default: loihi2.")] = None,
    input: Annotated[
        str,
        typer.Option(
            help="loihi: graded (Loihi 2), host-current (both chips: first layer on the host), or spikes (check alone: "
            "would it fit if its input were spikes?)."
        ),
    ] = "graded",
    weights: Annotated[Path | None, typer.Option(help="Weights of a factory's network: .safetensors or .pt.")] = None,
    time_steps: Annotated[int | None, typer.Option(help="T, for SpikingJelly, snnTorch and foreign NIR files.")] = None,
    dt: Annotated[float | None, typer.Option(help="Seconds per step of a foreign NIR file (default 1e-4).")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Real samples [N, ...] as .npy: range of the input of what is no run.")
    ] = None,
    limits: Annotated[bool, typer.Option("--limits", help="Every limit of every layer, a line each.")] = False,
    json: console.Json = False,
) -> None:
    """Say before compiling whether a network fits: every layer, every limit, the remedy. Status 1 where it does not."""
    from spikeport.core.errors import SpikeportError
    from spikeport.export import is_factory
    from spikeport.export.factory import build_model
    from spikeport.targets import check as run
    from spikeport.targets.loihi.compatibility import COLUMNS, LAYER_COLUMNS

    options: dict[str, Any] = {"input_mode": input} if target == "loihi" else {}
    factory = is_factory(source)
    if factory and dt is not None:
        raise SpikeportError("--dt belongs to foreign NIR files; leave it out")
    if weights and not factory:
        raise SpikeportError(f"--weights belongs to pkg.module:factory, not to {source}")
    samples = load_array(calibration) if calibration else None
    network = build_model(source, weights) if factory else source
    found = run(network, target, chip, time_steps, dt, samples, **options)
    if json:
        console.print_json(found.to_dict())
    else:
        columns, rows = (COLUMNS, found.lines()) if limits else (LAYER_COLUMNS, found.layers())
        console.table(f"{source} on {found.chip.title}", columns, rows)
        console.say(found.summary())
        for line in found.errors:
            console.say(f"does not fit: {line}")
    raise typer.Exit(0 if found.fits else 1)
