"""ShuffleNetV2 at the size of the paper's 0.3x: N. Ma et al., ShuffleNet V2, ECCV 2018, channels as recomputed."""

import torch
from torch import Tensor, nn

from spikeport.core.models.layers import conv_bn, scaled
from spikeport.core.models.twin import Twin

STEM = 24
#: (channels, units) of the three stages.
STAGES = ((94, 4), (188, 8), (376, 4))
HEAD = 1024


class Unit(nn.Module):
    """Splits the channels, works on one half, joins and shuffles; with stride 2 both halves see all channels."""

    def __init__(self, channels_in: int, channels: int, stride: int, twin: Twin) -> None:
        super().__init__()
        half = channels // 2
        self.stride = stride
        right_in = channels_in if stride == 2 else half
        if stride == 2:
            self.left = nn.Sequential(
                conv_bn(channels_in, channels_in, 3, twin.between(), stride, groups=channels_in),
                conv_bn(channels_in, half, 1, twin.activation()),
            )
        self.right = nn.Sequential(
            conv_bn(right_in, half, 1, twin.activation()),
            conv_bn(half, half, 3, twin.between(), stride, groups=half),
            conv_bn(half, half, 1, twin.activation()),
        )
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            left, right = self.left(x), self.right(x)
        else:
            left, right = x.chunk(2, dim=1)
            right = self.right(right)
        shuffled: Tensor = self.shuffle(torch.cat([left, right], dim=1))
        return shuffled


class ShuffleNetV2(nn.Module):
    """[N, C, H, W] images to [N, classes] logits."""

    def __init__(self, twin: Twin, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        channels = scaled(STEM, width)
        self.stem = conv_bn(in_channels, channels, 3, twin.activation(first=True), stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        units: list[nn.Module] = []
        for wide, count in STAGES:
            out = scaled(wide, width, 2)
            units.append(Unit(channels, out, 2, twin))
            units += [Unit(out, out, 1, twin) for _ in range(count - 1)]
            channels = out
        self.units = nn.Sequential(*units)
        head = scaled(HEAD, width)
        self.head = conv_bn(channels, head, 1, twin.activation())
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(head, num_classes))
        self.readout = twin.readout()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.readout(self.classifier(self.head(self.units(self.pool(self.stem(x))))))
        return logits
