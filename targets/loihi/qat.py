"""Quantisation-aware training: a model whose forward pass is the chip's integer arithmetic.

Every step rewrites the model as export does, compiles it as ``compile`` does and runs the integers as the fixed engine
does; so what is trained is what the chip will run, spike for spike. BatchNorm is folded, with frozen statistics. On the
way back, rounding and truncation pass the gradient straight through (Bengio et al., arXiv:1308.3432), and a spike
has the surrogate derivative of its neuron.
"""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from spikeport.core.arrays import as_array
from spikeport.core.computed_weights import hooks
from spikeport.core.config import TrainConfig
from spikeport.core.errors import SpikeportError
from spikeport.core.learner import Prepare
from spikeport.core.neurons import LIF, Fired
from spikeport.core.runs import DataInfo
from spikeport.core.tracing import trace_module, unwrapped
from spikeport.export.foreign import adopted, share_state
from spikeport.export.nir_graph import Metadata, build_nir
from spikeport.export.trace import graph_for, require_finite, require_time_steps, rewrite, takes_held
from spikeport.targets.loihi import neurons
from spikeport.targets.loihi.arithmetic import SHIFT
from spikeport.targets.loihi.compile import population
from spikeport.targets.loihi.convolution import exact_dtype
from spikeport.targets.loihi.gradients import Slope, gradient
from spikeport.targets.loihi.layers import InputRange, Layer, Network, input_range, layers
from spikeport.targets.loihi.program import INPUT, Population, batch, is_whole
from spikeport.targets.loihi.synapses import Path


def prepare_qat(model: nn.Module, samples: np.ndarray, time_steps: int | None = None) -> "ChipNetwork":
    """A model of one's own as the chip will run it, to be trained in a loop of one's own.

    What is trained are the model's own parameters; its statistics and its neurons' constants stay. Compiled afterwards
    with the same samples, it gives the same spikes. Where ``LIF`` does not have a neuron's surrogate, a warning says so
    and it is the arctangent.

    Args:
        model, samples, time_steps: as of ``compile_model``; one of ours is put into evaluation mode.

    Returns:
        A module that takes samples as these are, [N, ...] or [T, N, ...], and gives mean class currents [N, K].

    Raises:
        SpikeportError: samples that do not suit it, a network that does not compile to Loihi, a layer with hooks.
    """
    if not isinstance(model, nn.Module) or isinstance(model, ChipNetwork):
        raise SpikeportError(
            f"prepare_qat takes a spiking model, a torch.nn.Module, not {type(model).__name__} (a run is trained on by "
            "`spikeport train --from RUN --target loihi`)"
        )
    array = as_array(samples, "the samples")
    model = unwrapped(model)
    require_finite(model)
    _require_no_hooks(model)
    ours = adopted(model, array.shape, time_steps)
    if ours is not model:
        share_state(ours, model)
        unknown = [name for name, module in ours.named_modules() if isinstance(module, LIF) and module.alpha is None]
        if unknown:
            warnings.warn(
                f"{', '.join(unknown)}: of a surrogate that LIF does not have; trained with the arctangent instead",
                RuntimeWarning,
                stacklevel=2,
            )
    graph, held = graph_for(ours.eval(), array.shape)
    given = Metadata(
        time_steps=1 if held else len(array),
        input="constant" if held else "sequence",
        input_shape=array.shape[1 if held else 2 :],
    )
    chip = ChipNetwork(ours, graph, given.input_shape, input_range(given, array))
    network = chip.network()  # what it cannot hold is told of before anything is trained
    require_time_steps(time_steps, network.metadata.time_steps)
    return chip


def prepare_run(model: nn.Module, info: DataInfo) -> "ChipNetwork":
    """The ``prepare`` of ``spikeport.core.train``: the model as the chip will run it.

    Raises:
        SpikeportError: a CNN, an input that changes over time, or a layer with hooks, which would not run.
    """
    _require_no_hooks(model)
    graph = trace_module(model).graph
    if not takes_held(model, graph):
        raise SpikeportError("training for Loihi takes a spiking network (--kind snn) whose input is held for T steps")
    given = Metadata(time_steps=1, input_shape=info.image_shape, input_bound=info.input_bound)
    return ChipNetwork(model, graph, info.image_shape, input_range(given, None))


