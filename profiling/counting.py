"""Exact counts of a PyTorch model: one forward pass, watched. The conventions are in ``counts.py``."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from spikeport.core.computed_weights import parameters
from spikeport.core.errors import SpikeportError
from spikeport.core.geometry import conv_padding, fan_out, pair
from spikeport.core.neurons import LIF
from spikeport.core.progress import Progress, silent
from spikeport.export.foreign import adopted
from spikeport.profiling.counts import SERIES, LayerCounts, ModelCounts
from spikeport.profiling.seen import Seen, over_channels

#: Images in a batch, and their pixels: fewer cost time, more cost memory.
BATCH = 64
BATCH_PIXELS = BATCH * 32 * 32
SYNAPTIC = (nn.Conv2d, nn.Linear, nn.MaxPool2d)
BATCH_NORMS = (nn.BatchNorm2d, nn.BatchNorm1d)
COUNTED = (*SYNAPTIC, *BATCH_NORMS, nn.AvgPool2d, nn.AdaptiveAvgPool2d, LIF)
#: Names of torch's operators that are synapses or normalise, and of those that are only where the maps are spikes.
WORK = re.compile(
    r"conv|(^|_)(add|badd)?b?mm$|(^|_)(add)?mv$|(^|_)v?dot$|matmul|einsum|linear|attention|encoder_layer|lstm|gru|rnn"
    r"|^addr$|cdist|embedding_bag|linalg_(solve|inv)"
    r"|(batch|layer|group|instance|rms)_norm"
)
WORK_ON_SPIKES = re.compile("max_pool")


def count_operations(
    model: nn.Module, x: Tensor, progress: Progress = silent, time_steps: int | None = None
) -> ModelCounts:
    """Runs float samples through the model (on the CPU, its mode set to evaluation) and counts.

    Args:
        x: [N, C, H, W], or [T, N, C, H, W] for a network whose input changes (no LIF with constant_input).
        time_steps: T, for a model of SpikingJelly or snnTorch (see ``export.foreign.adopt``).

    Raises:
        SpikeportError: zero samples, layers or samples that disagree on the number of steps, or work that is not
            counted, by name.
    """
    if x.numel() == 0:
        raise SpikeportError("zero samples to count on; give at least one")
    if not x.isfinite().all():
        raise SpikeportError("the samples to count on hold NaN or infinity; leave those out")
    model = adopted(model, x.shape, time_steps)
    neurons = [m for m in model.modules() if isinstance(m, LIF)]
    steps = {m.time_steps for m in neurons} or {1}
    if len(steps) != 1:
        raise SpikeportError(f"the layers disagree on the number of time steps: {sorted(steps)}")
    if time_steps is not None and steps != {time_steps}:
        raise SpikeportError(f"time_steps is {time_steps}, the model has {steps.pop()} of its own; leave it out")
    _require_known(model)
    elsewhere = {str(t.device) for t in (*model.parameters(), *model.buffers(), x)} - {"cpu"}
    if elsewhere:
        raise SpikeportError(
            f"the model or the samples are on {elsewhere.pop()}; counts run on the CPU: give model.cpu()"
        )
    (time,) = steps
    changes = bool(neurons) and not any(m.constant_input for m in neurons) and (time > 1 or x.dim() in (3, 5))
    if changes and len(x) != time:
        raise SpikeportError(
            f"the input has {len(x)} steps, the network takes one for each of its {time}: [T, N, ...]; or build its "
            "first LIF with constant_input=True"
        )
    x = x.to(_precision(model, x))
    samples = x.shape[1] if changes else len(x)
    parts: list[dict[str, LayerCounts]] = []
    model.eval()
    done = 0
    for batch in x.split(batch_size(x), dim=1 if changes else 0):
        layers: dict[str, LayerCounts] = {}
        here = batch.shape[1] if changes else len(batch)
        exact = torch.autocast("cpu", enabled=False)
        with _counting(model, here, time, changes, layers), torch.no_grad(), exact:
            model(batch.flatten(0, 1) if changes else batch)
        parts.append(layers)
        done += here
        progress(done, samples)
    return ModelCounts(samples, time, _join(parts))


def _precision(model: nn.Module, x: Tensor) -> torch.dtype:
    """What the model computes in. Raises SpikeportError where sums of spikes would not be exact in it."""
    dtype = next((p.dtype for p in model.parameters()), x.dtype)
    if dtype not in (torch.float32, torch.float64):
        raise SpikeportError(f"the model computes in {dtype}, in which counts are not exact; count model.float()")
    return dtype


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """``named_modules``, but for what computes weights: those are what they are once the network is deployed."""
    return ((name, module) for name, module in model.named_modules() if "parametrizations" not in name.split("."))


def _require_known(model: nn.Module) -> None:
    for name, module in _layers(model):
        where = f"{name or 'the model'} ({type(module).__name__})"
        if not isinstance(module, COUNTED) and next(module.parameters(recurse=False), None) is not None:
            known = ", ".join(kind.__name__ for kind in COUNTED)
            raise SpikeportError(f"{where}: has parameters, and what it does is not counted; counted are {known}")
        if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
            raise SpikeportError(f"{where}: padding_mode {module.padding_mode!r} is not counted; use zeros")


def batch_size(x: Tensor) -> int:
    """How many of the samples [N, C, H, W] run at once."""
    return min(BATCH, max(1, BATCH_PIXELS // x[0, 0].numel()))


@contextmanager
def _counting(
    model: nn.Module, samples: int, time_steps: int, changes: bool, layers: dict[str, LayerCounts]
) -> Iterator[None]:
    seen = Seen(any(isinstance(m, LIF) for m in model.modules()))

    def hook(name: str) -> Any:
        def count(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            if isinstance(output, tuple):  # a pooling with its indices
                output = output[0]
            with torch._C.DisableTorchFunction():
                _require_maps(name, module, x, output, samples)
                found = _count(module, x, output, samples, seen)
                # With one step nothing tells what is held from what changes but the place before the first neurons.
                once = time_steps > 1 or not (seen.fired or changes)
                found.held = once and len(output) == samples and not isinstance(module, LIF)
                for folded in found.folds_into:
                    layers[folded].bias = True
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                seen.given[output] = (name,)
            layers[name] = found if name not in layers else _sum(name, layers[name], found)
            if isinstance(module, LIF):
                for source, fired in seen.added_up(x):
                    layers[source].acs += _per_sample(fired, samples)
            if found.spikes.size:
                seen.fired_by(output, name)

        return count

    hooks = []
    for name, module in _layers(model):
        counted = isinstance(module, COUNTED)
        begin = lambda m, a, n=name, c=counted: seen.running.append((n, c))  # noqa: E731
        hooks.append(module.register_forward_pre_hook(begin, prepend=True))
        if counted:
            hooks.append(module.register_forward_hook(hook(name), with_kwargs=True))
        hooks.append(module.register_forward_hook(lambda m, a, y: seen.running.pop() and None))
    try:
        with seen, _Uncounted(seen):
            yield
    finally:
        for handle in hooks:
            handle.remove()


class _Uncounted(TorchDispatchMode):
    """Refuses synapses outside of the layers that are counted. It sees what every function of torch comes down to."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """That would import the compiler first: a second at the start of every count."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        where, counted = self.seen.running[-1] if self.seen.running else ("", False)
        if not counted:
            name = func._schema.name.partition("::")[2]
            if WORK.search(name) or (self.seen.spiking and WORK_ON_SPIKES.search(name)):
                raise SpikeportError(
                    f"{where or 'the model'}: runs {name} outside of a layer, where it is not counted; use "
                    "nn.Conv2d, nn.Linear, nn.BatchNorm2d or nn.MaxPool2d"
                )
        return func(*args, **(kwargs or {}))


