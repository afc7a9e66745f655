"""Training in several processes, as ``torchrun`` starts them: each takes its share of every batch.

The result is that of one process with the same batch, but for the order in which sums are rounded: losses are
means over the whole batch, and so are the statistics of BatchNorm.
"""

import atexit
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spikeport.core.errors import SpikeportError, reason
from spikeport.core.functional import next_momentum


def pick_device(name: str) -> torch.device:
    """Raises SpikeportError where the device does not exist on this machine."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if name == "cuda":  # torchrun gives every process of a machine its own GPU, and so does in_processes
            name = f"cuda:{os.environ.get('LOCAL_RANK') or torch.cuda.current_device()}"
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise SpikeportError(f"device {name!r} cannot be used here ({reason(error)}); try --device cpu") from None
    return device


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def first_process() -> bool:
    """Whether this is the process that writes files and speaks; known before the others are joined."""
    return _told("WORLD_SIZE", 1) == 1 or _told("RANK", 0) == 0


def _told(name: str, otherwise: int) -> int:
    """What ``torchrun`` says in the environment; empty is as unset."""
    text = os.environ.get(name) or str(otherwise)
    try:
        return int(text)
    except ValueError:
        raise SpikeportError(
            f"{name} is {text!r}, no whole number; start the processes with torchrun, or unset {name}"
        ) from None


def join(device: torch.device) -> None:
    """Joins the processes that ``torchrun`` started, if it did, until this one ends."""
    if _told("WORLD_SIZE", 1) == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    except (ValueError, RuntimeError) as error:  # what torch raises for settings that do not fit together
        raise SpikeportError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but the processes cannot be joined ({reason(error)}); start "
            "them with torchrun, or unset WORLD_SIZE"
        ) from None
    atexit.register(dist.destroy_process_group)


def wait() -> None:
    """Until every process is here."""
    if processes() > 1:
        dist.barrier()


def share(count: int) -> slice:
    """Which of ``count`` items are this process's."""
    return slice(count * rank() // processes(), count * (rank() + 1) // processes())


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes, differentiable any number of times."""
    return tensor if processes() == 1 else _Sum.apply(tensor)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def gathered(own: Tensor, count: int) -> Tensor:
    """All ``count`` rows out of the rows of every process's ``share(count)``."""
    if processes() == 1:
        return own
    rows = own.new_zeros(count, *own.shape[1:])
    rows[share(count)] = own
    return summed(rows)


class _WholeBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d over the batches of all processes together.

    torch's own SyncBatchNorm runs on a GPU alone and has no second derivative.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.to(self.weight.dtype)  # as under autocast, where statistics are float32
        per_channel = (1, -1, 1, 1)
        own = x.new_tensor([x.numel() / self.num_features])
        total, count = summed(torch.cat([x.sum((0, 2, 3)), own])).split([self.num_features, 1])
        if x.numel() <= self.num_features and count.item() <= 1:
            raise ValueError("Expected more than 1 value per channel when training")  # as torch has it
        mean = total / count
        centred = x - mean.view(per_channel)
        variance = summed(centred.square().sum((0, 2, 3))) / count
        assert self.running_mean is not None
        assert self.running_var is not None
        with torch.no_grad():
            momentum = next_momentum(self)
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(per_channel) + self.bias.view(per_channel)).to(input.dtype)


def share_statistics(network: nn.Module) -> None:
    """Makes every BatchNorm2d of ``network`` one over all processes, in place; names and weights stay.

    Raises:
        SpikeportError: another kind of BatchNorm, whose statistics would be those of a process's part.
    """
    if processes() == 1:
        return
    for name, module in network.named_modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _WholeBatchNorm2d
        elif isinstance(module, _BatchNorm):
            kind = type(module).__name__
            raise SpikeportError(f"{name} is a {kind}; only BatchNorm2d is trained in several processes, use one")
