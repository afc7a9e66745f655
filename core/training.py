"""Training: reproducible, resumable, judged on a validation split and once on the test set."""

import csv
import io
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, MultiStepLR

from spikeport.core.config import TrainConfig
from spikeport.core.data import ImageData, load_dataset, split
from spikeport.core.errors import SpikeportError
from spikeport.core.files import refuse_existing, replacing, write_text
from spikeport.core.progress import Progress, silent
from spikeport.core.runs import (
    MODEL_FILE,
    WEIGHTS_FILE,
    DataInfo,
    Run,
    load_run,
    load_weights,
    save_model,
    save_weights,
)

CHECKPOINT_FILE = "checkpoint.pt"
CONFIG_FILE = "config.toml"
METRICS_FILE = "metrics.csv"
#: Folders of a run that later steps write from its weights.
DERIVED = ("onnx", "nir", "loihi", "report")
METRICS = ("epoch", "lr", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
EVALUATION_BATCH = 128

Row = dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, top-1 accuracy, macro F1 and the predicted class of every image, int64 [N]."""

    loss: float
    accuracy: float
    macro_f1: float
    predictions: Tensor


def train(
    config: TrainConfig,
    out: Path | str,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
    on_epoch: Callable[[Row], None] = lambda row: None,
) -> Run:
    """Trains a network into the run folder ``out`` and returns it.

    Args:
        resume: go on from the folder's checkpoint; the result is the same as without the interruption.
        overwrite: replace an existing run.
        progress: told (batches done, batches in all) over the whole training.
        on_epoch: given the row of metrics.csv after every epoch.

    Raises:
        SpikeportError: unusable settings or data, an existing run, a checkpoint of other settings, a loss
            that is not finite.
    """
    out = Path(out)
    device = pick_device(config.device)
    data = load_dataset(config.dataset, Path(config.data) if config.data else None)
    spec = config.spec(len(data.class_names), data.image_shape)
    model = spec.build(config.seed).to(device)
    optimizer = _optimizer(config, model)
    schedule = _schedule(config, optimizer)
    training, validation = split(len(data.train_images), config.seed)

    checkpoint = out / CHECKPOINT_FILE
    history: list[Row] = []
    if resume:
        history = _restore(checkpoint, config, model, optimizer, schedule)
        config.save(out / CONFIG_FILE)
    else:
        refuse_existing(out, overwrite, "pass --resume to go on with it or --overwrite to replace it")
        _require_replaceable(out)
        torch.manual_seed(config.seed)

    batches = -(-len(training) // config.batch_size)
    while not _finished(history, config):
        epoch = len(history) + 1
        lr = optimizer.param_groups[0]["lr"]
        order = training[torch.randperm(len(training), generator=_generator(config.seed, epoch))]
        done = (epoch - 1) * batches
        report = lambda k: progress(done + k, config.epochs * batches)  # noqa: B023, E731
        loss, accuracy = _epoch(model, optimizer, data, order, config, device, report)
        schedule.step()
        judged = evaluate(model, data, data.train_images[validation], data.train_labels[validation], config.precision)
        if not math.isfinite(judged.loss):
            raise SpikeportError(f"the validation loss became {judged.loss} in epoch {epoch}; lower --lr ({config.lr})")
        if not history:  # an earlier run in this folder goes only now that this one has come through an epoch
            _clear(out)
            config.save(out / CONFIG_FILE)
        row = dict(zip(METRICS, (epoch, lr, loss, accuracy, judged.loss, judged.accuracy), strict=True))
        history.append(row)
        if _best(history) == epoch:
            for name in DERIVED:  # made of other weights than the run is about to hold
                shutil.rmtree(out / name, ignore_errors=True)
            save_weights(model, out / WEIGHTS_FILE)
        _save_metrics(out / METRICS_FILE, history)
        _save_checkpoint(checkpoint, config, model, optimizer, schedule, history)
        on_epoch(row)
    progress(config.epochs * batches, config.epochs * batches)

    load_weights(model, out / WEIGHTS_FILE)
    final = evaluate(model, data, data.test_images, data.test_labels, config.precision)
    best = _best(history)
    info = DataInfo(data.name, data.image_shape, data.mean, data.std, data.class_names, config.data)
    results = {
        "test_accuracy": final.accuracy,
        "test_macro_f1": final.macro_f1,
        "validation_accuracy": history[best - 1]["validation_accuracy"],
        "best_epoch": best,
        "epochs": len(history),
    }
    save_model(out, spec, info, results)
    return load_run(out)


def _require_replaceable(out: Path) -> None:
    """Raises SpikeportError where ``out`` cannot be made, or is something else than a run."""
    parent = next(folder for folder in (out, *out.parents) if folder.exists())
    if not parent.is_dir():
        raise SpikeportError(f"{out} cannot be made: {parent} is a file; name another folder")
    if parent == out and any(out.iterdir()) and not (out / CONFIG_FILE).exists():
        raise SpikeportError(f"{out}: not a run folder (it has no {CONFIG_FILE}), so it is not replaced; name another")


def _clear(out: Path) -> None:
    """Takes an earlier run out of its folder, and nothing else."""
    for name in (CONFIG_FILE, MODEL_FILE, WEIGHTS_FILE, METRICS_FILE, CHECKPOINT_FILE):
        (out / name).unlink(missing_ok=True)


def pick_device(name: str) -> torch.device:
    """Raises SpikeportError where the device does not exist on this machine."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SpikeportError(f"device {name!r} cannot be used here ({reason}); try --device cpu") from None
    return device


def evaluate(model: nn.Module, data: ImageData, images: Tensor, labels: Tensor, precision: str = "fp32") -> Evaluation:
    """Judges ``model`` on uint8 images [N, C, H, W], in evaluation mode; its mode is restored."""
    from sklearn.metrics import f1_score

    device = next(model.parameters()).device
    training = model.training
    model.eval()
    outputs = []
    with torch.no_grad(), _autocast(device, precision):
        for start in range(0, len(images), EVALUATION_BATCH):
            batch = data.normalise(images[start : start + EVALUATION_BATCH].to(device))
            outputs.append(model(batch).float().cpu())
    model.train(training)
    logits = torch.cat(outputs)
    predictions = logits.argmax(1)
    return Evaluation(
        loss=float(cross_entropy(logits, labels)),
        accuracy=float((predictions == labels).double().mean()),
        macro_f1=float(f1_score(labels, predictions, average="macro")),
        predictions=predictions,
    )


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: ImageData,
    order: Tensor,
    config: TrainConfig,
    device: torch.device,
    report: Callable[[int], None],
) -> tuple[float, float]:
    """Mean loss and accuracy over one pass through the images named by ``order``."""
    model.train()
    total = correct = 0.0
    for k, chosen in enumerate(order.split(config.batch_size)):
        images = data.normalise(data.train_images[chosen].to(device))
        labels = data.train_labels[chosen].to(device)
        with _autocast(device, config.precision):
            logits = model(images).float()
        loss = cross_entropy(logits, labels)
        if not torch.isfinite(loss):
            raise SpikeportError(f"the loss became {loss.item()} at batch {k}; lower --lr (now {config.lr})")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(chosen)
        correct += float((logits.argmax(1) == labels).sum())
        report(k + 1)
    return total / len(order), correct / len(order)


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def _generator(seed: int, epoch: int) -> torch.Generator:
    """The order of the images depends on seed and epoch alone, so a resumed run draws the same."""
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


