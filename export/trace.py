"""From a PyTorch model to its expression graph: torch.fx, then one rule per layer.

What has no exact form is refused by name, with the layer and the remedy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from spikeport.core.computed_weights import compute, make_plain
from spikeport.core.diagnosis import first_not_finite
from spikeport.core.errors import SpikeportError
from spikeport.core.functional import whole_steps
from spikeport.core.geometry import Shape
from spikeport.core.neurons import LIF, HoldTime, TimeMean
from spikeport.core.tracing import copied, inside, trace_module
from spikeport.export import arithmetic, functions
from spikeport.export import expressions as ex
from spikeport.export.signals import Input, Neuron, Node, Signal, map_shape, whole


@dataclass(frozen=True)
class Traced:
    """An expression graph with what it needs to run.

    Attributes:
        input: the input node.
        output: class currents, without the mean over time.
        time_steps: T.
        constant_input: whether the input is held for T steps ([N, ...]) or given per step ([T*N, ...]).
        observed: the spiking layers of the model, in the order they run, and what their outputs became.
    """

    input: Input
    output: Signal
    time_steps: int
    constant_input: bool
    observed: tuple[tuple[str, Signal], ...]


def trace(model: nn.Module, input_shape: tuple[int, ...], graph: fx.Graph | None = None) -> Traced:
    """Rewrites a spiking model exactly.

    Args:
        model: in evaluation mode; ordinary torch layers on [T*N, C, H, W] with ``LIF`` between them.
        input_shape: of one sample: (C, H, W), or (F,) for a network of linear layers.
        graph: the model's, where it was traced already.

    Raises:
        SpikeportError: a model that cannot be traced or a layer without an exact spiking form, by name.
    """
    if model.training:
        raise SpikeportError("trace: the model is in training mode; call model.eval() first")
    require_finite(model)
    with torch.no_grad():
        return rewrite(model, trace_module(model).graph if graph is None else graph, input_shape)


def deployed(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, on the CPU, whose weights are what they are now, however they are computed.

    Raises:
        SpikeportError: see ``require_finite``.
    """
    model = make_plain(copied(model).eval())
    require_finite(model)
    # Half precision is too coarse for sums of spikes; its weights are what they are in float32 too.
    return model.cpu()._apply(lambda t: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t)


def require_finite(model: nn.Module) -> None:
    """Raises SpikeportError where weights are missing (lazy, meta), NaN or infinite."""
    for name, tensor in model.state_dict().items():
        if is_lazy(tensor) or tensor.is_meta:
            raise SpikeportError(f"{name} has no values yet (lazy or meta); run the model once, or load its weights")
    bad = first_not_finite(model.state_dict())
    if bad:
        raise SpikeportError(f"{bad} holds NaN or infinity; an exported network needs finite weights")


def rewrite(model: nn.Module, graph: fx.Graph, input_shape: tuple[int, ...]) -> Traced:
    """The model whose traced graph is known. With gradients enabled, the weights lead back to its parameters."""
    return _Rewriter(model, input_shape).run(graph)


