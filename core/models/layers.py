"""Pieces the models share."""

from collections import OrderedDict

from torch import Tensor, nn

from spikeport.core.neurons import LIF


class ConvNorm(nn.Sequential):
    """``conv``, ``bn`` and ``act``, one after the other; ``fuse`` makes the last two one in training."""

    fused = False

    def forward(self, input: Tensor) -> Tensor:
        conv, norm, activation = self
        if self.fused and norm.training:
            spikes: Tensor = activation(conv(input), norm)
            return spikes
        return super().forward(input)


def fuse(network: nn.Module) -> None:
    """Runs BatchNorm and LIF in one wherever ``network`` trains them one after the other; names and weights stay.

    Their second derivative goes through the two again: for a loss that asks for it, leave the network as it is.
    """
    for module in network.modules():
        if isinstance(module, ConvNorm):
            module.fused = isinstance(module.act, LIF) and type(module.bn) is nn.BatchNorm2d


def conv_bn(
    channels_in: int,
    channels_out: int,
    kernel: int,
    activation: nn.Module,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
) -> ConvNorm:
    """Convolution with "same" padding for odd kernels, BatchNorm, activation."""
    return ConvNorm(
        OrderedDict(
            conv=nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=bias),
            bn=nn.BatchNorm2d(channels_out),
            act=activation,
        )
    )


def scaled(channels: int, width: float, multiple: int = 1) -> int:
    """A channel count times ``width``, rounded to a positive multiple."""
    return max(multiple, round(channels * width / multiple) * multiple)
