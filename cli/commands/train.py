"""spikeport train"""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spikeport import console

if TYPE_CHECKING:
    from spikeport.core import TrainConfig
    from spikeport.core.learner import Prepare

EPILOG = """Examples:

spikeport train --model squeezenet-p --kind snn --dataset digits --epochs 12 --out runs/snn

spikeport train --kind cnn --dataset cifar10 --data ~/cifar --optimizer sgd --lr 0.1 --schedule cosine --out runs/cnn

spikeport train --config runs/snn/config.toml --epochs 20 --resume --out runs/snn

spikeport train --from runs/snn --target loihi --epochs 4 --lr 2e-4 --out runs/snn-loihi

torchrun --nproc-per-node 4 -m spikeport train --dataset cifar10 --data ~/cifar --batch-size 256 --out runs/snn"""


NEURONS = ("spiking", "time_steps", "tau", "v_threshold", "surrogate", "alpha")
#: Flags that are lists of whole numbers, and an example of each.
NUMBERS = {"milestones": "50,100", "keep": "4,6,8,9"}
#: Flags that mean nothing but with certain settings: what asks for them, and whether it is there.
NEEDED: dict[tuple[str, ...], tuple[str, "Callable[[TrainConfig], object]"]] = {
    (*NEURONS, "rate_goal"): ("--kind snn", lambda c: c.kind == "snn"),
    ("momentum",): ("--optimizer sgd", lambda c: c.optimizer == "sgd"),
    ("milestones", "gamma"): ("--schedule step", lambda c: c.schedule == "step"),
    ("loss_weight",): ("--loss gradient-aware or grad-cam", lambda c: c.loss in ("gradient-aware", "grad-cam")),
    ("gradient_eps",): ("--loss gradient-aware", lambda c: c.loss == "gradient-aware"),
    ("distill_weight", "temperature"): ("--teacher", lambda c: c.teacher),
}


def register(cli: typer.Typer) -> None:
    cli.command(epilog=EPILOG)(train)


