"""convert: any CNN of the user's becomes its spiking twin."""

import operator
import warnings
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from spikeport.core.computed_weights import draw_anew
from spikeport.core.errors import SpikeportError
from spikeport.core.in_place import called
from spikeport.core.models.twin import Twin
from spikeport.core.neurons import LIF, HoldTime, TimeMean
from spikeport.core.tracing import Names, inside, replace_call, trace_module

_RELUS = (torch.relu, F.relu, F.relu6, "relu")
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_SYNAPTIC = (nn.modules.conv._ConvNd, nn.Linear, *_NORMS)
_SYNAPSES = (F.conv1d, F.conv2d, F.conv3d, F.linear)
#: As functions and methods; as modules they are those of torch.nn.modules.activation.
_OTHER_ACTIVATIONS = {
    *("celu", "clamp", "clamp_max", "clamp_min", "clip", "elu", "gelu", "glu", "gumbel_softmax", "hardshrink"),
    *("hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "log_softmax", "logsigmoid", "mish", "prelu", "rrelu"),
    *("selu", "sigmoid", "silu", "softmax", "softmin", "softplus", "softshrink", "softsign", "tanh", "tanhshrink"),
    "threshold",
}

#: Functions that cut or join along a dimension -> where in their arguments it stands.
_ALONG = {
    **dict.fromkeys(("cat", "concat", "concatenate", "flip", "index_select", "narrow", "select", "unbind"), 1),
    **dict.fromkeys(("chunk", "roll", "split", "tensor_split"), 2),
}
#: Functions that reckon along dimensions -> where those stand; without any, along all.
_REDUCES = {
    **dict.fromkeys(("amax", "amin", "argmax", "argmin", "cumprod", "cumsum", "logsumexp", "max", "mean", "median"), 1),
    **dict.fromkeys(("min", "prod", "std", "std_mean", "sum", "var", "var_mean"), 1),
}

#: What a node of a traced network is: signals that change from step to step, a current [N, ...] that is held, numbers
#: and tensors that know nothing of the samples, the number N of samples, and what else was reckoned from it.
STEPS, HELD, CONSTANT, SAMPLES, SIZES = "steps", "held", "constant", "samples", "sizes"


def convert(
    model: nn.Module,
    time_steps: int = 4,
    tau: float = 2.0,
    v_threshold: float = 1.0,
    surrogate: str = "atan",
    spiking: str = "activations",
    weights: bool = True,
    alpha: float | None = None,
    constant_input: bool = True,
) -> nn.Module:
    """The spiking twin of a CNN: a LIF where it has a ReLU or ReLU6, class currents averaged over time.

    Warns of every other activation, by name: it stays, so the twin can be trained, but no target runs it.

    Args:
        model: any CNN that torch.fx can trace, [N, C, H, W] to [N, K]; it is not changed. Hooks on the model itself do
            not go with it, those on its layers do.
        spiking: "activations", or "every-layer" to put a LIF behind every other convolution, linear layer or
            BatchNorm too (but the last), so that every synapse carries spikes.
        tau, v_threshold, surrogate, alpha: of the neurons, as of ``core.functional.lif``.
        constant_input: the twin takes [N, C, H, W], held for all steps; else [T*N, C, H, W], an input for each step.
        weights: keep the CNN's weights (a start for training), or draw new ones in every layer that can (one with
            ``reset_parameters``).

    Raises:
        SpikeportError: the model cannot be traced, has no ReLU, or, in training mode, does what it does not do in
            evaluation (but for dropout).
    """
    twin = Twin("snn", spiking, time_steps, tau, v_threshold, surrogate, alpha)
    graph = trace_module(model)
    names = Names(graph)
    activations = [node for node in graph.graph.nodes if _is_relu(node, graph)]
    if not activations:
        raise SpikeportError(f"{type(model).__name__} has no ReLU to turn into a neuron; there is nothing to convert")
    for node in activations:
        name = names.add(_name(node), twin.activation(), replaces=node.op == "call_module")
        replace_call(graph, node, name)
    if spiking == "every-layer":
        for node in list(graph.graph.nodes):
            if _ends_linear(node, graph):
                _insert_behind(graph, node, names.add(f"{_name(node)}_lif", twin.between()))
    if not weights:
        for name, module in graph.named_modules():
            draw_anew(module, name)
    others = [f"{kind} ({_name(node)})" for node in graph.graph.nodes if (kind := _other_activation(node, graph))]
    if others:
        warnings.warn(
            f"convert: {', '.join(others)}: neither ReLU nor ReLU6, so no neuron takes its place; the twin can be "
            "trained, but no spiking target runs it: give the CNN ReLU there and train it again",
            RuntimeWarning,
            stacklevel=2,
        )
    return fold_time(graph, time_steps, names, constant_input)


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _is_relu(node: fx.Node, graph: fx.GraphModule) -> bool:
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), (nn.ReLU, nn.ReLU6))
    return node.op in ("call_function", "call_method") and node.target in _RELUS


