"""What is trained and what trains it, and one pass through the training images."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel

from spikeport.core import distributed
from spikeport.core.config import TrainConfig
from spikeport.core.data import ImageData
from spikeport.core.data.batches import Batch
from spikeport.core.diagnosis import first_gradient_not_finite, first_output_not_finite
from spikeport.core.errors import SpikeportError
from spikeport.core.evaluation import autocast
from spikeport.core.models.layers import fuse
from spikeport.core.objective import Objective, teacher_of
from spikeport.core.optimisation import average_of, optimizer_for
from spikeport.core.rates import NETWORK
from spikeport.core.runs import DataInfo, info_of

#: Of images and weights: convolutions and poolings are faster so.
LAYOUT = torch.channels_last
#: Given the model and what it knows of its data, a module that wraps it; its parameters are the model's own.
Prepare = Callable[[nn.Module, DataInfo], nn.Module]


@dataclass(frozen=True)
class Learner:
    """What is trained, and what trains it.

    Attributes:
        config, data, device: the settings, the images, and where they are computed on.
        model: the network whose weights are saved.
        network: the model, or what wraps it; it is judged.
        forward: the network as it is run in training: compiled, shared among processes.
    """

    config: TrainConfig
    data: ImageData
    device: torch.device
    model: nn.Module
    network: nn.Module
    forward: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    average: AveragedModel | None

    @property
    def parts(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        parts = {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler, "average": self.average}
        return {name: part for name, part in parts.items() if part is not None}


def learner_for(config: TrainConfig, data: ImageData, model: nn.Module, prepare: Prepare | None) -> Learner:
    """Everything for one training of ``model``, on the device where it is."""
    device = next(model.parameters()).device
    info = info_of(data, config.data)
    teacher = teacher_of(config, info, device)
    average = average_of(config, model)
    network = prepare(model, info) if prepare is not None else model
    distributed.share_statistics(network)
    if config.loss != "gradient-aware":
        fuse(network, pooling=not config.rate_weight)  # a rate is counted before the pooling
    objective = Objective(config, network, teacher)
    forward: Any = torch.compile(network) if config.compile else network
    if distributed.processes() > 1:
        forward = DistributedDataParallel(forward)
    scaler = GradScaler(device.type, enabled=config.precision == "fp16")
    optimizer = optimizer_for(config, network)
    return Learner(config, data, device, model, network, forward, objective, optimizer, scaler, average)


def generator_of(seed: int, epoch: int) -> torch.Generator:
    """What is drawn in an epoch depends on seed and epoch alone, so a resumed run draws the same."""
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


@dataclass(frozen=True)
class Place:
    """Where training is, for an error to name."""

    epoch: int
    steps_before: int
    checkpoint: Path

    def remedy(self, config: TrainConfig) -> str:
        kept = f"; {self.checkpoint} keeps epoch {self.epoch - 1}" if self.epoch > 1 else ""
        return f"lower --lr ({config.lr}) or limit the gradient with --clip{kept}"


def run_epoch(
    learner: Learner, parts: Iterable[Batch], tell: Callable[[int], None], at: Place
) -> tuple[float, float, dict[str, float]]:
    """One pass through the batches.

    Returns:
        mean loss, accuracy, and the mean gradient norm of every layer's weight and of the whole network.

    Raises:
        SpikeportError: a loss or a gradient that is not finite; the weights are still those of the step before.
    """
    config, data, device = learner.config, learner.data, learner.device
    learner.forward.train()
    torch.manual_seed(generator_of(config.seed, at.epoch).initial_seed() * 31 + 1 + distributed.rank())
    layers = {name.removesuffix(".weight"): p for name, p in learner.model.named_parameters() if p.dim() > 1}
    norms = torch.zeros(len(layers) + 1, device=device)
    loss_sum, correct, seen, steps = 0.0, torch.zeros((), device=device), 0, 0
    for k, batch in enumerate(parts):
        images, labels = (t.to(device, non_blocking=True) for t in (batch.images, batch.labels))
        x = data.normalise(images).contiguous(memory_format=LAYOUT)
        learner.optimizer.zero_grad(set_to_none=True)
        with autocast(device, config.precision):
            logits = _forward(learner, x)
            loss = learner.objective(logits, labels, images, batch.total, learner.scaler.get_scale())
        learner.scaler.scale(loss).backward()
        learner.scaler.unscale_(learner.optimizer)
        gradients = [p.grad for p in learner.network.parameters() if p.grad is not None]
        norm = get_total_norm(gradients)
        value = distributed.summed(loss.detach()) / distributed.processes()
        loss_value, norm_value = torch.stack([value, norm]).tolist()
        where = f"at step {at.steps_before + k + 1} (epoch {at.epoch}, batch {k + 1})"
        if not math.isfinite(loss_value):
            with autocast(device, config.precision):
                layer = first_output_not_finite(learner.model, learner.network, x)
            first = f", first in layer {layer}" if layer else ""
            raise SpikeportError(f"the loss became {loss_value} {where}{first}; {at.remedy(config)}")
        finite = math.isfinite(norm_value)
        if not finite and not learner.scaler.is_enabled():  # the scaler leaves out such a step, and scales less
            name = first_gradient_not_finite(learner.model)
            raise SpikeportError(f"the gradient became {norm_value} {where}, first in {name}; {at.remedy(config)}")
        if finite:
            norms += torch.stack([_norm(p) for p in layers.values()] + [norm])
            steps += 1
        if config.clip:
            clip_grads_with_norm_(learner.network.parameters(), config.clip, norm)
        learner.scaler.step(learner.optimizer)
        learner.scaler.update()
        if learner.average is not None:
            learner.average.update_parameters(learner.model)
        loss_sum += loss_value * batch.total
        correct += (logits.argmax(1) == labels).sum()
        seen += batch.total
        tell(k + 1)
    accuracy = float(distributed.summed(correct)) / seen
    means = (norms / max(1, steps)).tolist()
    return loss_sum / seen, accuracy, dict(zip([*layers, NETWORK], means, strict=True))


def _forward(learner: Learner, x: Tensor) -> Tensor:
    try:
        return learner.objective.forward(learner.forward, x)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise SpikeportError(
            f"a batch of {len(x)} on maps of 1x1 gives BatchNorm a single value; raise --batch-size"
        ) from None


def _norm(parameter: Tensor) -> Tensor:
    return parameter.new_zeros(()) if parameter.grad is None else parameter.grad.norm()
