"""BatchNorm and LIF in one, for training: two passes over memory forward, where the pair takes five."""

import torch
from torch import Tensor, nn

from spikeport.core.errors import SpikeportError
from spikeport.core.functional import check_lif, join_time, run_lif
from spikeport.core.kernels import Neuron, kernels_usable, state_dtype
from spikeport.core.kernels.cuda_launches import UNROLLED
from spikeport.core.kernels.norm_ops import Options, can_pool, channel_moments, max_pooled
from spikeport.core.kernels.norm_ops import batch_norm_lif as fused


def batch_norm_lif(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    neuron: Neuron,
    time_steps: int | None,
    pooled: bool = False,
) -> Tensor:
    """``lif`` of the batch-normalised x: spikes [T, N, C, ...] in x's dtype; the normalised x stays float32.

    Args:
        x: [T, N, C, ...]; with ``time_steps``, a constant current [N, C, ...] held for that many steps.
        running_mean, running_var: [C], updated in place when training (with the unbiased variance), used otherwise.
        weight, bias: [C]; 1 and 0 where None.
        training, momentum, eps: as in ``torch.nn.functional.batch_norm``; the mean runs over T, N and pixels.
        pooled: the spikes go through ``max_pool2d`` with windows of 2x2 pixels: [T, N, C, H // 2, W // 2].

    Raises:
        SpikeportError: arguments ``lif`` refuses, tensors that are not [C], one value per channel in training.
    """
    constant = time_steps is not None
    steps = check_lif(x, None, neuron, time_steps)
    _check(x, constant, running_mean, running_var, weight, bias, training)
    if pooled and x.dim() != (4 if constant else 5):
        expected = "[N, C, H, W]" if constant else "[T, N, C, H, W]"
        raise SpikeportError(f"batch_norm_lif: only images are pooled; x has shape {list(x.shape)}, not {expected}")
    in_one = kernels_usable(x.device.type, x.dtype) and not (x.is_cuda and steps > UNROLLED)
    if pooled and not (in_one and can_pool(x, constant)):
        spikes = batch_norm_lif(x, running_mean, running_var, weight, bias, training, momentum, eps, neuron, time_steps)
        return max_pooled(spikes)
    dtype = state_dtype(x.dtype)
    batch_statistics = training or running_mean is None or running_var is None
    if not in_one:
        flat = (x if constant else join_time(x)).to(dtype)
        y = nn.functional.batch_norm(flat, running_mean, running_var, weight, bias, batch_statistics, momentum, eps)
        y = y if constant else y.view_as(x)
        spikes, _ = run_lif(y, None, neuron, time_steps, membrane=False)
        return spikes.to(x.dtype)

    if training or running_mean is None or running_var is None:
        mean, variance = channel_moments(x.detach(), constant)
        if running_mean is not None and running_var is not None:
            count = x.numel() // mean.numel()
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
    else:
        mean, variance = running_mean.to(dtype), running_var.to(dtype)
    weight, bias = (None if t is None else t.to(dtype) for t in (weight, bias))
    options = Options(eps, batch_statistics, pooled)
    return fused(x, weight, bias, mean, variance, options, neuron.setting(steps, constant))


def _check(
    x: Tensor,
    constant: bool,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
) -> None:
    least = 2 if constant else 3
    if x.dim() < least:
        expected = "[N, C, ...]" if constant else "[T, N, C, ...]"
        raise SpikeportError(f"batch_norm_lif: x has shape {list(x.shape)}; expected {expected}")
    channels = x.shape[least - 1]
    named = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    for name, tensor in named.items():
        if tensor is not None and (tensor.shape != (channels,) or tensor.device != x.device):
            raise SpikeportError(
                f"batch_norm_lif: {name} is {list(tensor.shape)} on {tensor.device}; "
                f"x asks for [{channels}] on {x.device}"
            )
    if training and x.numel() <= channels:
        raise SpikeportError(f"batch_norm_lif: x of shape {list(x.shape)} has no two values per channel to train on")
