"""spikeport demo"""

import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer

import spikeport
from spikeport import console
from spikeport.commands import report as report_command
from spikeport.commands.export import certificate
from spikeport.commands.simulate import show_onnx
from spikeport.commands.train import show

#: Images simulated in Lava; the fixed engine runs the whole test set of the digits.
LAVA_SAMPLES = 32
FIXED_SAMPLES = 360
#: Trained twins of SqueezeNet-P, and how many test images travel with them.
PRETRAINED = "examples/pretrained/squeezenet-p-cifar10"
CARRIED_SAMPLES = 64

EPILOG = """Examples:

spikeport demo --out runs/demo

spikeport demo --pretrained --out runs/pretrained"""


def register(cli: typer.Typer) -> None:
    cli.command(epilog=EPILOG)(demo)


def demo(
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("runs/demo"),
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help=f"Take the CIFAR-10 twins of {PRETRAINED} instead of training.")
    ] = False,
    overwrite: console.Overwrite = False,
) -> None:
    """Everything once, on the embedded digits: train both twins, export, verify, simulate in Lava, report."""
    from spikeport import compile, report, simulate, to_nir, to_onnx
    from spikeport.core.files import refuse_existing
    from spikeport.export import NIR_FILE, ONNX_FILE
    from spikeport.targets import PROGRAM_FILE
    from spikeport.targets.loihi.lava import environment

    begin = time.perf_counter()
    cnn, snn = out / "cnn", out / "snn"
    source = find_pretrained() if pretrained else None
    refuse_existing(out, overwrite)
    if not environment.status().ready:
        step("build the Lava environment, once")
        environment.setup(say=console.say)
    if source:
        take(source, out)
    else:
        train_twins(out, overwrite)
    samples = CARRIED_SAMPLES if source else FIXED_SAMPLES
    step("export both, verified on real images")
    certificate(to_onnx(cnn, int8=True), cnn / ONNX_FILE)
    certificate(to_nir(snn), snn / NIR_FILE)
    program = compile(snn)
    console.say(f"{snn / PROGRAM_FILE}: {sum(p.neurons for p in program.populations):,} neurons")
    step("simulate: ONNX Runtime, the fixed-point engine, Intel's Lava")
    show_onnx(simulate(cnn, "onnx", samples=samples))
    records = {}
    for engine, count in (("fixed", samples), ("lava", LAVA_SAMPLES)):
        with console.bar(f"engine {engine}") as progress:
            rasters = 1 if engine == "fixed" else 0
            records[engine] = simulate(snn, "loihi", engine, count, progress=progress, rasters=rasters)
        console.say(f"{engine}: accuracy {records[engine].accuracy:.4f} on {count} images, no wrap, no saturation")
    layers = len(records["lava"].spikes)
    console.say(f"Lava equals the fixed engine, integer for integer, in {layers} layers on {LAVA_SAMPLES} images")
    step("report")
    with console.bar("counting") as progress:
        written = report(snn, cnn, progress=progress)
    report_command.show(written)
    console.say(f"done in {time.perf_counter() - begin:.0f} s")


def train_twins(out: Path, overwrite: bool) -> None:
    """Both twins on the digits, the SNN first in floating point, then in the chip's integers."""
    from spikeport import train
    from spikeport.core import TrainConfig
    from spikeport.core.figures import draw_figures
    from spikeport.targets.loihi.qat import preparation

    started = out / "snn-float"
    common: dict[str, Any] = {"schedule": "cosine", "patience": 0}
    trainings: list[tuple[str, Path, dict[str, Any]]] = [
        ("train the CNN of SqueezeNet-P on the digits", out / "cnn", {"kind": "cnn", "epochs": 6}),
        ("train its SNN", started, {"epochs": 12}),
        ("go on in Loihi's integers", out / "snn", {"epochs": 3, "lr": 2e-4, "start": str(started), "target": "loihi"}),
    ]
    for text, folder, settings in trainings:
        step(text)
        config = TrainConfig(**common, **settings)
        with console.bar("training") as progress:
            run = train(
                config,
                folder,
                overwrite=overwrite,
                progress=progress,
                on_epoch=show,
                prepare=preparation(config),
            )
        draw_figures(run.path)
        console.say(f"test accuracy {run.results['test_accuracy']:.4f}, F1 {run.results['test_macro_f1']:.4f}")


def find_pretrained() -> Path:
    """The trained twins of a checkout: in the current folder, or where an editable install points."""
    from spikeport.core.errors import SpikeportError

    for root in (Path(), Path(spikeport.__file__).resolve().parents[1]):
        if (root / PRETRAINED).is_dir():
            return root / PRETRAINED
    raise SpikeportError(f"{PRETRAINED}: not here; run this in a checkout of spikeport")


def take(source: Path, out: Path) -> None:
    """Copies trained twins, with the test images they carry, into ``out``."""
    from spikeport.core import load_run

    step(f"take the trained twins of {source}")
    for kind in ("cnn", "snn"):
        shutil.rmtree(out / kind, ignore_errors=True)
        shutil.copytree(source / kind, out / kind)
        run = load_run(out / kind)
        console.say(f"{kind.upper()}: {run.data.name}, test accuracy {run.results['test_accuracy']:.4f}")


def step(text: str) -> None:
    console.out.print(f"\n[bold]{text}[/bold]")
