"""spikeport simulate"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spikeport import console
from spikeport.commands.export import load_array

if TYPE_CHECKING:
    from spikeport.targets.onnx import OnnxRecord

EPILOG = """Examples:

spikeport simulate runs/snn --target loihi --samples 360

spikeport simulate runs/snn --target loihi --samples 10000 --processes 2

spikeport simulate runs/snn --target loihi --engine lava --samples 32

spikeport simulate runs/cnn --target onnx

spikeport simulate program.npz --target loihi --input X.npy --labels Y.npy

spikeport simulate program.npz --input X.npy --network mynets:vgg --weights vgg.pt"""


def register(cli: typer.Typer) -> None:
    cli.command(epilog=EPILOG)(simulate)


def simulate(
    source: Annotated[Path, typer.Argument(help="A run folder, or a target's program file.")],
    target: Annotated[str, typer.Option(help="loihi or onnx.")] = "loihi",
    engine: Annotated[str | None, typer.Option(help="loihi: fixed (default) or lava.")] = None,
    samples: Annotated[int, typer.Option(help="Test images of the run's data set.")] = 64,
    input: Annotated[Path | None, typer.Option(help="Samples [N, C, H, W] as .npy instead.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Their classes [N] as .npy.")] = None,
    network: Annotated[
        str | None,
        typer.Option(help="loihi: pkg.module:factory of a program of no run, to hold the engine against its spikes."),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Its weights: .safetensors or .pt.")] = None,
    convolution: Annotated[
        str | None, typer.Option(help="lava: 'fast' (exact, ours) or 'stock' (Intel's) convolution model.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="lava: seconds before the simulation is given up.")] = None,
    processes: Annotated[
        int | None, typer.Option(help="fixed: share the samples among that many processes (default 1).")
    ] = None,
    rasters: Annotated[int, typer.Option(help="Keep the spike maps of that many first samples.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The record to write.")] = None,
    overwrite: console.Overwrite = False,
) -> None:
    """Run an exported network where it will live. Exit status 1 where the two Loihi engines disagree."""
    from spikeport.core.errors import SpikeportError
    from spikeport.export.factory import build_model
    from spikeport.targets import simulate as run

    options: dict[str, Any] = {"convolution": convolution, "timeout": timeout}
    options |= {"rasters": rasters or None, "processes": processes}
    options = {name: value for name, value in options.items() if value is not None}
    if engine != "lava" and (convolution is not None or timeout is not None):
        raise SpikeportError("--convolution and --timeout belong to Lava; add --engine lava")
    if processes is not None and (target == "onnx" or engine == "lava"):
        raise SpikeportError("--processes belongs to the fixed engine; leave it out")
    if weights and not network:
        raise SpikeportError("--weights belongs to --network pkg.module:factory")
    if network:
        options["network"] = build_model(network, weights)
    given = {"x": load_array(input) if input else None, "labels": load_array(labels) if labels else None}
    with console.bar("simulating") as progress:
        record = run(
            source, target, engine, samples, out=out, overwrite=overwrite, progress=progress, **given, **options
        )
    if target == "onnx":
        show_onnx(record)
        return
    accuracy = "" if record.accuracy is None else f", accuracy {record.accuracy:.4f}"
    spikes = sum(int(s.sum()) for s in record.spikes.values()) / record.samples
    events = sum(int(e.sum()) for e in record.events.values()) / record.samples
    console.say(
        f"engine {record.engine}: {record.samples} samples, {record.time_steps} steps{accuracy}; per sample "
        f"{spikes:,.0f} spikes, {events:,.0f} synaptic events; no wrap, no saturation"
    )
    if record.engine == "lava":
        console.say(f"Lava equals the fixed engine, integer for integer, in {len(record.spikes)} layers")
    if "against_float" in record.details:
        show_against_float(record.details["against_float"])


def show_onnx(record: "OnnxRecord") -> None:
    """Both forms in ONNX Runtime, the 8-bit one where it was exported."""
    forms = {"onnx": {"accuracy": record.accuracy, "latency_ms": record.latency_ms}}
    for name, form in (forms | ({"int8": record.int8} if record.int8 else {})).items():
        right = "" if form["accuracy"] is None else f"accuracy {form['accuracy']:.4f} on "
        console.say(f"{name}: {right}{record.samples} images, {form['latency_ms']:.2f} ms per image (batch 1, median)")


def show_against_float(compared: dict[str, Any]) -> None:
    """The float model beside its integers."""
    columns = ("layer", "float spikes", "fixed spikes", "differing", "of neurons and steps")
    rows = [
        (n["layer"], f"{n['float_spikes']:,}", f"{n['fixed_spikes']:,}", f"{n['differing']:,}", f"{n['share']:.3%}")
        for n in compared["layers"]
    ]
    console.table("Float against fixed", columns, rows)
    first = compared["first_difference"]
    where = f"the first spikes that differ are in {first}" if first else "every spike is the same"
    accuracy = ""
    if compared["float_accuracy"] is not None:
        accuracy = f"accuracy float {compared['float_accuracy']:.4f}, fixed {compared['fixed_accuracy']:.4f}; "
    console.say(f"{accuracy}same class in {compared['same_class']:.1%} of the samples; {where}")