def _require_maps(name: str, module: nn.Module, x: Tensor, y: Tensor, samples: int) -> None:
    """Raises SpikeportError where a layer runs on something else than maps [M, C, H, W], or [M, F] for Linear."""
    dims = 4 if isinstance(module, (nn.Conv2d, nn.MaxPool2d)) else 2 if isinstance(module, nn.Linear) else x.dim()
    if x.dim() != dims or len(y) % samples:
        expected = "[N, C, H, W]" if dims == 4 else "[N, F]"
        raise SpikeportError(
            f"{name or 'the model'} ({type(module).__name__}): runs on a tensor of shape {list(x.shape)}; only "
            f"{expected} of {samples} samples (times T) is counted"
        )


def _count(module: nn.Module, x: Tensor, y: Tensor, samples: int, seen: Seen) -> LayerCounts:
    own = parameters(module)
    counts = LayerCounts(
        kind=type(module).__name__,
        parameters=sum(p.numel() for p in own),
        bytes=sum(p.numel() * p.element_size() for p in own),
        inputs=x[0].numel(),
        outputs=y[0].numel(),
        kernel=module.weight[:, 0].numel() if isinstance(module, nn.Conv2d) else 0,
        taps=module.weight[0, 0].numel() if isinstance(module, nn.Conv2d) else 0,
        passes=len(y) // samples,
        leaky=isinstance(module, LIF) and 1 < module.tau < math.inf,
        bias=isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None,
    )
    if isinstance(module, LIF):
        seen.fired = True
        seen.fires(y)
        counts.neuron_spikes = seen.neurons(y)
        counts.spikes = _per_sample(seen.pixels(y).sum(1), samples)
        counts.acs = np.zeros_like(counts.spikes)
        return counts
    if isinstance(module, BATCH_NORMS):
        counts.folds_into = seen.given_by(x)
        if counts.folds_into:
            return counts
        counts.bias = True
    spikes = seen.spikes(x)
    counts.analog = not spikes.all()
    if not isinstance(module, (*SYNAPTIC, *BATCH_NORMS)):
        return counts
    if isinstance(module, nn.MaxPool2d) and counts.analog:
        return counts  # max-pooling of analog values compares; it neither adds nor multiplies
    if isinstance(module, nn.MaxPool2d):
        seen.fires(y)
        counts.spikes = _per_sample(seen.pixels(y).sum(1), samples)
    reach, counts.padded = _reach(module, x, y)
    counts.dense = int(reach.sum()) * x.shape[1]
    arrived = seen.pixels(x) if spikes.any() else np.zeros((len(x), len(reach)))
    counts.acs = _per_sample(np.where(spikes, arrived @ reach, 0), samples)
    counts.spikes_in = _per_sample(np.where(spikes, arrived.sum(1), 0), samples)
    counts.macs = _per_sample(np.where(spikes, 0, counts.dense), samples)
    effective = over_channels((x != 0).to(x.dtype)) @ reach if counts.analog else 0
    counts.macs_effective = _per_sample(np.where(spikes, 0, effective), samples)
    return counts


