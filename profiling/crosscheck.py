"""Other tools' counts beside ours, every difference accounted for to the operation.

syops 0.0.5, ptflops 0.7.5, NeuroBench 2.3 and the counters of SpikingJelly 2.0 run on the same model and images. What
each of them counts differently is computed here from the shapes and spikes of the layers, never from its result; what
remains is *unexplained*, and should be 0.
"""

import contextlib
import copy
import io
import sys
import types
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from spikeport.core.errors import SpikeportError
from spikeport.core.neurons import LIF
from spikeport.profiling.counting import count_operations
from spikeport.profiling.counts import LayerCounts, ModelCounts

#: Images the tools count on: their sums in float32 stay exact.
SAMPLES = 2
#: A difference below this many operations is the rounding of a float64 sum.
ROUNDING = 1e-3

PADDING = "taps on padding"
BIAS = "bias additions"
POOLING = "poolings, one operation per input element; ours: max-pooling of spikes as OR neurons, one per tap"
BATCH_NORM = "BatchNorm, which folds into the layer before it"
MEAN_RATE = "mean firing rate times all taps, padding included, instead of each spike's own taps"
WHOLE_BATCH = "one test for spikes over all images and steps instead of one for each"
NEURONS = "neuron updates"
OR_NEURONS = "max-pooling of spikes, which ours counts as OR neurons"
ZERO_WEIGHTS = "zero weights are skipped"


@dataclass(frozen=True)
class Check:
    """One figure of one tool beside ours: operations on all images together.

    Attributes:
        tool: with its version.
        network: "snn" or "cnn".
        quantity: what it counts, in its own words.
        theirs, ours: operations.
        causes: why -> theirs minus ours, signed.
    """

    tool: str
    network: str
    quantity: str
    theirs: float
    ours: float
    causes: dict[str, float]

    @property
    def unexplained(self) -> float:
        rest = self.theirs - self.ours - sum(self.causes.values())
        return 0.0 if abs(rest) < ROUNDING else rest

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"unexplained": self.unexplained}


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
        skipped: operations of non-zero inputs on zero weights.
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
    skipped: int


def cross_check(model: nn.Module, x: Tensor, network: str) -> list[Check]:
    """Runs every tool that counts this kind of network on the first ``SAMPLES`` of float samples [N, C, H, W].

    Args:
        network: "snn" or "cnn".

    Raises:
        SpikeportError: a tool is not installed.
    """
    x = x[:SAMPLES]
    ours = count_operations(model, x)
    calls, additions = _observe(model, x)
    tools = [_syops, _neurobench, _spikingjelly] if network == "snn" else [_ptflops, _neurobench, _spikingjelly]
    try:
        return [check for tool in tools for check in tool(copy.deepcopy(model), x, ours, calls, additions, network)]
    except ImportError as error:
        raise SpikeportError(
            f"the cross-check needs {error.name}: `pip install 'spikeport[counters,peers]'`, then `pip install "
            "--no-deps spikingjelly==2.0.0 syops==0.0.5 neurobench==2.3.0`"
        ) from None


def _observe(model: nn.Module, x: Tensor) -> tuple[dict[str, list[Call]], list[int]]:
    """Layer -> what its runs met; and what SpikingJelly's AC counter sees in additions and means outside layers."""
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
    return calls, additions.found


def _call(module: nn.Module, x: Tensor, y: Tensor) -> Call:
    distinct = x.unique()
    skipped = 0
    if isinstance(module, (nn.Conv2d, nn.Linear)) and (module.weight == 0).any():
        active, zeros = (x != 0).double(), (module.weight == 0).double()
        met = F.linear(active, zeros) if isinstance(module, nn.Linear) else module._conv_forward(active, zeros, None)
        skipped = int(met.sum().round())
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
        skipped=skipped,
    )


