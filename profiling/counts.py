"""Exact counts of what a PyTorch model does on given samples, layer by layer.

Conventions, all stated again in the report:

- A tap of a convolution that falls on padding is no operation.
- A synaptic operation (AC) is one weight added because one spike arrived; it is counted where the input of the
  layer holds nothing but 0 and 1 for that image and step. Any other input costs multiply-accumulates (MAC).
- A layer that runs once for T steps (the first convolution, under a constant current) is counted once.
- BatchNorm folds into its convolution before deployment and costs nothing; the ``paper`` counting differs.
- Max-pooling of spikes is counted as what it becomes on a chip: OR neurons, one synapse per tap.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikeport.core.errors import SpikeportError
from spikeport.core.geometry import fan_out, output_size, pair
from spikeport.core.neurons import LIF
from spikeport.core.progress import Progress, silent

BATCH = 32
SYNAPTIC = (nn.Conv2d, nn.Linear, nn.MaxPool2d)
COUNTED = (*SYNAPTIC, nn.BatchNorm2d, nn.BatchNorm1d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, LIF)


@dataclass
class LayerCounts:
    """One layer over N samples.

    Attributes:
        kind: class name of the module.
        parameters: its weights and biases.
        inputs, outputs: elements of one image at one step.
        dense: operations of one image in one pass if no input were zero, padding excluded.
        padded: the same with padding and bias counted (ptflops, syops and the paper count so).
        acs: synaptic operations, int64 [N, passes]; passes is T, or 1 for a layer under a constant current.
        macs: multiply-accumulates on analog input, int64 [N, passes].
        macs_effective: those of them whose input is not zero.
        spikes: spikes of a LIF layer, or of the OR neurons a max-pooling stands for, int64 [N, T].
        analog: whether any image met the layer with values other than 0 and 1.
    """

    kind: str
    parameters: int = 0
    inputs: int = 0
    outputs: int = 0
    dense: int = 0
    padded: int = 0
    acs: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    macs: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    macs_effective: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    spikes: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    analog: bool = False

    @property
    def rate(self) -> float:
        """Spikes per neuron and step."""
        return float(self.spikes.mean()) / self.outputs if self.spikes.size else 0.0


@dataclass(frozen=True)
class ModelCounts:
    """Counts of a whole model: layer name -> counts, in the order the layers run."""

    samples: int
    time_steps: int
    layers: dict[str, LayerCounts]

    @property
    def spiking(self) -> bool:
        return any(c.kind == "LIF" for c in self.layers.values())

    @property
    def rate(self) -> float:
        """Average firing rate, the paper's: over all LIF outputs, steps and samples."""
        lifs = [c for c in self.layers.values() if c.kind == "LIF"]
        return sum(float(c.spikes.mean()) for c in lifs) / sum(c.outputs for c in lifs) if lifs else 0.0

    def total(self, quantity: str) -> float:
        """Mean per image of ``acs``, ``macs`` or ``macs_effective``, summed over layers and steps."""
        return sum(float(getattr(c, quantity).sum()) for c in self.layers.values()) / self.samples


def count_operations(model: nn.Module, x: Tensor, progress: Progress = silent) -> ModelCounts:
    """Runs float samples [N, C, H, W] through the model (its mode set to evaluation) and counts.

    Raises:
        SpikeportError: zero samples, or layers that disagree on the number of steps.
    """
    if len(x) == 0:
        raise SpikeportError("zero samples to count on; give at least one")
    spiking = any(isinstance(m, LIF) for m in model.modules())
    steps = {m.time_steps for m in model.modules() if isinstance(m, LIF)} or {1}
    if len(steps) != 1:
        raise SpikeportError(f"the layers disagree on the number of time steps: {sorted(steps)}")
    parts: list[dict[str, LayerCounts]] = []
    model.eval()
    for start in range(0, len(x), BATCH):
        batch = x[start : start + BATCH]
        layers: dict[str, LayerCounts] = {}
        with _counting(model, len(batch), spiking, layers), torch.no_grad():
            model(batch)
        parts.append(layers)
        progress(min(start + BATCH, len(x)), len(x))
    return ModelCounts(len(x), steps.pop(), _join(parts))


