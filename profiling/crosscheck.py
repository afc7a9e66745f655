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
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from spikeport.core.errors import SpikeportError
from spikeport.core.neurons import LIF
from spikeport.profiling.counts import LayerCounts
from spikeport.profiling.observed import Case, observe

#: Images the tools count on: their sums in float32 stay exact.
SAMPLES = 2
#: A difference below this many operations is the rounding of a float64 sum.
ROUNDING = 1e-3
#: Kinds of layers.
SYNAPTIC = ("Conv2d", "Linear")
POOLS = ("MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d")
NORMS = ("BatchNorm1d", "BatchNorm2d")

PADDING = "taps on padding"
BIAS = "bias additions"
POOLING = "poolings, one operation per input element; ours: max-pooling of spikes as OR neurons, one per tap"
BATCH_NORM = "BatchNorm: nothing where it folds into the layer before it, else one operation per spike or element"
MEAN_RATE = "mean firing rate times all taps, padding included, instead of each spike's own taps"
WHOLE_BATCH = "one test for spikes over all images and steps instead of one for each"
NEURONS = "neuron updates"
OR_NEURONS = "max-pooling of spikes, which ours counts as OR neurons"
PASSED_ON = "spikes that a residual connection adds to a current"
SEVERAL = "a sum of spikes is one operation; ours: one for each spike"
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


def cross_check(model: nn.Module, x: Tensor, network: str) -> list[Check]:
    """Runs every tool that counts this kind of network on the first ``SAMPLES`` of float samples [N, C, H, W].

    Args:
        network: "snn" or "cnn".

    Raises:
        SpikeportError: a tool is not installed.
    """
    case = observe(model, x[:SAMPLES], network)
    tools = [_syops, _neurobench, _spikingjelly] if network == "snn" else [_ptflops, _neurobench, _spikingjelly]
    try:
        return [check for tool in tools for check in tool(copy.deepcopy(model), case)]
    except ImportError as error:
        raise SpikeportError(
            f"the cross-check needs {error.name}: `pip install 'spikeport[counters,peers]'`, then `pip install "
            "--no-deps spikingjelly==2.0.0 syops==0.0.5 neurobench==2.3.0`"
        ) from None


def _syops(model: nn.Module, case: Case) -> list[Check]:
    _shim_for_syops()
    from progress import Infinite
    from syops import get_model_complexity_info
    from syops.ops import LIF_syops_counter_hook

    # Its progress bar writes to the stderr of the moment it was imported, which may be closed by now.
    with contextlib.redirect_stdout(io.StringIO()), patch.object(Infinite, "file", None):
        (_, acs, macs, _), _ = get_model_complexity_info(
            model,
            tuple(case.x.shape[1:]),
            [(case.x, torch.zeros(len(case.x)))],
            print_per_layer_stat=False,
            as_strings=False,
            custom_modules_hooks={LIF: LIF_syops_counter_hook},
        )
    ac: dict[str, float] = defaultdict(float)
    mac: dict[str, float] = defaultdict(float)
    for layer, runs in case.layers(*SYNAPTIC):
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
            mac[PADDING] -= case.dense(layer)
            mac[WHOLE_BATCH] += case.dense(layer)
        mac[WHOLE_BATCH] -= int(layer.macs.sum())
    for layer, runs in case.layers(*POOLS):
        for run in runs:
            if run.two_valued:
                ac[POOLING] += run.rows * run.inputs * run.rate32
            else:
                mac[POOLING] += run.rows * run.inputs
        ac[POOLING] -= int(layer.acs.sum())
        mac[POOLING] -= int(layer.macs.sum())
    for layer, runs in case.layers(*NORMS):
        for run in runs:
            if run.two_valued:
                ac[BATCH_NORM] += 2 * run.rows * run.inputs * run.rate32
            else:
                mac[BATCH_NORM] += 2 * run.rows * run.inputs
        ac[BATCH_NORM] -= int(layer.acs.sum())
        mac[BATCH_NORM] -= int(layer.macs.sum())
    ac[PASSED_ON] -= case.sum("acs", "LIF")
    ac[NEURONS] += sum(run.rows * run.inputs for _, runs in case.layers("LIF") for run in runs)
    tool = f"syops {version('syops')}"
    return [
        Check(tool, case.network, "ACs", acs * len(case.x), case.sum("acs"), dict(ac)),
        Check(tool, case.network, "MACs", macs * len(case.x), case.sum("macs"), dict(mac)),
    ]


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


def _ptflops(model: nn.Module, case: Case) -> list[Check]:
    from ptflops import get_model_complexity_info

    with contextlib.redirect_stdout(io.StringIO()):
        theirs, _ = get_model_complexity_info(
            model, tuple(case.x.shape[1:]), print_per_layer_stat=False, as_strings=False, backend="pytorch"
        )
    mac: dict[str, float] = defaultdict(float)
    for layer, runs in case.layers(*SYNAPTIC):
        mac[PADDING] += sum(run.taps for run in runs) - layer.dense
        mac[BIAS] += sum(run.biases for run in runs)
    for layer, runs in case.layers(*NORMS):
        mac[BATCH_NORM] += sum(2 * run.inputs for run in runs) - int(layer.macs[:1].sum())
    for runs in case.calls.values():
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
            case.network,
            "MACs of one image",
            float(theirs),
            case.sum("macs") // case.ours.samples,
            dict(mac),
        )
    ]