def _optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def _schedule(config: TrainConfig, optimizer: torch.optim.Optimizer) -> LRScheduler:
    if config.schedule == "step":
        return MultiStepLR(optimizer, list(config.milestones), config.gamma)
    if config.schedule == "cosine":
        return CosineAnnealingLR(optimizer, config.epochs)
    return LambdaLR(optimizer, lambda epoch: 1.0)


def _best(history: list[Row]) -> int:
    """The epoch (from 1) with the best validation accuracy, the earliest of equals."""
    return 1 + max(range(len(history)), key=lambda k: (history[k]["validation_accuracy"], -k))


def _finished(history: list[Row], config: TrainConfig) -> bool:
    if len(history) >= config.epochs:
        return True
    return bool(history) and config.patience > 0 and len(history) - _best(history) >= config.patience


def _save_metrics(path: Path, history: list[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, METRICS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(path, text.getvalue())


def _identity(config: TrainConfig) -> dict[str, Any]:
    """The settings that must not change between a run and its resumption."""
    free = {"epochs", "patience", "data", "device"}
    if config.schedule == "cosine":
        free.remove("epochs")  # they shape the schedule
    return {name: value for name, value in asdict(config).items() if name not in free}


def _save_checkpoint(
    path: Path,
    config: TrainConfig,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    history: list[Row],
) -> None:
    state = {
        "identity": _identity(config),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "history": history,
        "rng": torch.get_rng_state(),
    }
    with replacing(path) as temporary:
        torch.save(state, temporary)


def _restore(
    path: Path, config: TrainConfig, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: LRScheduler
) -> list[Row]:
    """Fills model, optimiser and schedule from a checkpoint; returns the rows of the epochs done."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SpikeportError(f"{path}: no checkpoint to resume from; train without --resume") from None
    except Exception as error:  # torch.load raises many kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SpikeportError(f"{path}: damaged or truncated ({reason}); train again with --overwrite") from None
    if not isinstance(state, dict) or "identity" not in state:
        raise SpikeportError(f"{path}: not a checkpoint of spikeport; train again with --overwrite")
    wanted, found = _identity(config), state["identity"]
    changed = [name for name in wanted if wanted[name] != found.get(name)]
    if changed:
        name = changed[0]
        raise SpikeportError(
            f"{path}: trained with {name} = {found.get(name)!r}, asked for {wanted[name]!r}; "
            "resume with the same settings or train into another folder"
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    torch.set_rng_state(state["rng"])
    history: list[Row] = state["history"]
    return history