class ChipNetwork(nn.Module):
    """Takes normalised samples [N, ...], or [T, N, ...] where the input changes; gives mean class currents [N, K].

    These are the chip's, float32. It has the parameters of ``model``, which stays in evaluation mode.

    Args:
        graph: the model's, traced.
        input_shape: of one sample, (C, H, W) or (F,).
        given: the range of the input.

    Raises:
        SpikeportError: when called, samples beyond the range, and a network that no longer compiles to Loihi.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph, input_shape: tuple[int, ...], given: InputRange) -> None:
        super().__init__()
        lifs = {name: module for name, module in model.named_modules() if isinstance(module, LIF)}
        self.model = model.eval()
        self._traced = (graph.owning_module,)  # in a tuple: its copies of the weights are no part of this network
        self._shape, self._range = input_shape, given
        self._neurons = lifs
        self._fired = nn.ModuleDict({_key(name): Fired(name) for name in lifs})

    def train(self, mode: bool = True) -> "ChipNetwork":
        super().train(mode)
        self.model.eval()
        return self

    def network(self) -> Network:
        """The model as it is now, in layers whose weights lead back to its parameters."""
        (graph,) = self._traced
        assert graph is not None
        traced = rewrite(self.model, graph.graph, self._shape)
        kind = "constant" if traced.constant_input else "sequence"
        metadata = Metadata(traced.time_steps, input=kind, input_shape=self._shape)
        return layers(build_nir(traced, metadata)[0], self._range)

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or x.is_complex():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise SpikeportError(f"the input is {kind}; give a tensor of real numbers")
        with torch.autocast(x.device.type, enabled=False):
            network = self.network()
            return self.values(network, x)[network.output].flatten(1).float()

    def values(self, network: Network, x: Tensor) -> dict[str, Tensor]:
        """What every layer sends: spikes [T*N, C, H, W]; the output, mean class currents [N, K, 1, 1] in float64."""
        values = {INPUT: _quantised(x, network)}
        samples = x.shape[0 if network.metadata.input == "constant" else 1]
        with torch.backends.nnpack.flags(enabled=False):
            for layer in network.layers:
                values[layer.name] = self._run(layer, values, samples, network.metadata.time_steps)
        return values

    def _run(self, layer: Layer, values: dict[str, Tensor], samples: int, steps: int) -> Tensor:
        spiking = layer.constants.threshold is not None
        neuron = self._neurons.get(layer.source) if spiking else None  # the class currents may share a name
        if spiking and neuron is None:
            return _pooled(layer, values)
        chip = population(layer, depth=0)
        arriving = [
            _convolve(values[path.pre], _rounded(weight * layer.scale), path).unflatten(0, (-1, samples))
            for path, weight in zip(layer.paths, layer.weights, strict=True)
        ]
        bias = (layer.bias * layer.scale * (1 << SHIFT)).float().to(arriving[0].device)
        current = sum(arriving[1:], arriving[0])  # 0 + the first would copy it
        spikes, v = _Neurons.apply(current, bias, chip, steps, neuron and _slope(layer, neuron))
        if not spiking:
            return v.double() / (layer.scale * (1 << SHIFT) * steps)
        fired: Tensor = self._fired[_key(layer.source)](spikes.flatten(0, 1))
        return fired


def _require_no_hooks(model: nn.Module) -> None:
    """Raises SpikeportError where a layer has hooks, which would not run in integers."""
    for name, module in model.named_modules():
        computing = list(hooks(module).values())
        around = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        if any(hook not in computing for kind in around for hook in kind.values()):
            where = f"{name or 'the model'} ({type(module).__name__})"
            raise SpikeportError(f"{where}: has a hook, which would not run in integers; remove it")


def _key(name: str) -> str:
    """What a ModuleDict takes for the name of a layer: no dot, and nothing that it has of its own."""
    return "/" + name.replace(".", "/")


def _quantised(x: Tensor, network: Network) -> Tensor:
    """Samples as the graded input, whole numbers in float32 [N or T*N, C, H, W]; see ``LoihiProgram.quantise``."""
    steps = None if network.metadata.input == "constant" else network.metadata.time_steps
    maps = batch(x, network.input_shape, steps, "input", "network")
    maps = (maps if steps is None else maps.flatten(0, 1)).double()
    if len(maps) == 0:
        raise SpikeportError("zero samples; give at least one")
    whole = _rounded(maps / network.input_scale)
    if not bool(whole.detach().abs().amax() <= network.input_max):
        raise SpikeportError(
            f"the input reaches {float(maps.abs().amax()):.4g}, the network's range ends at "
            f"{network.input_scale * network.input_max:.4g}; prepare it with samples that reach as far"
        )
    if is_whole(network.input_scale, network.input_max) and bool((whole != maps).any()):
        raise SpikeportError("the input holds fractions, the samples that the network was prepared with did not")
    return whole.float()


def _pooled(layer: Layer, values: dict[str, Tensor]) -> Tensor:
    """Neurons that are no LIF of the model pool spikes by OR: 1 where any fired in their window, without memory.

    Those that fired share the gradient evenly; where none did, all places do.
    """
    kernels = [(weight != 0).float() for weight in layer.weights]
    sent = [values[path.pre] for path in layer.paths]
    every, fired = (
        sum(_convolve(x, kernel, path) for x, kernel, path in zip(maps, kernels, layer.paths, strict=True))
        for maps in (sent, [x * x.detach() for x in sent])
    )
    assert isinstance(every, Tensor)
    assert isinstance(fired, Tensor)
    count, window = fired.detach(), max(int(kernel.sum((1, 2, 3)).max()) for kernel in kernels)
    return torch.where(count > 0, fired / count.clamp(min=1), every / window)


def _rounded(x: Tensor) -> Tensor:
    """The nearest integers; the gradient passes as if they were x."""
    return x.detach().round() + (x - x.detach())


def _convolve(x: Tensor, weight: Tensor, path: Path) -> Tensor:
    """The integer current, float32; see ``convolution`` for where that is exact. No sum reaches 2^24."""
    options = (path.stride, path.padding, path.dilation, path.groups)
    dtype = exact_dtype(x.shape[1:], weight.shape, *options) if x.device.type == "cpu" else torch.float32
    last = {"memory_format": torch.channels_last}
    weight = weight.to(x.device, dtype)
    current = F.conv2d(x.to(dtype).contiguous(**last), weight.contiguous(**last), None, *options).float()
    # cuDNN may transform (Winograd, FFT), which does not sum integers exactly; it is far closer than a half.
    return current if x.device.type == "cpu" else _rounded(current)


class _Neurons(torch.autograd.Function):
    """The fixed engine's neurons; backward without truncation."""

    @staticmethod
    def forward(
        ctx: Any, current: Tensor, bias: Tensor, chip: Population, steps: int, slope: Slope | None
    ) -> tuple[Tensor, Tensor]:
        """``bias`` is there for its gradient: the chip has its own, in integers."""
        found = neurons.run(chip, current, steps)
        ctx.save_for_backward(current, found.spikes)
        ctx.chip, ctx.slope = chip, slope
        ctx.set_materialize_grads(False)
        return found.spikes, found.v.new_empty(0).float() if chip.spiking else found.v.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        current, spikes = ctx.saved_tensors
        grad_spikes, grad_v = grads
        return *gradient(ctx.chip, current, spikes, grad_spikes, grad_v, ctx.slope), None, None, None


def _slope(layer: Layer, neuron: LIF) -> Slope:
    threshold: Any = layer.constants.threshold  # one number: neurons of a model do not differ
    unit = layer.scale * (1 << SHIFT)
    return Slope(neuron.surrogate, unit, threshold, neuron.neuron.steepness, neuron.detach_reset)


def preparation(config: TrainConfig) -> Prepare | None:
    """What ``spikeport.core.train`` is to ``prepare``: None where the settings name no target."""
    return prepare_run if config.target else None
