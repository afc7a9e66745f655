"""Random spiking networks with every construct that has an exact form."""

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from spikeport.core import LIF, TimeMean

OPS = ("conv", "fire", "residual", "split", "shuffle", "slice", "depthwise", "grouped", "maxpool", "avgpool")
OPS += ("skip", "shortcut", "border", "edgepool", "ceilpool", "same", "norm", "scaled")


def drawn(bn: nn.BatchNorm2d, rng: torch.Generator) -> nn.BatchNorm2d:
    """The BatchNorm with random statistics."""
    channels = bn.num_features
    with torch.no_grad():
        bn.weight.copy_(0.5 + torch.rand(channels, generator=rng))
        bn.bias.copy_(torch.rand(channels, generator=rng) - 0.2)
        bn.running_mean.copy_(torch.randn(channels, generator=rng) * 0.2)
        bn.running_var.copy_(0.5 + torch.rand(channels, generator=rng))
    return bn


class Block(nn.Module):
    """Convolution, BatchNorm with random statistics, LIF."""

    def __init__(self, cin: int, cout: int, rng: torch.Generator, steps: int, first: bool = False, **conv: object):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, bias=bool(torch.randint(2, (1,), generator=rng)), **conv)  # type: ignore[arg-type]
        self.bn = nn.BatchNorm2d(cout)
        self.lif = LIF(tau=pick(rng, (1.0, 1.5, 2.0, 3.0)), v_threshold=0.7, time_steps=steps, constant_input=first)
        with torch.no_grad():
            self.conv.weight.copy_(torch.randn(self.conv.weight.shape, generator=rng) * 1.5 / self.fan_in() ** 0.5)
        drawn(self.bn, rng)

    def fan_in(self) -> int:
        return self.conv.weight[0].numel()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lif(self.bn(self.conv(x)))
        return y


def pick(rng: torch.Generator, options: tuple):
    return options[int(torch.randint(len(options), (1,), generator=rng))]


class Stage(nn.Module):
    """One construct; keeps the number of channels unless it says otherwise in ``channels``."""

    def __init__(self, op: str, channels: int, size: int, rng: torch.Generator, steps: int):
        super().__init__()
        self.op = op
        block = lambda cin, cout, **conv: Block(cin, cout, rng, steps, **conv)  # noqa: E731
        if op == "conv":
            self.a = block(
                channels,
                channels,
                kernel_size=3,
                padding=pick(rng, (0, 1)) if size > 3 else 1,
                stride=pick(rng, (1, 2)) if size > 4 else 1,
                dilation=1,
            )
        elif op in ("fire", "split"):
            half = channels // 2
            cin = channels if op == "fire" else half
            self.a = block(cin, half, kernel_size=1)
            self.b = block(
                cin if op == "fire" else channels - half, channels - half, kernel_size=3, padding=2, dilation=2
            )
        elif op == "residual":
            self.a = block(channels, channels, kernel_size=3, padding=1)
            self.b = block(channels, channels, kernel_size=1)
        elif op == "depthwise":
            self.a = block(channels, channels, kernel_size=3, padding=1, groups=channels)
        elif op == "grouped":
            self.a = block(channels, channels, kernel_size=1, groups=2)
        elif op == "slice":
            self.a = block(channels - 1, channels, kernel_size=1)
        elif op == "shortcut":
            self.conv = nn.Conv2d(channels - 2, channels, 3, 2, 1)
            self.a = LIF(time_steps=steps, v_threshold=0.6)
        elif op in ("border", "edgepool"):
            self.a = block(channels, channels, kernel_size=3)
            self.around = pick(rng, ((1, 1, 1, 1), (0, 2, 1, 1), (2, 0, 0, 2)))
        elif op == "same":
            self.a = block(
                channels, channels, kernel_size=pick(rng, (2, 4)), padding="same", dilation=pick(rng, (1, 3))
            )
        elif op == "ceilpool":
            self.pool = nn.MaxPool2d(3, pick(rng, (2, 3)), pick(rng, (0, 1)), ceil_mode=True)
        elif op == "norm":
            self.a = nn.Sequential(drawn(nn.BatchNorm2d(channels), rng), LIF(time_steps=steps, v_threshold=0.4))
        elif op == "scaled":
            self.register_buffer("gain", torch.rand(channels, 1, 1, generator=rng))
            self.a = block(channels, channels, kernel_size=3, padding=1)
        elif op == "skip":
            self.conv = nn.Conv2d(channels, channels, 1, bias=False)
            self.a = LIF(time_steps=steps)

    def forward(self, x: Tensor) -> Tensor:
        if self.op == "fire":
            return torch.cat([self.a(x), self.b(x)], dim=1)
        if self.op == "split":
            left, right = x.chunk(2, dim=1)
            return torch.cat([self.b(right), self.a(left)], 1)
        if self.op == "residual":
            return self.b(self.a(x) + x)
        if self.op == "scaled":
            return self.a(self.gain * x - (1 - x) / 4)
        if self.op == "skip":
            return self.a(self.conv(x) + x)
        if self.op == "shortcut":
            return self.a(self.conv(x[:, 2:]) + F.pad(x[:, 1:-1, ::2, ::2], (0, 0, 0, 0, 1, 1)))
        if self.op == "border":
            return self.a(F.pad(x, self.around))
        if self.op == "shuffle":
            n, c, h, w = x.shape
            return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        if self.op == "slice":
            return self.a(x[:, 1:])
        if self.op == "maxpool":
            return F.max_pool2d(x, 2)
        if self.op == "edgepool":
            return F.max_pool2d(F.pad(x[:, :, 1:, 1:], self.around), 3, 2)
        if self.op == "ceilpool":
            return self.pool(x)
        if self.op == "avgpool":
            return F.avg_pool2d(x, 2)
        y: Tensor = self.a(x)
        return y


