"""SqueezeNet as the paper has it, and its pruned form SqueezeNet-P.

The geometry is pinned by the paper's parameter and MAC counts: SqueezeNet 1.0's fire table, a first
convolution 3 -> 128 (3x3, stride 1), bias and BatchNorm after every convolution but the last, 2x2 pools after
the first convolution and after the places of Fire 4 and Fire 8, a 1x1 convolution as classifier.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spikeport.core.errors import SpikeportError
from spikeport.core.models.layers import conv_bn, in_turn, scaled
from spikeport.core.models.twin import Twin

#: Fire module -> (squeeze channels, channels of each of the two expand branches)
FIRES = {2: (16, 64), 3: (16, 64), 4: (32, 128), 5: (32, 128), 6: (48, 192), 7: (48, 192), 8: (64, 256), 9: (64, 256)}
STEM = 128
POOL_AFTER = (4, 8)
PRUNED = (4, 6, 8, 9)


class Fire(nn.Module):
    """Squeeze (1x1), then two expand branches (1x1 and 3x3), concatenated."""

    def __init__(self, channels_in: int, squeeze: int, expand: int, twin: Twin) -> None:
        super().__init__()
        self.squeeze = conv_bn(channels_in, squeeze, 1, twin.activation(), bias=True)
        self.expand1 = conv_bn(squeeze, expand, 1, twin.activation(), bias=True)
        self.expand3 = conv_bn(squeeze, expand, 3, twin.activation(), bias=True)

    def forward(self, x: Tensor, pooled: bool = False) -> Tensor:
        x = self.squeeze(x)
        return torch.cat([self.expand1(x, pooled), self.expand3(x, pooled)], dim=1)

    @property
    def pools(self) -> bool:
        """As of ``ConvNorm``."""
        return self.expand1.pools and self.expand3.pools


class SqueezeNet(nn.Module):
    """[N, C, H, W] images to [N, classes] logits.

    Args:
        keep: the Fire modules that stay, a subset of 2..9; a removed one leaves its pool in place.
        width: factor on every channel count but the classes.
    """

    def __init__(
        self,
        twin: Twin,
        num_classes: int = 10,
        in_channels: int = 3,
        width: float = 1.0,
        keep: Sequence[int] = tuple(FIRES),
    ) -> None:
        super().__init__()
        unknown = sorted(set(keep) - set(FIRES))
        if unknown or not keep:
            raise SpikeportError(f"keep={list(keep)}: SqueezeNet has the Fire modules {list(FIRES)}; name at least one")
        channels = scaled(STEM, width)
        self.stem = conv_bn(in_channels, channels, 3, twin.activation(first=True), bias=True)
        blocks: OrderedDict[str, nn.Module] = OrderedDict(pool1=nn.MaxPool2d(2))
        for number, (squeeze, expand) in FIRES.items():
            if number in keep:
                blocks[f"fire{number}"] = Fire(channels, scaled(squeeze, width), scaled(expand, width), twin)
                channels = 2 * scaled(expand, width)
            if number in POOL_AFTER:
                blocks[f"pool{number}"] = nn.MaxPool2d(2)
        self.features = nn.Sequential(blocks)
        self.classifier = nn.Sequential(
            OrderedDict(conv=nn.Conv2d(channels, num_classes, 1), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
        )
        self.readout = twin.readout()

    def forward(self, x: Tensor) -> Tensor:
        blocks = [self.stem, *self.features]
        pooling = any(getattr(block, "pools", False) for block in blocks)
        x = in_turn(blocks, x) if pooling else self.features(self.stem(x))
        logits: Tensor = self.readout(self.classifier(x))
        return logits
