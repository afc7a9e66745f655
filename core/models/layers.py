"""Pieces the models share."""

from collections import OrderedDict

from torch import nn


def conv_bn(
    channels_in: int,
    channels_out: int,
    kernel: int,
    activation: nn.Module,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
) -> nn.Sequential:
    """Convolution with "same" padding for odd kernels, BatchNorm, activation."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=bias),
            bn=nn.BatchNorm2d(channels_out),
            act=activation,
        )
    )


def scaled(channels: int, width: float, multiple: int = 1) -> int:
    """A channel count times ``width``, rounded to a positive multiple."""
    return max(multiple, round(channels * width / multiple) * multiple)
