"""Pieces the models share."""

from collections import OrderedDict, deque
from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from spikeport.core.neurons import LIF


class ConvNorm(nn.Sequential):
    """``conv``, ``bn`` and ``act``, one after the other; ``fuse`` makes the last two, and pooling, one in training."""

    fused = False
    fused_pooling = False

    def forward(self, input: Tensor, pooled: bool = False) -> Tensor:
        """``pooled``: through max-pooling with windows of 2x2 pixels as well."""
        conv, norm, activation = self
        if self.fused and norm.training:
            spikes: Tensor = activation(conv(input), norm, pooled)
            return spikes
        return max_pool2d(super().forward(input), 2) if pooled else super().forward(input)

    @property
    def pools(self) -> bool:
        """Whether it max-pools its own spikes in one with the rest, as it is now."""
        _, norm, _ = self
        return self.fused_pooling and norm.training


def fuse(network: nn.Module, pooling: bool = True) -> None:
    """Runs BatchNorm and LIF in one wherever ``network`` trains them one after the other; names and weights stay.

    Their second derivative goes through the two again: for a loss that asks for it, leave the network as it is.

    Args:
        pooling: where 2x2 max-pooling follows, in one with it too. Then a hook on such a LIF sees pooled spikes, and
            those of the BatchNorm, of the pooling and of the container around it do not run.
    """
    for module in network.modules():
        if isinstance(module, ConvNorm):
            module.fused = type(module.act) is LIF and type(module.bn) is nn.BatchNorm2d
            module.fused_pooling = module.fused and pooling


def in_turn(blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Runs blocks one after the other; a block that ``pools`` takes the pooling after it upon itself."""
    left = deque(blocks)
    while left:
        block = left.popleft()
        if left and getattr(block, "pools", False) and _halves(left[0]):
            left.popleft()
            x = block(x, pooled=True)
        else:
            x = block(x)
    return x


def _halves(module: nn.Module) -> bool:
    """Whether it is max-pooling with windows of 2x2 pixels that do not overlap, without padding."""
    if type(module) is not nn.MaxPool2d:
        return False
    sizes = (module.kernel_size, module.stride, module.padding, module.dilation)
    return sizes == (2, 2, 0, 1) and not (module.ceil_mode or module.return_indices)


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
