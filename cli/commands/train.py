"""spikeport train"""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from spikeport import console

EPILOG = """Examples:

spikeport train --model squeezenet-p --kind snn --dataset digits --epochs 12 --out runs/snn

spikeport train --kind cnn --dataset cifar10 --data ~/cifar --optimizer sgd --lr 0.1 --schedule cosine --out runs/cnn

spikeport train --config runs/snn/config.toml --epochs 20 --resume --out runs/snn"""


def register(cli: typer.Typer) -> None:
    cli.command(epilog=EPILOG)(train)


def train(
    out: Annotated[Path, typer.Option(help="The run folder to write.")],
    model: Annotated[str | None, typer.Option(help="See `spikeport models`. Default: squeezenet-p.")] = None,
    kind: Annotated[str | None, typer.Option(help="cnn, or its spiking twin snn. Default: snn.")] = None,
    dataset: Annotated[str | None, typer.Option(help="See `spikeport datasets`. Default: digits.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data set.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Upper limit of epochs. Default: 150.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step. Default: 32.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate. Default: 0.001.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adam or sgd. Default: adam.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Momentum of sgd. Default: 0.9.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="L2 penalty. Default: 0.")] = None,
    schedule: Annotated[str | None, typer.Option(help="step, cosine or constant. Default: step.")] = None,
    milestones: Annotated[str | None, typer.Option(help="Epochs of the step schedule. Default: 50,100.")] = None,
    gamma: Annotated[float | None, typer.Option(help="Factor of the step schedule. Default: 0.1.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="Epochs without improvement before the end; 0: never. Default: 10.")
    ] = None,
    keep: Annotated[str | None, typer.Option(help="Fire modules of SqueezeNet that stay, as 4,6,8,9.")] = None,
    width: Annotated[float | None, typer.Option(help="Factor on the channels. Default: 1.0.")] = None,
    spiking: Annotated[str | None, typer.Option(help="activations or every-layer. Default: activations.")] = None,
    time_steps: Annotated[int | None, typer.Option(help="T. Default: 4.")] = None,
    tau: Annotated[float | None, typer.Option(help="Membrane time constant in steps. Default: 2.0.")] = None,
    v_threshold: Annotated[float | None, typer.Option(help="Firing threshold. Default: 1.0.")] = None,
    surrogate: Annotated[
        str | None, typer.Option(help="atan, sigmoid, fast-sigmoid, piecewise-linear or exponential. Default: atan.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, split and order. Default: 0.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 ... Default: auto.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16. Default: fp32.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; flags override it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's checkpoint.")] = False,
    overwrite: console.Overwrite = False,
) -> None:
    """Train a network: the CNN or its spiking twin."""
    from spikeport.core import TrainConfig
    from spikeport.core import train as run_training

    given: dict[str, Any] = dict(locals())
    settings = TrainConfig.read(config) if config else {}
    for field in fields(TrainConfig):
        value = given[field.name]
        if value is not None:
            settings[field.name] = str(value.resolve()) if isinstance(value, Path) else value
    for name in ("milestones", "keep"):
        if isinstance(settings.get(name), str):
            settings[name] = integers(settings[name], f"--{name}")
    columns = ("epoch", "loss", "accuracy", "validation accuracy")
    console.say("  ".join(columns))
    with console.bar("training") as progress:
        run = run_training(
            TrainConfig(**settings), out, resume=resume, overwrite=overwrite, progress=progress, on_epoch=show
        )
    results = run.results
    console.say(
        f"test accuracy {results['test_accuracy']:.4f}, macro F1 {results['test_macro_f1']:.4f} "
        f"(epoch {results['best_epoch']:.0f} of {results['epochs']:.0f}); saved in {out}"
    )


def show(row: dict[str, float]) -> None:
    console.say(
        f"{row['epoch']:5.0f}  {row['train_loss']:.4f}  {row['train_accuracy']:8.4f}  {row['validation_accuracy']:.4f}"
    )


def integers(text: str, flag: str) -> tuple[int, ...]:
    from spikeport.core.errors import SpikeportError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise SpikeportError(f"{flag} {text!r}: expected whole numbers separated by commas, as 4,6,8,9") from None