def _other_activation(node: fx.Node, graph: fx.GraphModule) -> str | None:
    """What a node that computes another activation calls it."""
    module = _module(node, graph)
    if module is not None:
        return type(module).__name__ if type(module).__module__ == nn.ReLU.__module__ else None
    name = called(node).rstrip("_")
    on_signals = any(value.op != "get_attr" for value in node.all_input_nodes)
    return name if on_signals and name in _OTHER_ACTIVATIONS and node.op.startswith("call_") else None


def _insert_behind(graph: fx.GraphModule, node: fx.Node, name: str) -> None:
    with graph.graph.inserting_after(node):
        new = graph.graph.call_module(name, (node,))
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


def _ends_linear(node: fx.Node, graph: fx.GraphModule) -> bool:
    """Whether a synaptic layer's output goes on without a neuron or BatchNorm right behind it."""
    if not _is_synaptic(node, graph):
        return False
    behind = [_module(user, graph) for user in _users(node)]
    if any(isinstance(m, (LIF, *_NORMS)) for m in behind):
        return False
    return _reaches_synapse(node, graph)


def _is_synaptic(node: fx.Node, graph: fx.GraphModule) -> bool:
    return isinstance(_module(node, graph), _SYNAPTIC) or (node.op == "call_function" and node.target in _SYNAPSES)


def _users(node: fx.Node) -> list[fx.Node]:
    """What reads a node, looking through concatenations."""
    found: list[fx.Node] = []
    for user in node.users:
        found += _users(user) if user.target in (torch.cat, torch.concat) else [user]
    return found


def _module(node: fx.Node, graph: fx.GraphModule) -> nn.Module | None:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def _reaches_synapse(node: fx.Node, graph: fx.GraphModule) -> bool:
    return any(
        _is_synaptic(user, graph) or isinstance(_module(user, graph), LIF) or _reaches_synapse(user, graph)
        for user in node.users
    )