def _neurobench(model: nn.Module, case: Case) -> list[Check]:
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.workload import SynapticOperations
    from neurobench.models import TorchModel

    loader = DataLoader(TensorDataset(case.x, torch.zeros(len(case.x))), batch_size=len(case.x))
    with contextlib.redirect_stderr(io.StringIO()):
        benchmark = Benchmark(TorchModel(model), loader, [], [], [[], [SynapticOperations]])
        found = benchmark.run(quiet=True)["SynapticOperations"]
    ac: dict[str, float] = defaultdict(float)
    mac: dict[str, float] = defaultdict(float)
    for layer, runs in case.layers(*SYNAPTIC):
        spikes = all(run.ternary for run in runs)
        skipped = sum(run.skipped for run in runs)
        (ac if spikes else mac)[ZERO_WEIGHTS] -= skipped
        if spikes and not layer.acs.sum():  # a CNN whose map happens to be ternary
            ac[WHOLE_BATCH] += int(layer.macs_effective.sum())
            mac[WHOLE_BATCH] -= int(layer.macs_effective.sum())
        elif not spikes:
            ac[WHOLE_BATCH] -= int(layer.acs.sum())
            mac[WHOLE_BATCH] += int(layer.acs.sum())
            several = sum(run.effective for run in runs) - int(layer.acs.sum() + layer.macs_effective.sum())
            mac[SEVERAL] += several
    ac[OR_NEURONS] -= case.sum("acs", "MaxPool2d")
    ac[PASSED_ON] -= case.sum("acs", "LIF")
    ac[BATCH_NORM] -= case.sum("acs", *NORMS)
    mac[BATCH_NORM] -= case.sum("macs_effective", *NORMS)
    tool, n = f"NeuroBench {version('neurobench')}", len(case.x)
    dense = sum(case.dense(layer) for layer, _ in case.layers(*SYNAPTIC))
    return [
        Check(tool, case.network, "Effective_ACs", found["Effective_ACs"] * n, case.sum("acs"), dict(ac)),
        Check(tool, case.network, "Effective_MACs", found["Effective_MACs"] * n, case.sum("macs_effective"), dict(mac)),
        Check(tool, case.network, "Dense", found["Dense"] * n, dense, {}),
    ]


def _spikingjelly(model: nn.Module, case: Case) -> list[Check]:
    from spikingjelly.activation_based.op_counter import ACCounter, DispatchCounterMode, MACCounter, SynOpCounter

    # A compiled kernel shows them nothing of the neurons, plain PyTorch would: the same figures with and without.
    counters = [counter(extra_ignore_modules=[LIF]) for counter in (SynOpCounter, ACCounter, MACCounter)]
    with torch.no_grad(), DispatchCounterMode(counters):
        model(case.x)
    synop: dict[str, float] = defaultdict(float)
    mac: dict[str, float] = defaultdict(float)
    other: dict[str, float] = defaultdict(float)
    for layer, runs in case.layers(*SYNAPTIC):
        for run in runs:
            if not run.binary:
                mac[PADDING] += run.taps * run.rows
        if all(run.binary for run in runs):
            if not layer.acs.sum():  # a CNN whose map happens to be binary
                synop[WHOLE_BATCH] += int(layer.macs_effective.sum())
            mac[WHOLE_BATCH] -= int(layer.macs.sum())
        else:
            mac[PADDING] -= case.dense(layer)
            mac[WHOLE_BATCH] += case.dense(layer) - int(layer.macs.sum())
            synop[WHOLE_BATCH] -= int(layer.acs.sum())
    for layer, runs in case.layers(*NORMS):
        for run in runs:
            mac[BATCH_NORM] += run.rows * run.inputs
            other[BATCH_NORM] += run.rows * run.inputs + _channels(layer)
        synop[BATCH_NORM] -= int(layer.acs.sum())
        mac[BATCH_NORM] -= int(layer.macs.sum())
    synop[OR_NEURONS] -= case.sum("acs", "MaxPool2d")
    synop[PASSED_ON] -= case.sum("acs", "LIF")
    other["additions of residual connections, means and average poolings"] += sum(case.additions)
    tool = f"SpikingJelly {version('spikingjelly')}"
    found = [float(counter.get_total()) for counter in counters]
    return [
        Check(tool, case.network, "SynOps", found[0], case.sum("acs"), dict(synop)),
        Check(tool, case.network, "ACs", found[1], case.sum("acs"), _merged(synop, other)),
        Check(tool, case.network, "MACs", found[2], case.sum("macs"), dict(mac)),
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
