"""Training: reproducible, resumable, judged on a validation split and once on the test set."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from spikeport.core import distributed
from spikeport.core.checkpoint import restore_checkpoint, save_checkpoint
from spikeport.core.config import TrainConfig
from spikeport.core.data import load_dataset, split, subset
from spikeport.core.data.batches import batches, in_batches, prefetched
from spikeport.core.diagnosis import first_not_finite
from spikeport.core.distributed import pick_device
from spikeport.core.errors import SpikeportError, reason
from spikeport.core.evaluation import Evaluation, evaluate, warn_where_slow
from spikeport.core.files import leftovers, refuse_existing
from spikeport.core.hooks import watched
from spikeport.core.learner import LAYOUT, Learner, Place, Prepare, generator_of, learner_for, run_epoch
from spikeport.core.locks import alone
from spikeport.core.memory import keep_freed_memory
from spikeport.core.optimisation import averaged, learning_rate
from spikeport.core.progress import Progress, silent
from spikeport.core.rates import Rates, spiking_layers
from spikeport.core.records import EVENTS, LAYERS_FILE, METRICS, METRICS_FILE, Row, Told
from spikeport.core.runs import (
    CONFIG_FILE,
    MODEL_FILE,
    SAMPLES_FILE,
    WEIGHTS_FILE,
    Run,
    info_of,
    load_run,
    load_weights,
    save_model,
    save_weights,
    start_from,
    warn_where_seen,
)

CHECKPOINT_FILE = "checkpoint.pt"
#: Folders of a run that later steps write from its weights.
DERIVED = ("onnx", "nir", "loihi", "report", "figures")
#: What a training writes into its folder beside the settings.
FILES = (MODEL_FILE, WEIGHTS_FILE, METRICS_FILE, LAYERS_FILE, CHECKPOINT_FILE, SAMPLES_FILE)


def train(
    config: TrainConfig,
    out: Path | str,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
    on_epoch: Callable[[Row], None] = lambda row: None,
    prepare: Prepare | None = None,
) -> Run:
    """Trains a network into the run folder ``out`` and returns it.

    Under ``torchrun`` every process calls this, and the first of them writes and tells. From then on the process keeps
    the memory that tensors free (``core.memory``).

    Args:
        resume: go on from the folder's checkpoint; the result is the same as without the interruption.
        overwrite: replace an existing run.
        progress: told (batches done, batches in all) over the whole training.
        on_epoch: given the row of metrics.csv after every epoch.
        prepare: wraps the model for training and for judging it, as quantisation-aware training does. Only
            parameters with requires_grad are trained; the run folder holds the weights of the model itself.

    Raises:
        SpikeportError: unusable settings or data, an existing run, a checkpoint of other settings, a loss
            that is not finite.
    """
    if config.target is not None and prepare is None:
        raise SpikeportError(f"target {config.target!r}: train needs its prepare function; use `spikeport train`")
    if config.target is not None and config.start is None:
        raise SpikeportError(
            f"target {config.target!r} takes a trained network: train it without --target first, then go on --from it"
        )
    if config.teacher is not None and Path(config.teacher).resolve() == Path(out).resolve():
        raise SpikeportError(f"{out}: the folder of the teacher, which must stay as it is; name another folder")
    device = pick_device(config.device)
    warn_where_slow(device, config.precision)
    keep_freed_memory()
    distributed.join(device)
    with alone(Path(out)):
        return _train(config, Path(out), device, resume, overwrite, progress, on_epoch, prepare)


def _train(
    config: TrainConfig,
    out: Path,
    device: torch.device,
    resume: bool,
    overwrite: bool,
    progress: Progress,
    on_epoch: Callable[[Row], None],
    prepare: Prepare | None,
) -> Run:
    data = subset(load_dataset(config.dataset, config.data), config.train_images)
    spec = config.spec(len(data.class_names), data.image_shape)
    model = spec.build(config.seed)
    _require_taken(model, spec.name, data.image_shape)
    if resume and _ended_before_its_first_checkpoint(out):
        resume, overwrite = False, True
    if config.start is not None and not resume:
        start_from(Path(config.start), spec, model)
    model.to(device, memory_format=LAYOUT)  # type: ignore[call-overload]
    learner = learner_for(config, data, model, prepare)
    training, validation = split(len(data.train_images), config.validation)

    told, first = Told(), distributed.first_process()
    if resume:
        told = restore_checkpoint(out / CHECKPOINT_FILE, config, spec, data, learner.parts)
        if config.epochs < len(told.metrics):
            raise SpikeportError(
                f"{out}: has {len(told.metrics)} epochs, more than the {config.epochs} asked for; train a shorter run "
                "into another folder"
            )
        if first:
            config.save(out / CONFIG_FILE)
    else:
        empty = out.is_dir() and not any(out.iterdir())
        refuse_existing(out, overwrite or empty, "pass --resume to go on with it or --overwrite to replace it")
        _require_replaceable(out)
        for run in dict.fromkeys((config.start, config.teacher)):
            if run is not None and first:
                warn_where_seen(Path(run), config)
    if first:
        for path in _leftovers(out):
            path.unlink()

    count = len(in_batches(training, config.batch_size))
    while not _finished(told, config):
        epoch = len(told.metrics) + 1
        at = Place(epoch, (epoch - 1) * count, out / CHECKPOINT_FILE)
        lr = learning_rate(config, epoch)
        for group in learner.optimizer.param_groups:
            group["lr"] = lr
        tell = lambda k: progress(at.steps_before + k, config.epochs * count) if first else None  # noqa: B023, E731
        loss, accuracy, gradients = _train_epoch(learner, training, tell, at)
        with averaged(model, learner.average):
            judged, rates = _judged(learner, validation, at)
            values = (epoch, lr, loss, accuracy, judged.loss, judged.accuracy)
            told.add(dict(zip(METRICS, values, strict=True)), gradients, rates)
            if first:
                _save_epoch(out, config, told, model)
        if first:
            save_checkpoint(out / CHECKPOINT_FILE, config, spec, data, learner.parts, told.__dict__)
            on_epoch(told.metrics[-1])
    if first:
        progress(config.epochs * count, config.epochs * count)
    distributed.wait()

    load_weights(model, out / WEIGHTS_FILE)
    # In float32, in which the network is handed over, whatever it was trained in.
    final = evaluate(learner.network, data, data.test_images, data.test_labels, "fp32")
    if first:
        save_model(out, spec, info_of(data, config.data), _results(final, told))
    distributed.wait()
    return load_run(out)


def _ended_before_its_first_checkpoint(out: Path) -> bool:
    return (out / CONFIG_FILE).exists() and not any((out / name).exists() for name in (CHECKPOINT_FILE, MODEL_FILE))


def _train_epoch(
    learner: Learner, training: Tensor, tell: Callable[[int], None], at: Place
) -> tuple[float, float, dict[str, float]]:
    """``run_epoch`` over the images ``training``; seed and epoch alone say in which order, and how augmented."""
    config, data = learner.config, learner.data
    generator = generator_of(config.seed, at.epoch)
    order = training[torch.randperm(len(training), generator=generator)]
    pinned = learner.device.type == "cuda"
    parts = batches(data, order, config.batch_size, config.augment, generator, distributed.share, pinned)
    return run_epoch(learner, prefetched(parts), tell, at)


def _judged(learner: Learner, validation: Tensor, at: Place) -> tuple[Evaluation, dict[str, float]]:
    """The network on the images ``validation``, and its firing rates there.

    Raises:
        SpikeportError: a loss, weights or statistics that are not finite.
    """
    config, data, rates = learner.config, learner.data, Rates()
    with watched(spiking_layers(learner.network), rates.see):
        images, labels = data.train_images[validation], data.train_labels[validation]
        judged = evaluate(learner.network, data, images, labels, config.precision)
    if not math.isfinite(judged.loss):
        raise SpikeportError(f"the validation loss became {judged.loss} in epoch {at.epoch}; {at.remedy(config)}")
    _require_finite(learner.model, f"in epoch {at.epoch}; {at.remedy(config)}")
    return judged, rates.per_layer()


def _results(final: Evaluation, told: Told) -> dict[str, float]:
    """What model.json says of a training."""
    best = told.best()
    return {
        "test_accuracy": final.accuracy,
        "test_macro_f1": final.macro_f1,
        "validation_accuracy": told.metrics[best - 1]["validation_accuracy"],
        "best_epoch": best,
        "epochs": len(told.metrics),
    }


def _require_finite(model: nn.Module, when: str) -> None:
    """Weights and statistics, before they are written: a loss may be finite where they are not."""
    name = first_not_finite(model.state_dict())
    if name:
        raise SpikeportError(f"{name} holds NaN or infinity {when}")


def _save_epoch(out: Path, config: TrainConfig, told: Told, model: nn.Module) -> None:
    """Writes what an epoch leaves behind, but for its checkpoint."""
    epoch = len(told.metrics)
    if epoch == 1:  # an earlier run in this folder goes only now that this one has come through an epoch
        _clear(out)
        config.save(out / CONFIG_FILE)
    if told.best() == epoch:
        for name in DERIVED:  # made of other weights than the run is about to hold
            shutil.rmtree(out / name, ignore_errors=True)
        (out / MODEL_FILE).unlink(missing_ok=True)  # its results are theirs, too
        save_weights(model, out / WEIGHTS_FILE)
    told.save(out)


def _require_replaceable(out: Path) -> None:
    """Raises SpikeportError where ``out`` is something else than a run."""
    held = set(out.iterdir() if out.exists() else ()) - {out / ".lock", *_leftovers(out)}
    if held and not (out / CONFIG_FILE).exists():
        raise SpikeportError(f"{out}: not a run folder (it has no {CONFIG_FILE}), so it is not replaced; name another")


def _leftovers(out: Path) -> list[Path]:
    """Temporary files of a training that was killed."""
    return [path for name in (CONFIG_FILE, *FILES) for path in leftovers(out / name)]


def _clear(out: Path) -> None:
    """Takes an earlier run out of its folder, and nothing else, but for its settings, which say that it is one."""
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / EVENTS, ignore_errors=True)


def _require_taken(model: nn.Module, name: str, image_shape: tuple[int, int, int]) -> None:
    """Raises SpikeportError where the network does not take images of the data set's size."""
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *image_shape))
    except RuntimeError as error:
        raise SpikeportError(
            f"{name} does not take images of {image_shape}: {reason(error)}; take larger ones"
        ) from None


def _finished(told: Told, config: TrainConfig) -> bool:
    done = len(told.metrics)
    return done >= config.epochs or (0 < config.patience <= done - told.best() if done else False)