def _reach(module: nn.Module, x: Tensor, y: Tensor) -> tuple[np.ndarray, int]:
    """Operations that one element of a map takes part in, float64 [H * W] ([1] of features), and the padded count."""
    if isinstance(module, nn.Linear):
        return np.array([float(module.out_features)]), y[0].numel() * (module.in_features + (module.bias is not None))
    if isinstance(module, BATCH_NORMS):
        return np.ones(math.prod(x.shape[2:])), 0
    assert isinstance(module, (nn.Conv2d, nn.MaxPool2d))
    kernel, stride, dilation = pair(module.kernel_size), pair(module.stride), pair(module.dilation)
    before, _ = conv_padding(module.padding, kernel, dilation)
    reach = _fan_out((x.shape[2], x.shape[3]), kernel, stride, before, dilation, (y.shape[2], y.shape[3]))
    if isinstance(module, nn.MaxPool2d):
        return reach, x[0].numel()
    taps = math.prod(kernel) * module.in_channels // module.groups + (module.bias is not None)
    return reach * (module.out_channels // module.groups), y[0].numel() * taps


@cache
def _fan_out(*geometry: tuple[int, int]) -> np.ndarray:
    return fan_out(*geometry).ravel().astype(float)


def _per_sample(values: np.ndarray, samples: int) -> np.ndarray:
    """[passes * N] whole numbers (time-major) to int64 [N, passes]."""
    return np.ascontiguousarray(values.astype(np.int64).reshape(-1, samples).T)


def _sum(name: str, a: LayerCounts, b: LayerCounts) -> LayerCounts:
    """A module that runs twice in one forward pass, on maps of any size: as if it were two."""
    if a.passes != b.passes:
        raise SpikeportError(
            f"{name}: runs on what is held and again on what changes from step to step, which is not counted; give "
            "each a module of its own"
        )
    for quantity in ("inputs", "outputs", "dense", "padded", "kernel"):
        setattr(a, quantity, getattr(a, quantity) + getattr(b, quantity))
    for quantity in SERIES:
        runs = [series for series in (getattr(a, quantity), getattr(b, quantity)) if series.size]
        setattr(a, quantity, sum(runs[1:], runs[0]) if runs else getattr(a, quantity))
    a.neuron_spikes = np.concatenate([a.neuron_spikes, b.neuron_spikes])
    a.folds_into = tuple(dict.fromkeys(a.folds_into + b.folds_into))
    a.analog |= b.analog
    return a


def _join(parts: list[dict[str, LayerCounts]]) -> dict[str, LayerCounts]:
    joined = parts[0]
    for name, counts in joined.items():
        for quantity in SERIES:
            setattr(counts, quantity, np.concatenate([getattr(p[name], quantity) for p in parts]))
        counts.neuron_spikes = sum((p[name].neuron_spikes for p in parts[1:]), counts.neuron_spikes)
        counts.analog = any(p[name].analog for p in parts)
    return joined
