"""An Xception-like network at the paper's size: F. Chollet, Xception, CVPR 2017, stages as recomputed.

Where Xception max-pools analog values this one averages: the maximum of currents has no spiking form.
"""

from torch import Tensor, nn

from spikeport.core.models.layers import conv_bn, scaled
from spikeport.core.models.twin import Twin

STEM = (64, 128)
#: (channels, stride) of the stages.
STAGES = ((128, 1), (256, 1), (256, 2), (512, 2))


def separable(channels_in: int, channels: int, activation: nn.Module, twin: Twin) -> nn.Sequential:
    """Depthwise 3x3, then 1x1, BatchNorm, activation."""
    depthwise = nn.Conv2d(channels_in, channels_in, 3, padding=1, groups=channels_in, bias=False)
    return nn.Sequential(depthwise, twin.between(), conv_bn(channels_in, channels, 1, activation))


class Block(nn.Module):
    """Two separable convolutions beside a 1x1 skip; their sum is activated."""

    def __init__(self, channels_in: int, channels: int, stride: int, twin: Twin) -> None:
        super().__init__()
        self.main = nn.Sequential(
            separable(channels_in, channels, twin.activation(), twin),
            separable(channels, channels, twin.between(), twin),
            nn.AvgPool2d(2) if stride == 2 else nn.Identity(),
        )
        self.skip = conv_bn(channels_in, channels, 1, twin.between(), stride)
        self.act = twin.activation()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.main(x) + self.skip(x))
        return y


class Xception(nn.Module):
    """[N, C, H, W] images to [N, classes] logits; H and W divisible by 4."""

    def __init__(self, twin: Twin, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        first, channels = (scaled(c, width) for c in STEM)
        self.stem = nn.Sequential(
            conv_bn(in_channels, first, 3, twin.activation(first=True)),
            conv_bn(first, channels, 3, twin.activation()),
        )
        blocks: list[nn.Module] = []
        for wide, stride in STAGES:
            out = scaled(wide, width)
            blocks.append(Block(channels, out, stride, twin))
            channels = out
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
        self.readout = twin.readout()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.readout(self.classifier(self.blocks(self.stem(x))))
        return logits