class RandomNet(nn.Module):
    """A stem under constant current, random stages, a classifier without neurons."""

    def __init__(self, ops: list[str], channels: int, size: int, steps: int, seed: int, pooled: bool):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.stem = Block(2, channels, rng, steps, first=True, kernel_size=3, padding=1)
        stages: list[nn.Module] = []
        averaged = False
        for op in ops:
            # After an average the map is analog: only a convolution may follow.
            op = "conv" if averaged and op not in ("conv", "fire", "depthwise", "grouped") else op
            if averaged and size % 2 == 0 and op in ("conv", "fire", "depthwise"):
                op = "grouped"
            if op in ("maxpool", "avgpool", "edgepool", "ceilpool") and size < 4:
                op = "shuffle"
            stage = Stage(op, channels, size, rng, steps)
            stages.append(stage)
            with torch.no_grad():
                size = stage.eval()(torch.zeros(steps, channels, size, size)).shape[-1]
            stage.train()
            averaged = op == "avgpool"
        if averaged:
            stages.append(Stage("grouped", channels, size, rng, steps))
        self.stages = nn.Sequential(*stages)
        self.pooled = pooled
        self.head = nn.Conv2d(channels, 3, 1) if pooled else nn.Linear(channels * size * size, 3)
        self.readout = TimeMean(steps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.stem(x))
        y = self.head(x).mean((2, 3)) if self.pooled else self.head(x.flatten(1))
        z: Tensor = self.readout(y)
        return z


@st.composite
def random_nets(draw: st.DrawFn) -> tuple[RandomNet, Tensor]:
    """A network in evaluation mode and samples [N, 2, size, size] for it."""
    ops = draw(st.lists(st.sampled_from(OPS), min_size=1, max_size=4))
    size, steps, seed = draw(st.integers(4, 8)), draw(st.integers(1, 4)), draw(st.integers(0, 2**31))
    torch.manual_seed(seed)
    net = RandomNet(ops, draw(st.sampled_from((4, 6, 8))), size, steps, seed, draw(st.booleans()))
    x = torch.randn(draw(st.integers(1, 3)), 2, size, size, generator=torch.Generator().manual_seed(seed))
    return net.eval(), x
