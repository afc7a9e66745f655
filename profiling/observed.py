"""What the layers of a network meet on given samples: what other tools' counts are explained from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from spikeport.core.neurons import LIF
from spikeport.profiling.counting import count_operations
from spikeport.profiling.counts import LayerCounts, ModelCounts


@dataclass(frozen=True)
class Call:
    """What one run of one layer met: a batch of ``rows`` images (time folded in) of ``inputs`` elements each.

    Attributes:
        taps: weights of one image's outputs, those on padding included.
        biases: additions of a bias of one image.
        binary: all values are 0 or 1.
        ternary: all values are -1, 0 or 1.
        two_valued: at most two values, all in 0..1 (what syops calls spikes).
        total: sum of the values; ``rate32``: their mean as float32 gives it.
        effective: operations of non-zero inputs; ``skipped``: those of them on zero weights.
    """

    kind: str
    rows: int
    inputs: int
    outputs: int
    taps: int
    biases: int
    binary: bool
    ternary: bool
    two_valued: bool
    total: float
    rate32: float
    effective: int
    skipped: int


@dataclass(frozen=True, eq=False)
class Case:
    """A network on samples.

    Attributes:
        network: "snn" or "cnn".
        x: float samples [N, C, H, W].
        ours: our counts.
        calls: layer -> what its runs met.
        additions: operations of the additions and means outside layers, as SpikingJelly's AC counter sees them.
    """

    network: str
    x: Tensor
    ours: ModelCounts
    calls: dict[str, list[Call]]
    additions: list[int]

    def layers(self, *kinds: str) -> Iterator[tuple[LayerCounts, list[Call]]]:
        """Our counts and the runs of the layers of these kinds."""
        for name, layer in self.ours.layers.items():
            if layer.kind in kinds:
                yield layer, self.calls[name]

    def sum(self, quantity: str, *kinds: str) -> int:
        """Of one of ``SERIES`` over all images and steps, of the layers of these kinds (of all where none is named)."""
        layers = self.ours.layers.values()
        return sum(int(getattr(c, quantity).sum()) for c in layers if not kinds or c.kind in kinds)

    def dense(self, layer: LayerCounts) -> int:
        """Dense operations of a layer on all images, over all steps."""
        return layer.dense * layer.passes * self.ours.samples


def observe(model: nn.Module, x: Tensor, network: str) -> Case:
    """Counts the model, and runs it once more to see what its layers meet."""
    ours = count_operations(model, x)
    calls: dict[str, list[Call]] = {}

    def hook(name: str) -> Any:
        def note(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
            calls.setdefault(name, []).append(_call(module, args[0], y))

        return note

    handles = [m.register_forward_hook(hook(n)) for n, m in model.named_modules() if not any(m.children())]
    additions = _Additions()
    for module in model.modules():
        if isinstance(module, LIF):
            handles.append(module.register_forward_pre_hook(lambda *_: setattr(additions, "in_neurons", True)))
            handles.append(module.register_forward_hook(lambda *_: setattr(additions, "in_neurons", False)))
    with torch.no_grad(), additions:
        model(x)
    for handle in handles:
        handle.remove()
    return Case(network, x, ours, calls, additions.found)


def _call(module: nn.Module, x: Tensor, y: Tensor) -> Call:
    distinct = x.unique()
    effective = skipped = 0
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        effective = _met(module, x, torch.ones_like(module.weight))
        skipped = _met(module, x, module.weight == 0) if (module.weight == 0).any() else 0
    return Call(
        kind=type(module).__name__,
        rows=len(x),
        inputs=x[0].numel(),
        outputs=y[0].numel(),
        taps=y[0].numel() * module.weight[0].numel() if isinstance(module, (nn.Conv2d, nn.Linear)) else 0,
        biases=y[0].numel() if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None else 0,
        binary=bool(((x == 0) | (x == 1)).all()),
        ternary=bool(((x == 0) | (x.abs() == 1)).all()),
        two_valued=len(distinct) <= 2 and bool(distinct.max() <= 1) and bool(distinct.min() >= 0),
        total=float(x.double().sum()),
        rate32=float(x.sum() / x.numel()),
        effective=effective,
        skipped=skipped,
    )


def _met(module: nn.Conv2d | nn.Linear, x: Tensor, weights: Tensor) -> int:
    """Operations of non-zero inputs on the ``weights`` that are not 0, each 0 or 1."""
    active, wanted = (x != 0).double(), weights.double()
    met = F.linear(active, wanted) if isinstance(module, nn.Linear) else module._conv_forward(active, wanted, None)
    return int(met.sum().round())


class _Additions(TorchDispatchMode):
    """Element-wise additions and means of a forward pass, those of the neurons left out: operations of each."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []
        self.in_neurons = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """As of ``counting``."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = "" if self.in_neurons else str(func)
        if name in ("aten.add.Tensor", "aten.add_.Tensor"):
            operands = [a for a in args[:2] if isinstance(a, Tensor)]
            binary = all(bool(((a == 0) | (a == 1)).all()) for a in operands)
            self.found.append(sum(int((a != 0).sum()) for a in operands) if binary else out.numel())
        elif name == "aten.mean.dim":
            self.found.append(args[0].numel() - out.numel())
        elif name == "aten.avg_pool2d.default":
            self.found.append(out.numel() * (int(np.prod(args[1])) - 1))
        return out
