"""Optimisers, learning rates, and the moving average of the weights."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from spikeport.core.config import TrainConfig

Tensors = tuple[Tensor, ...] | list[Tensor]


def optimizer_for(config: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Of the parameters of ``network`` that require a gradient."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def learning_rate(config: TrainConfig, epoch: int) -> float:
    """Of ``epoch`` (from 1): a linear rise over the warm-up, then the schedule."""
    done = epoch - 1
    if done < config.warmup:
        return config.lr * epoch / (config.warmup + 1)
    if config.schedule == "step":
        return config.lr * config.gamma ** sum(done >= milestone for milestone in config.milestones)
    if config.schedule == "cosine":
        through = (done - config.warmup) / max(1, config.epochs - config.warmup)
        return config.lr * (1 + math.cos(math.pi * through)) / 2
    return config.lr


def average_of(config: TrainConfig, model: nn.Module) -> AveragedModel | None:
    """An exponential moving average of weights and BatchNorm statistics, one update a step; None where not wanted.

    After n updates the decay is (1 + n) / (10 + n) where that is less than ``config.ema`` (as TensorFlow's
    ExponentialMovingAverage has it), so that the first epochs are judged by what they learnt.
    """
    if not config.ema:
        return None

    def update(averages: Tensors, current: Tensors, number: Tensor | int) -> None:
        if not averages[0].is_floating_point():  # BatchNorm's counters
            torch._foreach_copy_(averages, current)
            return
        updates = int(average.n_averaged)  # ``number`` is its copy on a GPU: reading that would wait for the GPU
        decay = min(config.ema, (1 + updates) / (10 + updates))
        get_ema_multi_avg_fn(decay)(averages, current, number)

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    return average


@contextmanager
def averaged(model: nn.Module, average: AveragedModel | None) -> Iterator[None]:
    """``model`` with the averaged weights, for judging and saving; its own come back afterwards."""
    if average is None:
        yield
        return
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(average.module.state_dict())
    try:
        yield
    finally:
        model.load_state_dict(own)
