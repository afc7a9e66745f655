"""Quantisation-aware training: a model whose forward pass is the chip's integer arithmetic.

Every step rewrites the model as export does, compiles it as ``compile`` does and runs the integers as the fixed engine
does; so what is trained is what the chip will run, spike for spike. BatchNorm is folded, with frozen statistics. On the
way back, rounding and truncation pass the gradient straight through (Bengio et al., arXiv:1308.3432), and a spike
has the surrogate derivative of its neuron.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from spikeport.core.computed_weights import hooks
from spikeport.core.config import TrainConfig
from spikeport.core.errors import SpikeportError
from spikeport.core.learner import Prepare
from spikeport.core.neurons import LIF, Fired
from spikeport.core.runs import DataInfo
from spikeport.core.tracing import trace_module
from spikeport.export.nir_graph import Metadata, build_nir
from spikeport.export.trace import rewrite, takes_held
from spikeport.targets.loihi import neurons
from spikeport.targets.loihi.arithmetic import SHIFT
from spikeport.targets.loihi.compile import population
from spikeport.targets.loihi.convolution import exact_dtype
from spikeport.targets.loihi.gradients import Slope, gradient
from spikeport.targets.loihi.layers import Layer, Network, layers
from spikeport.targets.loihi.program import INPUT, Population
from spikeport.targets.loihi.synapses import Path


class ChipNetwork(nn.Module):
    """Takes normalised images [N, C, H, W]; returns the mean class currents the chip gives, float32 [N, K].

    It has the parameters of ``model``, which stays in evaluation mode.

    Raises:
        SpikeportError: a CNN, an input that changes over time, a layer with hooks (which would not run), or a network
            that does not compile to Loihi.
    """

    def __init__(self, model: nn.Module, info: DataInfo) -> None:
        super().__init__()
        lifs = {name: module for name, module in model.named_modules() if isinstance(module, LIF)}
        _require_no_hooks(model)
        self._graph = trace_module(model).graph
        if not takes_held(model, self._graph):
            raise SpikeportError(
                "training for Loihi takes a spiking network (--kind snn) whose input is held for T steps"
            )
        self.model = model.eval()
        self._neurons, self._info = lifs, info
        self._fired = nn.ModuleDict({_key(name): Fired(name) for name in lifs})

    def train(self, mode: bool = True) -> "ChipNetwork":
        super().train(mode)
        self.model.eval()
        return self

    def network(self) -> Network:
        """The model as it is now, in layers whose weights lead back to its parameters."""
        shape = self._info.image_shape
        traced = rewrite(self.model, self._graph, shape)
        metadata = Metadata(traced.time_steps, input_shape=shape, input_bound=self._info.input_bound)
        return layers(build_nir(traced, metadata)[0])

    def forward(self, x: Tensor) -> Tensor:
        network = self.network()
        return self.values(network, x)[network.output].flatten(1).float()

    def values(self, network: Network, x: Tensor) -> dict[str, Tensor]:
        """What every layer sends: spikes [T*N, C, H, W]; the output, mean class currents [N, K, 1, 1] in float64."""
        values = {INPUT: torch.round(x.detach().double() / network.input_scale).float()}
        with torch.autocast(x.device.type, enabled=False), torch.backends.nnpack.flags(enabled=False):
            for layer in network.layers:
                values[layer.name] = self._run(layer, values, network.metadata.time_steps)
        return values

    def _run(self, layer: Layer, values: dict[str, Tensor], steps: int) -> Tensor:
        chip = population(layer, depth=0)
        arriving = [
            _convolve(values[path.pre], _rounded(weight * layer.scale), path).unflatten(0, (-1, len(values[INPUT])))
            for path, weight in zip(layer.paths, layer.weights, strict=True)
        ]
        bias = (layer.bias * layer.scale * (1 << SHIFT)).float().to(arriving[0].device)
        neuron = self._neurons.get(layer.source) if chip.spiking else None  # the class currents may share a name
        slope = _slope(layer, neuron)
        current = sum(arriving[1:], arriving[0])  # 0 + the first would copy it
        spikes, v = _Neurons.apply(current, bias, chip, steps, slope)
        if not chip.spiking:
            return v.double() / (layer.scale * (1 << SHIFT) * steps)
        spikes, key = spikes.flatten(0, 1), _key(layer.source)
        return self._fired[key](spikes) if key in self._fired else spikes


def _require_no_hooks(model: nn.Module) -> None:
    for name, module in model.named_modules():
        computing = list(hooks(module).values())
        if any(
            hook not in computing for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        ):
            where = f"{name or 'the model'} ({type(module).__name__})"
            raise SpikeportError(f"{where}: has a forward hook, which would not run in integers; remove it")


def _key(name: str) -> str:
    """What a ModuleDict takes for the name of a layer: no dot, and nothing that it has of its own."""
    return "/" + name.replace(".", "/")


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
        ctx: Any, current: Tensor, bias: Tensor, chip: Population, steps: int, slope: Slope
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


def _slope(layer: Layer, neuron: LIF | None) -> Slope:
    """Neurons that are no LIF of the model pool spikes by OR."""
    unit = layer.scale * (1 << SHIFT)
    threshold: Any = layer.constants.threshold  # one number: neurons of a model do not differ
    if neuron is None:
        return Slope(None, unit * 2 * (threshold or 1.0), window=int(layer.weights[0][0].count_nonzero()))
    return Slope(neuron.surrogate, unit, threshold, neuron.neuron.steepness, detach_reset=neuron.detach_reset)


def preparation(config: TrainConfig) -> Prepare | None:
    """The ``prepare`` of ``spikeport.core.train``: ``ChipNetwork`` where the settings name a target, else None."""
    return ChipNetwork if config.target else None
