"""From a PyTorch model to its expression graph: torch.fx, then one rule per layer.

What has no exact form is refused by name, with the layer and the remedy.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from spikeport.core.errors import SpikeportError
from spikeport.core.geometry import pair
from spikeport.core.neurons import LIF, TimeMean
from spikeport.export import expressions as ex
from spikeport.export.expressions import Neuron, Node, Shape, Signal


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

    input: ex.Input
    output: Signal
    time_steps: int
    constant_input: bool
    observed: tuple[tuple[str, Signal], ...]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (LIF, TimeMean)) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module, input_shape: tuple[int, ...]) -> Traced:
    """Rewrites a spiking model exactly.

    Args:
        model: in evaluation mode; ordinary torch layers on [T*N, C, H, W] with ``LIF`` between them.
        input_shape: of one sample: (C, H, W), or (F,) for a network of linear layers.

    Raises:
        SpikeportError: a model that cannot be traced or a layer without an exact spiking form, by name.
    """
    if model.training:
        raise SpikeportError("trace: the model is in training mode; call model.eval() first")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise SpikeportError(f"{name} holds NaN or infinity; an exported network needs finite weights")
    try:
        graph = _Tracer().trace(model)
    except SpikeportError:
        raise
    except Exception as error:  # fx lets anything the model's code raises pass
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SpikeportError(
            f"{type(model).__name__} cannot be traced ({reason}); its forward must not depend on the data"
        ) from error
    return _Rewriter(model, input_shape).run(graph)


class _Rewriter:
    def __init__(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        flat = len(input_shape) == 1
        if len(input_shape) not in (1, 3) or min(input_shape) < 1:
            raise SpikeportError(f"input shape {input_shape}; expected (C, H, W) or (F,)")
        shape: Shape = (input_shape[0], 1, 1) if flat else (input_shape[0], input_shape[1], input_shape[2])
        self.modules = dict(model.named_modules())
        self.input = ex.Input("input", (), shape)
        self.flat = flat
        self.neurons: list[LIF] = []
        self.readout: TimeMean | None = None
        self.observed: list[tuple[str, Signal]] = []

    def run(self, graph: fx.Graph) -> Traced:
        values: dict[fx.Node, Any] = {}
        output: Any = None
        for node in graph.nodes:
            if node.op == "placeholder":
                if values:
                    raise SpikeportError(f"{node.name}: the model takes more than one input; only one is supported")
                values[node] = ex.whole(self.input, self.flat)
                continue
            args = fx.node.map_arg(node.args, values.__getitem__)
            kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
            if node.op == "output":
                output = args[0]
            elif node.op == "call_module":
                values[node] = self.call_module(str(node.target), args)
            elif node.op in ("call_function", "call_method"):
                values[node] = call_function(node, args, kwargs)
            else:
                raise SpikeportError(f"{node.name}: uses {node.target} directly; only layers can be exported")
        return self.finish(output)

    def finish(self, output: Any) -> Traced:
        if not isinstance(output, Signal):
            raise SpikeportError("the model returns more than one tensor; only one output is supported")
        if self.readout is None:
            raise SpikeportError("the model has no read-out; end it with TimeMean(time_steps)")
        if not self.neurons:
            raise SpikeportError("the model has no spiking neurons; this is a CNN: export it with --target onnx")
        steps = {n.time_steps for n in self.neurons} | {self.readout.time_steps}
        if len(steps) != 1:
            raise SpikeportError(f"the layers disagree on the number of time steps: {sorted(steps)}")
        constant = any(n.constant_input for n in self.neurons)
        return Traced(self.input, output, steps.pop(), constant, tuple(self.observed))

    def call_module(self, name: str, args: tuple[Any, ...]) -> Signal:
        module = self.modules[name]
        x = args[0]
        if len(args) != 1 or not isinstance(x, Signal):
            raise SpikeportError(f"{name} ({type(module).__name__}): takes something else than one tensor")
        if self.readout is not None:
            raise SpikeportError(f"{name}: follows the mean over time; TimeMean must be the last layer")
        if isinstance(module, LIF):
            self.neurons.append(module)
            spikes = ex.fire(x, lif_maker(module, name))
            self.observed.append((name, spikes))
            return spikes
        if isinstance(module, TimeMean):
            self.readout = module
            return x
        for kind, rule in RULES.items():
            if isinstance(module, kind):
                y = rule(module, x, name)
                if isinstance(module, nn.MaxPool2d):
                    self.observed.append((name, y))
                return y
        remedy = "replace it by LIF" if isinstance(module, (nn.ReLU, nn.ReLU6, nn.SiLU)) else "replace it"
        raise SpikeportError(f"{name} ({type(module).__name__}): has no exact spiking form; {remedy}")


def lif_maker(module: LIF, name: str) -> Callable[[tuple[Node, ...], Shape], Neuron]:
    return lambda inputs, shape: Neuron(name, inputs, shape, module.tau, module.v_threshold, module.v_reset)


def _conv(module: nn.Conv2d, x: Signal, name: str) -> Signal:
    if module.padding_mode != "zeros":
        raise SpikeportError(f"{name}: padding_mode {module.padding_mode!r} has no exact form; use zeros")
    stride, dilation = pair(module.stride), pair(module.dilation)
    if module.padding == "same":
        sizes = [d * (k - 1) for d, k in zip(dilation, module.kernel_size, strict=True)]
        if any(size % 2 for size in sizes):
            raise SpikeportError(f"{name}: 'same' padding is uneven for kernel {module.kernel_size}; use an odd kernel")
        padding = (sizes[0] // 2, sizes[1] // 2)
    else:
        padding = (0, 0) if module.padding == "valid" else pair(module.padding)
    weight = ex.array(module.weight)
    bias = np.zeros(len(weight)) if module.bias is None else ex.array(module.bias)
    return ex.convolve(x, weight, bias, stride, padding, dilation, module.groups, name)


def _linear(module: nn.Linear, x: Signal, name: str) -> Signal:
    if not x.flat:
        raise SpikeportError(f"{name}: a linear layer on maps; flatten them first")
    weight = ex.array(module.weight)
    bias = np.zeros(len(weight)) if module.bias is None else ex.array(module.bias)
    return ex.multiply(x, weight, bias, name)


def _batch_norm(module: nn.BatchNorm2d | nn.BatchNorm1d, x: Signal, name: str) -> Signal:
    if module.running_mean is None or module.running_var is None:
        raise SpikeportError(f"{name}: BatchNorm without running statistics depends on the batch; train with them")
    scale = 1 / np.sqrt(ex.array(module.running_var) + module.eps)
    if module.weight is not None:
        scale = scale * ex.array(module.weight)
    shift = -ex.array(module.running_mean) * scale
    if module.bias is not None:
        shift = shift + ex.array(module.bias)
    return ex.scale_shift(x, scale, shift, name)


def _max_pool(module: nn.MaxPool2d, x: Signal, name: str) -> Signal:
    if module.ceil_mode or pair(module.dilation) != (1, 1):
        raise SpikeportError(f"{name}: max-pooling with ceil_mode or dilation has no exact form; leave them out")
    return ex.or_pool(x, pair(module.kernel_size), pair(module.stride), pair(module.padding), name)


def _avg_pool(module: nn.AvgPool2d, x: Signal, name: str) -> Signal:
    padding = pair(module.padding)
    if module.ceil_mode or module.divisor_override or (padding != (0, 0) and not module.count_include_pad):
        raise SpikeportError(
            f"{name}: average pooling with ceil_mode, divisor_override or count_include_pad=False has no NIR form; "
            "use the defaults"
        )
    return ex.pool(x, pair(module.kernel_size), pair(module.stride), padding, name)


def _adaptive_pool(module: nn.AdaptiveAvgPool2d, x: Signal, name: str) -> Signal:
    wanted = module.output_size if isinstance(module.output_size, tuple) else (module.output_size,) * 2
    size = tuple(have if want is None else want for want, have in zip(wanted, x.shape[1:], strict=True))
    if any(have % want for want, have in zip(size, x.shape[1:], strict=True)):
        raise SpikeportError(f"{name}: maps of {x.shape[1:]} do not divide evenly into {size}; use AvgPool2d")
    kernel = (x.shape[1] // size[0], x.shape[2] // size[1])
    return ex.pool(x, kernel, kernel, (0, 0), name)


def _flatten(module: nn.Flatten, x: Signal, name: str) -> Signal:
    if module.start_dim != 1 or module.end_dim not in (-1, 3):
        raise SpikeportError(f"{name}: only Flatten(start_dim=1) has an exact form")
    return Signal(x.shape, x.terms, flat=True)


def _nothing(module: nn.Module, x: Signal, name: str) -> Signal:
    return x


#: layer type -> how it rewrites a signal
RULES: dict[type[nn.Module], Callable[[Any, Signal, str], Signal]] = {
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
    nn.AdaptiveAvgPool2d: _adaptive_pool,
    nn.Flatten: _flatten,
    nn.Dropout: _nothing,
    nn.Dropout2d: _nothing,
    nn.Identity: _nothing,
}


def call_function(node: fx.Node, args: Any, kwargs: Any) -> Any:
    """The functions and methods that only join or renumber tensors."""
    name = node.name
    if node.target in (torch.cat, torch.concat):
        tensors = args[0]
        dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        if dim not in (1, -3):
            raise SpikeportError(
                f"{name}: concatenates along dimension {dim}; only channels (dim=1) have an exact form"
            )
        return ex.concat(tensors, name)
    if node.target in (operator.add, operator.iadd, torch.add, "add", "add_"):
        if not (isinstance(args[0], Signal) and isinstance(args[1], Signal)) or kwargs:
            raise SpikeportError(f"{name}: only the sum of two tensors has an exact form")
        return ex.add(args[0], args[1], name)
    if node.target in (torch.flatten, "flatten"):
        start = kwargs.get("start_dim", args[1] if len(args) > 1 else 0)
        if start != 1:
            raise SpikeportError(f"{name}: flattens from dimension {start}; only flatten(1) has an exact form")
        return Signal(args[0].shape, args[0].terms, flat=True)
    label = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    raise SpikeportError(f"{name}: {label}() has no exact spiking form; use a layer or leave it out")
