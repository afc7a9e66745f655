"""MnasNet-B1 and MixNet-S at the paper's sizes: inverted residuals, the latter with mixed kernels.

M. Tan et al., MnasNet, CVPR 2019; M. Tan, Q. Le, MixConv, BMVC 2019. Stage tables as recomputed from the paper's
parameter counts. Neither twin has squeeze-and-excitation or swish: a gate that multiplies two signals, and a
non-monotonic activation, have no spiking form.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spikeport.core.errors import SpikeportError
from spikeport.core.models.layers import conv_bn, scaled
from spikeport.core.models.twin import Twin


@dataclass(frozen=True)
class Stage:
    """``count`` blocks; the kernels of the depthwise convolution share its channels, the first block strides."""

    channels: int
    kernels: tuple[int, ...]
    stride: int
    expand: int
    count: int


@dataclass(frozen=True)
class Table:
    """A network: stem, an optional separable convolution, stages, head."""

    stem: int
    stem_stride: int
    separable: int | None
    stages: tuple[Stage, ...]
    head: int


MNASNET = Table(
    stem=12,
    stem_stride=2,
    separable=8,
    stages=(
        Stage(8, (3,), 1, 3, 1),
        Stage(16, (5,), 1, 3, 1),
        Stage(28, (5,), 1, 6, 1),
        Stage(36, (3,), 1, 6, 1),
        Stage(68, (5,), 1, 6, 1),
        Stage(116, (3,), 2, 6, 1),
    ),
    head=128,
)
MIXNET = Table(
    stem=8,
    stem_stride=1,
    separable=None,
    stages=(
        Stage(8, (3,), 2, 1, 1),
        Stage(8, (3,), 1, 6, 1),
        Stage(8, (3,), 1, 3, 1),
        Stage(12, (3, 5, 7), 1, 6, 1),
        Stage(12, (3, 5), 1, 6, 3),
        Stage(24, (3, 5, 7), 1, 6, 1),
        Stage(24, (3, 5), 2, 6, 2),
        Stage(32, (3, 5, 7), 1, 6, 1),
        Stage(32, (3, 5, 7, 9), 1, 3, 2),
    ),
    head=256,
)


class MixedDepthwise(nn.Module):
    """Depthwise convolution whose channels are dealt out to several kernel sizes."""

    def __init__(self, channels: int, kernels: Sequence[int], stride: int) -> None:
        super().__init__()
        share = channels // len(kernels)
        if share < 1:
            raise SpikeportError(f"{channels} channels for {len(kernels)} kernel sizes; a larger width is needed")
        self.sizes = [channels - share * (len(kernels) - 1), *[share] * (len(kernels) - 1)]
        self.convs = nn.ModuleList(
            nn.Conv2d(size, size, kernel, stride, kernel // 2, groups=size, bias=False)
            for size, kernel in zip(self.sizes, kernels, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        if len(self.sizes) == 1:
            y: Tensor = self.convs[0](x)
            return y
        parts = x.split(self.sizes, dim=1)
        return torch.cat([conv(parts[k]) for k, conv in enumerate(self.convs)], dim=1)


class InvertedResidual(nn.Module):
    """1x1 expansion, mixed depthwise convolution, linear 1x1 projection, residual where shapes allow."""

    def __init__(
        self, channels_in: int, channels: int, kernels: Sequence[int], stride: int, expand: int, twin: Twin
    ) -> None:
        super().__init__()
        middle = channels_in * expand
        self.expand = conv_bn(channels_in, middle, 1, twin.activation()) if expand > 1 else nn.Identity()
        self.depthwise = MixedDepthwise(middle, kernels, stride)
        self.bn = nn.BatchNorm2d(middle)
        self.act = twin.activation()
        self.project = conv_bn(middle, channels, 1, twin.between())
        self.residual = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.act(self.bn(self.depthwise(self.expand(x)))))
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """[N, C, H, W] images to [N, classes] logits, as a ``Table`` says."""

    def __init__(
        self, twin: Twin, num_classes: int = 10, in_channels: int = 3, width: float = 1.0, table: Table = MNASNET
    ) -> None:
        super().__init__()
        channels = scaled(table.stem, width)
        self.stem = conv_bn(in_channels, channels, 3, twin.activation(first=True), table.stem_stride)
        self.separable: nn.Module = nn.Identity()
        if table.separable is not None:
            out = scaled(table.separable, width)
            self.separable = nn.Sequential(
                conv_bn(channels, channels, 3, twin.activation(), groups=channels),
                conv_bn(channels, out, 1, twin.between()),
            )
            channels = out
        blocks: list[nn.Module] = []
        for stage in table.stages:
            out = scaled(stage.channels, width)
            for number in range(stage.count):
                stride = stage.stride if number == 0 else 1
                blocks.append(InvertedResidual(channels, out, stage.kernels, stride, stage.expand, twin))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        head = scaled(table.head, width)
        self.head = conv_bn(channels, head, 1, twin.activation())
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(head, num_classes))
        self.readout = twin.readout()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.readout(self.classifier(self.head(self.blocks(self.separable(self.stem(x))))))
        return logits