@contextmanager
def _counting(model: nn.Module, samples: int, spiking: bool, layers: dict[str, LayerCounts]) -> Iterator[None]:
    def hook(name: str) -> Any:
        def count(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            found = _count(module, args[0], output, samples, spiking)
            layers[name] = found if name not in layers else _sum(layers[name], found)

        return count

    hooks = [m.register_forward_hook(hook(name)) for name, m in model.named_modules() if isinstance(m, COUNTED)]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _count(module: nn.Module, x: Tensor, y: Tensor, samples: int, spiking: bool) -> LayerCounts:
    counts = LayerCounts(
        kind=type(module).__name__,
        parameters=sum(p.numel() for p in module.parameters(recurse=False)),
        inputs=x[0].numel(),
        outputs=y[0].numel(),
    )
    if isinstance(module, LIF):
        counts.spikes = _per_sample(y.flatten(1).sum(1, dtype=torch.int64), samples)
        return counts
    # A ReLU may happen to give only 0 and 1, yet a CNN multiplies all the same.
    binary = ((x == 0) | (x == 1)).flatten(1).all(1) & spiking
    counts.analog = not bool(binary.all())
    if not isinstance(module, SYNAPTIC):
        return counts
    if isinstance(module, nn.MaxPool2d) and counts.analog:
        return counts  # max-pooling of analog values compares; it neither adds nor multiplies
    if isinstance(module, nn.MaxPool2d):
        counts.spikes = _per_sample(y.flatten(1).sum(1, dtype=torch.int64), samples)
    reach, counts.padded = _reach(module, x, y)
    counts.dense = int(reach.sum()) * (x.shape[1] if x.dim() == 4 else 1)
    active = _per_image(x != 0, reach)
    zero = torch.zeros_like(active)
    full = torch.full_like(active, counts.dense)
    counts.acs = _per_sample(torch.where(binary, active, zero), samples)
    counts.macs = _per_sample(torch.where(binary, zero, full), samples)
    counts.macs_effective = _per_sample(torch.where(binary, zero, active), samples)
    return counts


def _reach(module: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, int]:
    """Operations that one element of a map takes part in ([H, W], or [F] for Linear), and the padded count."""
    if isinstance(module, nn.Linear):
        return torch.full((module.in_features,), module.out_features), y[0].numel() * (
            module.in_features + (module.bias is not None)
        )
    size = (x.shape[2], x.shape[3])
    if isinstance(module, nn.Conv2d):
        kernel, stride, dilation = pair(module.kernel_size), pair(module.stride), pair(module.dilation)
        if isinstance(module.padding, str):
            same = module.padding == "same"
            padding = tuple(d * (k - 1) // 2 if same else 0 for k, d in zip(kernel, dilation, strict=True))
        else:
            padding = module.padding
        outputs_each = module.out_channels // module.groups
        taps = kernel[0] * kernel[1] * module.in_channels // module.groups + (module.bias is not None)
        reach = fan_out(size, kernel, stride, pair(padding), dilation) * outputs_each
        return torch.from_numpy(reach), y[0].numel() * taps
    assert isinstance(module, nn.MaxPool2d)
    kernel, stride, padding = pair(module.kernel_size), pair(module.stride), pair(module.padding)
    if output_size(size, kernel, stride, padding) != tuple(y.shape[2:]):
        raise SpikeportError("max-pooling with ceil_mode or dilation cannot be counted exactly; leave them out")
    return torch.from_numpy(fan_out(size, kernel, stride, padding)), x[0].numel()


def _per_image(active: Tensor, reach: Tensor) -> Tensor:
    """Sum of ``reach`` over the active elements of every image, int64 [M]."""
    if reach.dim() == 1:
        return (active * reach).flatten(1).sum(1)
    return (active.sum(1, dtype=torch.int64) * reach).sum((1, 2))


def _per_sample(values: Tensor, samples: int) -> np.ndarray:
    """[passes * N] (time-major) to [N, passes]."""
    return values.reshape(-1, samples).T.contiguous().numpy()


def _sum(a: LayerCounts, b: LayerCounts) -> LayerCounts:
    """A module that runs twice in one forward pass."""
    for name in ("dense", "padded"):
        setattr(a, name, getattr(a, name) + getattr(b, name))
    for name in ("acs", "macs", "macs_effective", "spikes"):
        setattr(a, name, np.concatenate([getattr(a, name), getattr(b, name)], axis=1))
    a.analog |= b.analog
    return a


def _join(parts: list[dict[str, LayerCounts]]) -> dict[str, LayerCounts]:
    joined = parts[0]
    for name, counts in joined.items():
        for quantity in ("acs", "macs", "macs_effective", "spikes"):
            setattr(counts, quantity, np.concatenate([getattr(p[name], quantity) for p in parts]))
        counts.analog = any(p[name].analog for p in parts)
    return joined