def fold_time(
    graph: fx.GraphModule, time_steps: int, names: Names | None = None, constant_input: bool = True
) -> fx.GraphModule:
    """Completes a network of LIF layers: the output is averaged over time.

    Where the input is held constant, the LIF layers that see only the input take a constant current; where such a
    current meets signals that change, it is held.
    """
    names = names or Names(graph)
    modules = dict(graph.named_modules())
    kinds: dict[fx.Node, str] = {}
    for node in list(graph.graph.nodes):
        inputs = node.all_input_nodes
        if node.op == "placeholder":
            kinds[node] = HELD if constant_input else STEPS
        elif node.op == "output":
            if len(inputs) != 1:
                raise SpikeportError("the model returns more than one tensor; only one output is supported")
            value = inputs[0]
            if kinds[value] != STEPS:
                raise SpikeportError("the output does not depend on any neuron; there is nothing to run over time")
            if not isinstance(modules.get(str(value.target)), TimeMean):
                with graph.graph.inserting_before(node):
                    mean = graph.graph.call_module(names.add("readout", TimeMean(time_steps)), (value,))
                node.replace_input_with(value, mean)
        elif isinstance(modules.get(str(node.target)), LIF) and node.op == "call_module":
            module = modules[str(node.target)]
            module.constant_input = kinds[inputs[0]] != STEPS
            kinds[node] = STEPS
        else:
            kinds[node] = _kind(node, kinds)
            if any(kinds[i] == STEPS for i in inputs):
                _require_samples_apart(node)
            for value in [i for i in inputs if kinds[node] == STEPS and kinds[i] not in (STEPS, CONSTANT)]:
                if kinds[value] == SIZES:
                    raise SpikeportError(
                        f"{node.name}: takes the number of samples from {value.name}, before the time steps are there; "
                        "read it from the tensor that it shapes"
                    )
                with graph.graph.inserting_before(node):
                    if kinds[value] == SAMPLES:
                        repeated = graph.graph.call_function(operator.mul, (value, time_steps))
                    else:
                        repeated = graph.graph.call_module(names.add("hold", HoldTime(time_steps)), (value,))
                node.replace_input_with(value, repeated)
    graph.graph.lint()
    graph.recompile()
    return graph


def _require_samples_apart(node: fx.Node) -> None:
    """Raises SpikeportError where a call works along the axis of signals [T*N, ...] that holds samples and steps."""
    name = called(node)
    if node.target is operator.getitem and called(node.args[0]) not in _ALONG:  # whose parts are no maps
        key = node.args[1][0] if isinstance(node.args[1], tuple) and node.args[1] else node.args[1]
        along = isinstance(key, (slice, list, fx.Node)) and key != slice(None)
    elif name in _ALONG:
        dims = _listed(node, _ALONG[name], "dim", "dims", "axis") or [0]
        along = any(dim in (0, -4) for dim in (dims if name == "flip" else dims[:1]))
    elif called(node.all_input_nodes[0]) in ("stack", "unsqueeze"):  # which have an axis of their own
        return
    elif name in _REDUCES:
        dims = [dim for dim in _listed(node, _REDUCES[name], "dim", "axis") if not isinstance(dim, bool)]
        along = not dims or any(dim in (0, -4) for dim in dims)
    elif name in ("repeat", "tile"):
        along = _listed(node, 1, "repeats", "dims")[:1] != [1]
    else:
        return
    if along:
        raise SpikeportError(
            f"{inside(node)}{node.name}: {name}() works along dimension 0, where the samples lie, each at every time "
            "step behind a neuron; do it before the first neurons (a network that repeats its input and joins its "
            "outputs over time: give it for one step, without either)"
        )


def _listed(node: fx.Node, place: int, *names: str) -> list[Any]:
    """The numbers that a call is given in this place and behind it, or by one of these names, alone or in a list."""
    given = node.args[place:] or [node.kwargs[name] for name in names if name in node.kwargs]
    return [number for value in given for number in (value if isinstance(value, (list, tuple)) else [value])]


def _kind(node: fx.Node, kinds: dict[fx.Node, str]) -> str:
    """What a call gives, from what it takes."""
    given = [kinds[i] for i in node.all_input_nodes]
    if STEPS in given or HELD in given:
        method = node.target if node.op == "call_method" else node.args[1] if node.target is getattr else None
        if method not in ("size", "shape", "dim", "ndim", "numel", "dtype", "device"):
            return STEPS if STEPS in given else HELD
        if STEPS in given or method in ("dim", "ndim", "dtype", "device"):
            return CONSTANT
        axis = node.args[1] if len(node.args) > 1 and method == "size" else node.kwargs.get("dim")
        return SIZES if axis is None or axis == -4 else SAMPLES if axis == 0 else CONSTANT
    if node.target is operator.getitem and kinds.get(node.args[0]) == SIZES:  # type: ignore[arg-type]
        key = node.args[1]
        if isinstance(key, slice):
            return CONSTANT if key.start else SIZES
        return SAMPLES if key == 0 else CONSTANT
    return SIZES if SIZES in given or SAMPLES in given else CONSTANT