def train(
    out: Annotated[Path, typer.Option(help="The run folder to write.")],
    model: Annotated[str | None, typer.Option(help="See `spikeport models`. Default: squeezenet-p.")] = None,
    kind: Annotated[str | None, typer.Option(help="cnn, or its spiking twin snn. Default: snn.")] = None,
    dataset: Annotated[str | None, typer.Option(help="See `spikeport datasets`. Default: digits.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder (npz: file) of the data set.")] = None,
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
    alpha: Annotated[float | None, typer.Option(help="Steepness of the surrogate. Default: its own.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights and order. Default: 0.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 ... Default: auto.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16. Default: fp32.")] = None,
    compile: Annotated[bool | None, typer.Option("--compile", help="Through torch.compile.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Epochs of a rising learning rate. Default: 0.")] = None,
    clip: Annotated[float | None, typer.Option(help="Largest gradient norm; 0: any. Default: 0.")] = None,
    ema: Annotated[
        float | None, typer.Option(help="Decay of a moving average of the weights. Default: 0, none.")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="cross-entropy, temporal, gradient-aware or grad-cam. Default: cross-entropy.")
    ] = None,
    loss_weight: Annotated[float | None, typer.Option(help="Lambda of the loss's extra term. Default: 0.2.")] = None,
    gradient_eps: Annotated[float | None, typer.Option(help="Eps of the gradient-aware term. Default: 1e-8.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Share spread over all classes. Default: 0.")] = None,
    rate_weight: Annotated[float | None, typer.Option(help="Weight of the firing-rate penalty. Default: 0.")] = None,
    rate_goal: Annotated[
        float | None, typer.Option(help="Spikes per neuron and step, of the penalty and in figures/. Default: 0.3.")
    ] = None,
    teacher: Annotated[Path | None, typer.Option(help="A run to learn from too, as the CNN twin's.")] = None,
    distill_weight: Annotated[float | None, typer.Option(help="The teacher's share of the loss. Default: 0.5.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the distillation. Default: 4.")] = None,
    augment: Annotated[str | None, typer.Option(help="Some of crop,flip,cutout. Default: none.")] = None,
    validation: Annotated[
        float | None, typer.Option(help="Share of the training images held out to judge epochs by. Default: 0.2.")
    ] = None,
    train_images: Annotated[int | None, typer.Option(help="Use only so many training images.")] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Go on from this run: its network and weights; with --kind snn, from its CNN twin's. Flags may give "
            "it other neurons.",
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Train in the arithmetic of a target: loihi. Needs --from.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; flags override it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's checkpoint.")] = False,
    overwrite: console.Overwrite = False,
) -> None:
    """Train a network: the CNN or its spiking twin."""
    from spikeport.core import TrainConfig
    from spikeport.core import train as run_training
    from spikeport.core.config import laid_over
    from spikeport.core.distributed import first_process
    from spikeport.core.errors import SpikeportError
    from spikeport.core.figures import draw_figures

    given: dict[str, Any] = {name: value for name, value in locals().items() if value is not None}
    if resume and overwrite:
        raise SpikeportError("--resume goes on with what is there and --overwrite replaces it; give one of them")
    flags = from_flags({field.name: given.get(field.name) for field in fields(TrainConfig)})
    settings = taken_over(start, out, resume) if start else {}
    for others in (TrainConfig.read(config) if config else {}, flags):
        settings = laid_over(settings, others)
    for name, example in NUMBERS.items():
        if isinstance(settings.get(name), str):
            settings[name] = integers(settings[name], f"--{name}", example)
    if augment is not None:
        settings["augment"] = tuple(name for name in entries(augment) if name)
    resolved = TrainConfig(**settings)
    for names, (flag, is_there) in NEEDED.items():
        idle = [f"--{name.replace('_', '-')}" for name in names if name in given]
        if idle and not is_there(resolved):
            raise SpikeportError(f"{idle[0]} has no effect without {flag}; give both or neither")
    prepare: Prepare | None = None
    if resolved.target:  # imported only where one is asked for: it brings the exporter
        from spikeport.targets.loihi.qat import prepare_run

        prepare = prepare_run
    rows: list[dict[str, float]] = []

    def told(row: dict[str, float]) -> None:
        if not rows:  # by now the settings are known to be good
            console.say("  ".join(("epoch", "loss", "accuracy", "validation accuracy")))
        rows.append(row)
        show(row)

    try:
        with console.bar("training") as progress:
            run = run_training(
                resolved,
                out,
                resume=resume,
                overwrite=overwrite,
                progress=progress,
                on_epoch=told,
                prepare=prepare,
            )
    except KeyboardInterrupt:
        kept = rows or resume
        after = "the same command with --resume goes on" if kept else "before the first epoch ended, so nothing is kept"
        raise console.Interrupted(after) from None
    if not first_process():
        return
    draw_figures(run.path, resolved.rate_goal)
    results = run.results
    console.say(
        f"test accuracy {results['test_accuracy']:.4f}, macro F1 {results['test_macro_f1']:.4f} "
        f"(epoch {results['best_epoch']:.0f} of {results['epochs']:.0f}); saved in {out}"
    )


def from_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """The settings of those flags that were given, paths in full."""
    given = {name: value for name, value in flags.items() if value is not None}
    return {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in given.items()}


def taken_over(start: Path, out: Path, resume: bool) -> dict[str, Any]:
    """What a training into ``out`` that starts from the run ``start`` takes over: its network and its data."""
    from spikeport.core import TrainConfig
    from spikeport.core.runs import CONFIG_FILE, load_run

    path = start
    if resume and (out / CONFIG_FILE).exists():  # it has taken them over, and its start may be gone
        path = out
    else:
        load_run(start)  # what is no run is named as such
    taken = {"model", "kind", "keep", "width", *NEURONS, "dataset", "data", "train_images", "validation"}
    return {name: value for name, value in TrainConfig.read(path / CONFIG_FILE).items() if name in taken}


def show(row: dict[str, float]) -> None:
    console.say(
        f"{row['epoch']:5.0f}  {row['train_loss']:.4f}  {row['train_accuracy']:8.4f}  {row['validation_accuracy']:.4f}"
    )


def entries(text: str) -> tuple[str, ...]:
    """Of a list separated by commas; "none" and an empty text have none."""
    return () if text.strip() in ("", "none") else tuple(part.strip() for part in text.split(","))


def integers(text: str, flag: str, example: str) -> tuple[int, ...]:
    from spikeport.core.errors import SpikeportError

    try:
        return tuple(int(part) for part in entries(text))
    except ValueError:
        raise SpikeportError(f"{flag} {text!r}: expected whole numbers separated by commas, as {example}") from None
