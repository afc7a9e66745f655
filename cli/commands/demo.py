"""spikeport demo"""

import time
from pathlib import Path
from typing import Annotated

import typer

from spikeport import console
from spikeport.commands import report as report_command
from spikeport.commands.export import certificate
from spikeport.commands.train import show

#: Images simulated in Lava; the fixed engine runs the whole test set.
LAVA_SAMPLES = 32
FIXED_SAMPLES = 360


def register(cli: typer.Typer) -> None:
    cli.command(epilog="Example: spikeport demo --out runs/demo")(demo)


def demo(
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("runs/demo"),
    overwrite: console.Overwrite = False,
) -> None:
    """Everything once, on the embedded digits: train both twins, export, verify, simulate in Lava, report."""
    from spikeport import compile, report, simulate, to_nir, to_onnx, train
    from spikeport.core import TrainConfig
    from spikeport.core.files import refuse_existing
    from spikeport.targets.loihi.lava import environment

    begin = time.perf_counter()
    cnn, snn = out / "cnn", out / "snn"
    refuse_existing(out, overwrite)
    if not environment.status().ready:
        step("build the Lava environment, once")
        environment.setup(say=console.say)
    for kind, epochs, folder in (("cnn", 6, cnn), ("snn", 12, snn)):
        step(f"train the {kind.upper()} of SqueezeNet-P on the digits")
        settings = TrainConfig(kind=kind, epochs=epochs, schedule="cosine", patience=0)
        with console.bar("training") as progress:
            run = train(settings, folder, overwrite=overwrite, progress=progress, on_epoch=show)
        console.say(f"test accuracy {run.results['test_accuracy']:.4f}, F1 {run.results['test_macro_f1']:.4f}")
    step("export both, verified on real images")
    certificate(to_onnx(cnn), cnn / "onnx/model.onnx")
    certificate(to_nir(snn), snn / "nir/model.nir")
    program = compile(snn)
    console.say(f"{snn / 'loihi/program.npz'}: {sum(p.neurons for p in program.populations):,} neurons")
    step("simulate: ONNX Runtime, the fixed-point engine, Intel's Lava")
    onnx = simulate(cnn, "onnx", samples=FIXED_SAMPLES)
    console.say(f"onnx: accuracy {onnx.accuracy:.4f} on {onnx.samples} images, {onnx.latency_ms:.2f} ms per image")
    records = {}
    for engine, samples in (("fixed", FIXED_SAMPLES), ("lava", LAVA_SAMPLES)):
        with console.bar(f"engine {engine}") as progress:
            kept = {"rasters": 1} if engine == "fixed" else {}
            records[engine] = simulate(snn, "loihi", engine, samples, progress=progress, **kept)
        console.say(f"{engine}: accuracy {records[engine].accuracy:.4f} on {samples} images, no wrap, no saturation")
    layers = len(records["lava"].spikes)
    console.say(f"Lava equals the fixed engine, integer for integer, in {layers} layers on {LAVA_SAMPLES} images")
    step("report")
    with console.bar("counting") as progress:
        written = report(snn, cnn, progress=progress)
    report_command.show(written)
    console.say(f"done in {time.perf_counter() - begin:.0f} s")


def step(text: str) -> None:
    console.out.print(f"\n[bold]{text}[/bold]")