class _Additions(TorchDispatchMode):
    """Element-wise additions and means of a forward pass, those of the neurons left out: operations of each."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []
        self.in_neurons = False

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


def _layers(ours: ModelCounts, calls: dict[str, list[Call]], *kinds: str) -> Iterator[tuple[LayerCounts, list[Call]]]:
    """Our counts and the runs of the layers of these kinds."""
    for name, layer in ours.layers.items():
        if layer.kind in kinds:
            yield layer, calls[name]


def _sum(ours: ModelCounts, quantity: str, *kinds: str) -> int:
    """Sum over all images and steps of the layers of these kinds (of all where none is named)."""
    return sum(int(getattr(c, quantity).sum()) for c in ours.layers.values() if not kinds or c.kind in kinds)


SYNAPTIC = ("Conv2d", "Linear")
POOLS = ("MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d")
NORMS = ("BatchNorm1d", "BatchNorm2d")


def _syops(model: nn.Module, x: Tensor, ours: ModelCounts, calls: Any, additions: Any, network: str) -> list[Check]:
    _shim_for_syops()
    from progress import Infinite
    from syops import get_model_complexity_info
    from syops.ops import LIF_syops_counter_hook

    # Its progress bar writes to the stderr of the moment it was imported, which may be closed by now.
    with contextlib.redirect_stdout(io.StringIO()), patch.object(Infinite, "file", None):
        (_, acs, macs, _), _ = get_model_complexity_info(
            model,
            tuple(x.shape[1:]),
            [(x, torch.zeros(len(x)))],
            print_per_layer_stat=False,
            as_strings=False,
            custom_modules_hooks={LIF: LIF_syops_counter_hook},
        )
    ac: dict[str, float] = defaultdict(float)
    mac: dict[str, float] = defaultdict(float)
    for layer, runs in _layers(ours, calls, *SYNAPTIC):
        for run in runs:
            taps = run.taps * run.rows
            biases = run.biases * (run.rows if layer.kind == "Conv2d" else 1)  # a linear layer: once per batch
            if not run.two_valued:
                mac[PADDING] += taps
                mac[BIAS] += biases
                continue
            rate = run.total / (run.rows * run.inputs)
            ac[MEAN_RATE] += taps * rate
            ac[BIAS + ", scaled by the firing rate"] += biases * rate
            ac["the firing rate is rounded to float32"] += (taps + biases) * (run.rate32 - rate)
        spikes = all(run.two_valued for run in runs)
        ac[MEAN_RATE if spikes else WHOLE_BATCH] -= int(layer.acs.sum())
        if not spikes:
            mac[PADDING] -= _dense(ours, layer)
            mac[WHOLE_BATCH] += _dense(ours, layer)
        mac[WHOLE_BATCH] -= int(layer.macs.sum())
    for layer, runs in _layers(ours, calls, *POOLS):
        for run in runs:
            if run.two_valued:
                ac[POOLING] += run.rows * run.inputs * run.rate32
            else:
                mac[POOLING] += run.rows * run.inputs
        ac[POOLING] -= int(layer.acs.sum())
        mac[POOLING] -= int(layer.macs.sum())
    for layer, runs in _layers(ours, calls, *NORMS):
        for run in runs:
            if run.two_valued:
                ac[BATCH_NORM] += 2 * run.rows * run.inputs * run.rate32
            else:
                mac[BATCH_NORM] += 2 * run.rows * run.inputs
        mac[BATCH_NORM] -= int(layer.macs.sum())
    ac[NEURONS] += sum(run.rows * run.inputs for _, runs in _layers(ours, calls, "LIF") for run in runs)
    tool = f"syops {version('syops')}"
    return [
        Check(tool, network, "ACs", acs * len(x), _sum(ours, "acs"), dict(ac)),
        Check(tool, network, "MACs", macs * len(x), _sum(ours, "macs"), dict(mac)),
    ]


def _dense(ours: ModelCounts, layer: LayerCounts) -> int:
    """Dense operations on all images, over all steps."""
    return layer.dense * layer.passes * ours.samples


def _shim_for_syops() -> None:
    """syops 0.0.5 imports a package that SpikingJelly 2.0 dropped; its neurons stand in."""
    from spikingjelly.activation_based import functional, neuron, surrogate

    name = "spikingjelly.clock_driven"
    if name in sys.modules:
        return
    package, neurons = types.ModuleType(name), types.ModuleType(f"{name}.neuron")
    for kind in ("IFNode", "LIFNode", "ParametricLIFNode"):
        setattr(neurons, kind, getattr(neuron, kind))
        setattr(neurons, f"MultiStep{kind}", type(f"MultiStep{kind}", (), {}))
    package.neuron, package.functional, package.surrogate = neurons, functional, surrogate  # type: ignore[attr-defined]
    sys.modules |= {name: package, f"{name}.neuron": neurons}


def _ptflops(model: nn.Module, x: Tensor, ours: ModelCounts, calls: Any, additions: Any, network: str) -> list[Check]:
    from ptflops import get_model_complexity_info

    with contextlib.redirect_stdout(io.StringIO()):
        theirs, _ = get_model_complexity_info(
            model, tuple(x.shape[1:]), print_per_layer_stat=False, as_strings=False, backend="pytorch"
        )
    mac: dict[str, float] = defaultdict(float)
    for layer, runs in _layers(ours, calls, *SYNAPTIC):
        mac[PADDING] += sum(run.taps for run in runs) - layer.dense
        mac[BIAS] += sum(run.biases for run in runs)
    for layer, runs in _layers(ours, calls, *NORMS):
        mac[BATCH_NORM] += sum(2 * run.inputs for run in runs) - int(layer.macs[:1].sum())
    for runs in calls.values():
        if runs[0].kind == "ReLU":
            mac["ReLU, one operation per element, counted twice (as module and as function)"] += sum(
                2 * run.inputs for run in runs
            )
        elif runs[0].kind in POOLS:
            mac["poolings, one operation per input element, counted twice (as module and as function)"] += sum(
                2 * run.inputs for run in runs
            )
    return [
        Check(
            f"ptflops {version('ptflops')}",
            network,
            "MACs of one image",
            float(theirs),
            _sum(ours, "macs") // ours.samples,
            dict(mac),
        )
    ]


def _neurobench(
    model: nn.Module, x: Tensor, ours: ModelCounts, calls: Any, additions: Any, network: str
) -> list[Check]:
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.workload import SynapticOperations
    from neurobench.models import TorchModel

    loader = DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=len(x))
    with contextlib.redirect_stderr(io.StringIO()):
        benchmark = Benchmark(TorchModel(model), loader, [], [], [[], [SynapticOperations]])
        found = benchmark.run(quiet=True)["SynapticOperations"]
    ac: dict[str, float] = defaultdict(float)
    mac: dict[str, float] = defaultdict(float)
    for layer, runs in _layers(ours, calls, *SYNAPTIC):
        spikes = all(run.ternary for run in runs)
        skipped = sum(run.skipped for run in runs)
        (ac if spikes else mac)[ZERO_WEIGHTS] -= skipped
        if spikes and not layer.acs.sum():  # a CNN whose map happens to be ternary
            ac[WHOLE_BATCH] += int(layer.macs_effective.sum())
            mac[WHOLE_BATCH] -= int(layer.macs_effective.sum())
        elif not spikes:
            ac[WHOLE_BATCH] -= int(layer.acs.sum())
            mac[WHOLE_BATCH] += int(layer.acs.sum())
    ac[OR_NEURONS] -= _sum(ours, "acs", "MaxPool2d")
    mac[BATCH_NORM] -= _sum(ours, "macs_effective", *NORMS)
    tool, n = f"NeuroBench {version('neurobench')}", len(x)
    dense = sum(_dense(ours, layer) for layer, _ in _layers(ours, calls, *SYNAPTIC))
    return [
        Check(tool, network, "Effective_ACs", found["Effective_ACs"] * n, _sum(ours, "acs"), dict(ac)),
        Check(tool, network, "Effective_MACs", found["Effective_MACs"] * n, _sum(ours, "macs_effective"), dict(mac)),
        Check(tool, network, "Dense", found["Dense"] * n, dense, {}),
    ]


def _spikingjelly(
    model: nn.Module, x: Tensor, ours: ModelCounts, calls: Any, additions: Any, network: str
) -> list[Check]:
    from spikingjelly.activation_based.op_counter import ACCounter, DispatchCounterMode, MACCounter, SynOpCounter

    # A compiled kernel shows them nothing of the neurons, plain PyTorch would: the same figures with and without.
    counters = [counter(extra_ignore_modules=[LIF]) for counter in (SynOpCounter, ACCounter, MACCounter)]
    with torch.no_grad(), DispatchCounterMode(counters):
        model(x)
    synop: dict[str, float] = defaultdict(float)
    mac: dict[str, float] = defaultdict(float)
    other: dict[str, float] = defaultdict(float)
    for layer, runs in _layers(ours, calls, *SYNAPTIC):
        for run in runs:
            if not run.binary:
                mac[PADDING] += run.taps * run.rows
        if all(run.binary for run in runs):
            if not layer.acs.sum():  # a CNN whose map happens to be binary
                synop[WHOLE_BATCH] += int(layer.macs_effective.sum())
            mac[WHOLE_BATCH] -= int(layer.macs.sum())
        else:
            mac[PADDING] -= _dense(ours, layer)
            mac[WHOLE_BATCH] += _dense(ours, layer) - int(layer.macs.sum())
            synop[WHOLE_BATCH] -= int(layer.acs.sum())
    for layer, runs in _layers(ours, calls, *NORMS):
        for run in runs:
            mac[BATCH_NORM] += run.rows * run.inputs
            other[BATCH_NORM] += run.rows * run.inputs + _channels(layer)
        mac[BATCH_NORM] -= int(layer.macs.sum())
    synop[OR_NEURONS] -= _sum(ours, "acs", "MaxPool2d")
    other["additions of residual connections, means and average poolings"] += sum(additions)
    tool = f"SpikingJelly {version('spikingjelly')}"
    found = [float(counter.get_total()) for counter in counters]
    return [
        Check(tool, network, "SynOps", found[0], _sum(ours, "acs"), dict(synop)),
        Check(tool, network, "ACs", found[1], _sum(ours, "acs"), _merged(synop, other)),
        Check(tool, network, "MACs", found[2], _sum(ours, "macs"), dict(mac)),
    ]


def _merged(*parts: dict[str, float]) -> dict[str, float]:
    merged: dict[str, float] = {}
    for part in parts:
        for cause, operations in part.items():
            merged[cause] = merged.get(cause, 0) + operations
    return merged


def _channels(layer: LayerCounts) -> int:
    """Channels of a BatchNorm with scale and shift."""
    return layer.parameters // 2