class _Rewriter:
    def __init__(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        flat = len(input_shape) == 1
        self.model = model
        self.modules = dict(model.named_modules())
        self.input = Input("input", (), map_shape(input_shape), flat=flat)
        self.flat = flat
        self.neurons: list[LIF] = []
        self.holds: list[HoldTime] = []
        self.readout: TimeMean | None = None
        self.averaged: set[fx.Node] = set()  # what follows the read-out
        self.observed: list[tuple[str, Signal]] = []

    def run(self, graph: fx.Graph) -> Traced:
        values: dict[fx.Node, Any] = {}
        output: Any = None
        for node in graph.nodes:
            if node.op == "get_attr":
                values[node] = self.constant(str(node.target), graph)
                continue
            if node.op == "placeholder":
                if any(n.op == "placeholder" for n in values):
                    raise SpikeportError(f"{node.name}: the model takes more than one input; only one is supported")
                values[node] = whole(self.input, self.flat)
                continue
            args = fx.node.map_arg(node.args, values.__getitem__)
            kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
            signals = [n for n in node.all_input_nodes if isinstance(values[n], functions.View | list)]
            averaged = [n in self.averaged for n in signals]
            if any(averaged):
                self.averaged.add(node)
                if not all(averaged) and node.op != "output":
                    raise SpikeportError(
                        f"{node.name}: joins a mean over time with what has none; join them before one TimeMean"
                    )
            if node.op == "output":
                output = args[0]
            elif node.op == "call_module":
                values[node] = self.call_module(node, [*args, *kwargs.values()])
            else:
                try:
                    values[node] = functions.apply(node, args, kwargs)
                except SpikeportError as error:
                    raise SpikeportError(f"{inside(node)}{error}") from None
        return self.finish(output, node in self.averaged)

    def constant(self, name: str, graph: fx.Graph) -> Any:
        """A parameter or buffer that is used outside of a layer, or what the trace made of another constant."""
        try:
            value = attrgetter(name)(self.model)
        except AttributeError:
            value = attrgetter(name)(graph.owning_module)
        return ex.exact(value) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def finish(self, output: Any, averaged: bool) -> Traced:
        if not isinstance(output, Signal):
            raise SpikeportError("the model returns more than one tensor; only one output is supported")
        if self.readout is None or not averaged:
            raise SpikeportError("the model has no read-out; end it with TimeMean(time_steps)")
        if not self.neurons:
            raise SpikeportError("the model has no spiking neurons; this is a CNN: export it with --target onnx")
        steps = {n.time_steps for n in self.neurons} | {h.time_steps for h in self.holds} | {self.readout.time_steps}
        if len(steps) != 1:
            raise SpikeportError(f"the layers disagree on the number of time steps: {sorted(steps)}")
        if not output.flat:
            raise SpikeportError(
                f"the model's output has shape {['N', *output.shape]}; it must be [N, K]: end the model with flatten(1)"
            )
        constant = any(map(_holds, (*self.neurons, *self.holds)))
        return Traced(self.input, output, steps.pop(), constant, tuple(self.observed))

    def call_module(self, node: fx.Node, given: list[Any]) -> Any:
        name = str(node.target)
        # A dropout that was a function is a module of the trace alone.
        module = self.modules.get(name, nn.Identity())
        if isinstance(module, ParametrizationList):  # a weight, of a layer with a forward of its own
            return module()
        for ours in (LIF, HoldTime, TimeMean):
            if isinstance(module, ours) and type(module).forward is not ours.forward:
                raise SpikeportError(
                    f"{name} ({type(module).__name__}): a {ours.__name__} with a forward of its own has no exact form"
                )
        if len(given) == 1 and isinstance(given[0], functions.Line):
            if not isinstance(module, OF_LINES):
                raise SpikeportError(
                    f"{name} ({type(module).__name__}): takes maps that lost their rows or columns, "
                    f"{['N', *functions.shape(given[0])[1:]]}; flatten(1) makes features of them"
                )
        elif len(given) != 1 or not isinstance(given[0], Signal):
            raise SpikeportError(f"{name} ({type(module).__name__}): takes something else than one tensor")
        (x,) = given
        if node in self.averaged:
            raise SpikeportError(f"{name}: follows the mean over time; TimeMean must be the last layer")
        if isinstance(module, LIF):
            ex.require_fed(x, name)
            self.require_neuron(module, x, name)
            self.neurons.append(module)
            spikes = ex.fire(x, lif_maker(module, name))
            self.observed.append((name, spikes))
            return spikes
        if isinstance(module, HoldTime):
            if _changes(x.nodes):
                raise SpikeportError(f"{name}: holds a current that changes from step to step; leave it out")
            self.holds.append(module)
            return x
        if isinstance(module, TimeMean):
            if self.readout is not None:
                raise SpikeportError(
                    f"{name}: a second mean over time; add up what enters them, and end with one TimeMean"
                )
            self.readout = module
            self.averaged.add(node)
            return x
        compute(module)
        for kind, rule in RULES.items():
            if isinstance(module, kind):
                y = rule(module, x, name)
                if isinstance(module, nn.MaxPool2d):
                    self.observed.append((name, y))
                return y
        remedy = "replace it by LIF" if isinstance(module, (nn.ReLU, nn.ReLU6, nn.SiLU)) else "replace it"
        raise SpikeportError(f"{name} ({type(module).__name__}): has no exact spiking form; {remedy}")

    def require_neuron(self, module: LIF, x: Signal, name: str) -> None:
        with np.errstate(over="ignore"):
            reset, threshold = np.array([module.v_reset, module.v_threshold], np.float32)  # what models compute in
        if not threshold > reset:
            raise SpikeportError(
                f"{name}: v_threshold {module.v_threshold:g} is not above v_reset {module.v_reset:g}; raise it (models "
                "compute in float32)"
            )
        if np.isinf(threshold):
            raise SpikeportError(
                f"{name}: v_threshold is {module.v_threshold:g}, so none of its neurons fires; lower it"
            )
        if module.constant_input and _changes(x.nodes):
            raise SpikeportError(
                f"{name}: takes a constant current and is given one that changes; build it with constant_input=False"
            )


def graph_for(model: nn.Module, shape: tuple[int, ...]) -> tuple[fx.Graph, bool]:
    """A spiking network's traced graph, and whether samples of this shape are held for all steps.

    Raises:
        SpikeportError: a model without spiking neurons, or samples that do not suit it.
    """
    if not any(isinstance(m, LIF) for m in model.modules()):
        raise SpikeportError(
            f"{type(model).__name__} has no spiking neurons among its layers. A CNN goes to --target onnx, or trains "
            "its twin first (spikeport.convert); calls of lif() are not seen: make them LIF layers"
        )
    graph = trace_module(model).graph
    held = takes_held(model, graph)
    if not held and len(shape) not in (3, 5):
        raise SpikeportError(
            f"samples of shape {shape}; a network whose input changes takes [T, N, C, H, W] or [T, N, F] (one that "
            "holds it has a first LIF with constant_input=True, or HoldTime)"
        )
    return graph, held


def require_time_steps(said: int | None, own: int) -> None:
    """Raises SpikeportError where a model has another T of its own than is said."""
    if said is not None and whole_steps(said) != own:
        raise SpikeportError(f"time_steps is {said}, the model has {own} of its own; leave --time-steps out")


def takes_held(model: nn.Module, graph: fx.Graph) -> bool:
    """Whether the network a model calls, as its traced graph says, holds a sample [N, ...] for all steps."""
    modules = dict(model.named_modules())
    calls = (modules.get(str(node.target)) for node in graph.nodes if node.op == "call_module")
    return any(map(_holds, calls))


def _holds(module: nn.Module | None) -> bool:
    return isinstance(module, HoldTime) or (isinstance(module, LIF) and module.constant_input)


def _changes(nodes: tuple[Node, ...]) -> bool:
    """Whether what the nodes give changes from step to step because neurons are among or above them."""
    waiting, seen = list(nodes), set(nodes)  # each once: residual connections double the ways up
    while waiting:
        node = waiting.pop()
        if isinstance(node, Neuron):
            return True
        waiting += [n for n in node.inputs if n not in seen]
        seen.update(node.inputs)
    return False


def lif_maker(module: LIF, name: str) -> Callable[[tuple[Node, ...], Shape], Neuron]:
    return lambda inputs, shape: Neuron(
        name, inputs, shape, module.tau, module.gain, module.v_threshold, module.v_reset
    )


def _conv(module: nn.Conv2d, x: Signal, name: str) -> Signal:
    if module.padding_mode != "zeros":
        raise SpikeportError(f"{name}: padding_mode {module.padding_mode!r} has no exact form; use zeros")
    options = (module.stride, module.padding, module.dilation, module.groups)
    return arithmetic.conv2d(name, x, module.weight, module.bias, *options)


def _linear(module: nn.Linear, x: Signal, name: str) -> Signal:
    return arithmetic.linear(name, x, module.weight, module.bias)


def _batch_norm(module: nn.BatchNorm2d | nn.BatchNorm1d, x: Signal, name: str) -> Signal:
    if module.running_mean is None or module.running_var is None:
        raise SpikeportError(f"{name}: BatchNorm without running statistics depends on the batch; train with them")
    scale = 1 / torch.sqrt(ex.exact(module.running_var) + module.eps)
    if module.weight is not None:
        scale = scale * ex.exact(module.weight)
    shift = -ex.exact(module.running_mean) * scale
    if module.bias is not None:
        shift = shift + ex.exact(module.bias)
    return ex.scale_shift(x, scale, shift, name)


def _max_pool(module: nn.MaxPool2d, x: Signal, name: str) -> Signal:
    return functions.max_pool(
        name, x, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
    )


def _avg_pool(module: nn.AvgPool2d, x: Signal, name: str) -> Signal:
    return functions.avg_pool(
        name,
        x,
        module.kernel_size,
        module.stride,
        module.padding,
        module.ceil_mode,
        module.count_include_pad,
        module.divisor_override,
    )


def _voting(module: nn.AvgPool1d, x: Signal, name: str) -> Signal:
    """The mean of every k features in a row: a linear layer."""
    votes, stride, padding = (int(np.ravel(n)[0]) for n in (module.kernel_size, module.stride, module.padding))
    if not x.flat or stride != votes or padding or module.ceil_mode:
        raise SpikeportError(f"{name}: only the mean of every k features in a row has an exact form; use nn.Linear")
    features = int(np.prod(x.shape))
    means = torch.eye(features // votes, dtype=torch.float64).repeat_interleave(votes, 1) / votes
    weight = nn.functional.pad(means, (0, features % votes))
    return ex.multiply(x, weight, weight.new_zeros(len(weight)), name)


def _adaptive_pool(module: nn.AdaptiveAvgPool2d, x: Signal, name: str) -> Signal:
    return functions.adaptive_avg_pool(name, x, module.output_size)


def _flatten(module: nn.Flatten, x: Signal, name: str) -> Signal:
    return functions.flatten(name, x, module.start_dim, module.end_dim)


def _pad(module: nn.ConstantPad2d, x: Signal, name: str) -> Signal:
    return functions.pad(name, x, module.padding, value=module.value)


def _shuffle(module: nn.ChannelShuffle, x: Signal, name: str) -> Signal:
    return functions.channel_shuffle(x, module.groups)


def _nothing(module: nn.Module, x: Signal, name: str) -> Signal:
    return x


DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)

#: Layers that take maps without rows or columns.
OF_LINES = (nn.Flatten, nn.Identity, *DROPOUTS)

#: layer type -> how it rewrites a signal
RULES: dict[type[nn.Module], Callable[[Any, Signal, str], Signal]] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
    nn.AvgPool1d: _voting,
    nn.AdaptiveAvgPool2d: _adaptive_pool,
    nn.Flatten: _flatten,
    nn.ChannelShuffle: _shuffle,
    nn.ConstantPad2d: _pad,  # nn.ZeroPad2d is one
    **dict.fromkeys(DROPOUTS, _nothing),
    nn.Identity: _nothing,
}
