"""spikeport report"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spikeport import console
from spikeport.commands.export import load_array

if TYPE_CHECKING:
    from spikeport.profiling import Report

EPILOG = """Examples:

spikeport report runs/snn --against runs/cnn

spikeport report loihi/fixed.npz --out report

spikeport report exported --network mynets:vgg --weights vgg.pt --input X.npy"""


def register(cli: typer.Typer) -> None:
    cli.command(epilog=EPILOG)(report)


def report(
    source: Annotated[
        Path,
        typer.Argument(help="The run of an SNN that was simulated, the folder of another export, or one record."),
    ],
    against: Annotated[
        str | None, typer.Option(help="The run of its CNN twin; beside --network the twin's pkg.module:factory.")
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="pkg.module:factory of the SNN that was exported, where it is no run's.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Its weights: .safetensors or .pt.")] = None,
    against_weights: Annotated[Path | None, typer.Option(help="Those of the twin.")] = None,
    input: Annotated[Path | None, typer.Option(help="The samples [N, ...] that were simulated, as .npy.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write; where left out RUN/report, or report beside the record.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="fixed or lava: its images alone; where left out, the first that both records are of."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Energy model to show; repeat for several: horowitz, horowitz-int8, lemaire, paper, loihi1."),
    ] = None,
    sample: Annotated[int, typer.Option(help="The image whose spikes are drawn.")] = 0,
    cross_check: Annotated[
        bool, typer.Option("--cross-check", help="Count with syops, ptflops, NeuroBench and SpikingJelly too.")
    ] = False,
    inference_time: Annotated[
        float | None, typer.Option(help="Seconds of one inference on Loihi 1: adds its static power to loihi1.")
    ] = None,
    json: console.Json = False,
    overwrite: console.Overwrite = False,
) -> None:
    """Write the report: per layer, what training promised beside what the target's spikes say."""
    from spikeport.core.errors import SpikeportError
    from spikeport.export import is_factory
    from spikeport.export.factory import build_model
    from spikeport.profiling import report as write

    if (network is None) != (input is None):
        raise SpikeportError("--network and --input X.npy, the samples that were simulated, belong together")
    if weights and not network:
        raise SpikeportError("--weights belongs to --network pkg.module:factory")
    own_twin = against is not None and is_factory(against)
    if against_weights and not own_twin:
        raise SpikeportError("--against-weights belongs to --against pkg.module:factory")
    with console.bar("counting") as progress:
        written = write(
            source,
            build_model(against, against_weights) if against and own_twin else against,
            out,
            overwrite,
            progress,
            models=model or (),
            sample=sample,
            check=cross_check,
            seconds=inference_time,
            network=build_model(network, weights) if network else None,
            x=load_array(input) if input else None,
            engine=engine,
        )
    if json:
        console.print_json(written.content)
    else:
        show(written)


def show(written: "Report") -> None:
    """The table of layers, and where the page lies."""
    from spikeport.profiling.page import number
    from spikeport.profiling.rows import totals

    witnesses = list(written.content["totals"])
    columns = ["layer", f"MAC {witnesses[0]}", *(f"{q} {w}" for q in ("rate", "AC", "nJ") for w in witnesses)]
    rows = []
    for row in written.rows:
        cells = [number(v.get(w)) for v in (row.rate, row.acs, row.energy_nj) for w in witnesses]
        rows.append([row.layer or "(relay)", number(row.macs), *cells])
    sums = totals(written.rows)
    ends = [number(sums[w][q]) for q in ("acs", "energy_nj") for w in witnesses]
    rows.append(["all layers", number(sums[witnesses[0]]["macs"]), *[""] * len(witnesses), *ends])
    samples = written.content["network"]["samples_compared"]
    console.table(f"Per image, over all steps; the first {samples} images", columns, rows)
    of = {w: written.content["engines"][w]["samples"] for w in witnesses if w in written.content["engines"]}
    few, many = min(of, key=lambda w: of[w]), max(of, key=lambda w: of[w])
    if of[few] < of[many]:
        console.say(f"the {few} record is of {of[few]} images alone; --engine {many} reports on {of[many]}")
    table = [
        [name, *(number(entry["nj"].get(w)) for w in ("cnn", *witnesses)), entry["refused"]]
        for name, entry in written.content["energy"].items()
    ]
    console.table("Energy per image, nJ", ["model", "cnn", *witnesses, "refused"], table)
    for check in written.content["cross_check"] or ():
        console.say(
            f"{check['tool']}, {check['network']} {check['quantity']}: {number(check['theirs'])} beside "
            f"{number(check['ours'])} here, {number(check['unexplained'])} unexplained"
        )
    summary, network = written.content["summary"], written.content["network"]
    if network["trained_for"]:
        console.say(
            f"trained in the integers of {network['trained_for']}: the fixed engine does what this training did; "
            '"training" counts the same weights in float32'
        )
    if summary["mean_rate"] is not None:
        below = "below" if summary["mean_rate"] < summary["rate_goal"] else "NOT below"
        console.say(f"average firing rate {summary['mean_rate']:.3f}: {below} the goal of {summary['rate_goal']}")
    if summary["silent_layers"]:
        console.say(f"never fired on these images: {', '.join(summary['silent_layers'])}; look at the accuracy first")
    for name in ("cnn", "snn"):
        if name in summary:
            s = summary[name]
            accuracy = "" if s["test_accuracy"] is None else f"test accuracy {s['test_accuracy']:.4f}, "
            console.say(f"{name.upper()}: {accuracy}{number(s['energy_nj'])} nJ per image")
    console.say(f"report: {written.page}")
