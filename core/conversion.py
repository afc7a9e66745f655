"""convert: any CNN of the user's becomes its spiking twin."""

import copy
import operator
import warnings
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from spikeport.core.errors import SpikeportError, reason
from spikeport.core.models.twin import Twin
from spikeport.core.neurons import LIF, TimeMean

_RELUS = (torch.relu, torch.relu_, F.relu, F.relu_, F.relu6, "relu", "relu_")
_DROPOUTS: dict[Any, type[nn.Module]] = {F.dropout: nn.Dropout, F.dropout1d: nn.Dropout1d, F.dropout2d: nn.Dropout2d}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_SYNAPTIC = (nn.modules.conv._ConvNd, nn.Linear, *_NORMS)
_SYNAPSES = (F.conv1d, F.conv2d, F.conv3d, F.linear)
#: As functions and methods; as modules they are those of torch.nn.modules.activation.
_OTHER_ACTIVATIONS = {
    *("celu", "clamp", "clamp_max", "clamp_min", "clip", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh"),
    *("leaky_relu", "log_softmax", "logsigmoid", "mish", "prelu", "rrelu", "selu", "sigmoid", "silu", "softmax"),
    *("softplus", "softsign", "tanh", "tanhshrink", "threshold"),
}

#: What a node of a traced network is: signals that change from step to step, a current [N, ...] that is held, numbers
#: and tensors that know nothing of the samples, the number N of samples, and what else was reckoned from it.
STEPS, HELD, CONSTANT, SAMPLES, SIZES = "steps", "held", "constant", "samples", "sizes"


class HoldTime(nn.Module):
    """A constant current [N, ...] repeated for T steps, [T*N, ...], where it meets signals that change."""

    def __init__(self, time_steps: int) -> None:
        super().__init__()
        self.time_steps = time_steps

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(self.time_steps, *[1] * (x.dim() - 1))


def convert(
    model: nn.Module,
    time_steps: int = 4,
    tau: float = 2.0,
    v_threshold: float = 1.0,
    surrogate: str = "atan",
    spiking: str = "activations",
    weights: bool = True,
) -> nn.Module:
    """The spiking twin of a CNN: a LIF where it has a ReLU or ReLU6, class currents averaged over time.

    Warns of every other activation, by name: it stays, so the twin can be trained, but no target runs it.

    Args:
        model: any CNN that torch.fx can trace, [N, C, H, W] to [N, K]; it is not changed. Hooks on the model itself do
            not go with it, those on its layers do.
        spiking: "activations", or "every-layer" to put a LIF behind every other convolution, linear layer or
            BatchNorm too (but the last), so that every synapse carries spikes.
        weights: keep the CNN's weights (a start for training), or draw new ones in every layer that can (one with
            ``reset_parameters``).

    Raises:
        SpikeportError: the model cannot be traced, has no ReLU, or, in training mode, does what it does not do in
            evaluation (but for dropout).
    """
    twin = Twin("snn", spiking, time_steps, tau, v_threshold, surrogate)
    graph = trace_module(model)
    names = _Names(graph)
    activations = [node for node in graph.graph.nodes if _is_relu(node, graph)]
    if not activations:
        raise SpikeportError(f"{type(model).__name__} has no ReLU to turn into a neuron; there is nothing to convert")
    for node in [node for node in activations if _in_place(node, graph)]:
        (given,) = node.all_input_nodes
        for user in [user for user in given.users if node < user]:  # reads what the activation made of it
            user.replace_input_with(given, node)
    for node in activations:
        _replace(graph, node, names.add(_name(node), twin.activation(), replaces=True))
    if spiking == "every-layer":
        for node in list(graph.graph.nodes):
            if _ends_linear(node, graph):
                _insert_behind(graph, node, names.add(f"{_name(node)}_lif", twin.between()))
    if not weights:
        for module in graph.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    others = [f"{kind} ({_name(node)})" for node in graph.graph.nodes if (kind := _other_activation(node, graph))]
    if others:
        warnings.warn(
            f"convert: {', '.join(others)}: neither ReLU nor ReLU6, so no neuron takes its place; the twin can be "
            "trained, but no spiking target runs it: give the CNN ReLU there and train it again",
            RuntimeWarning,
            stacklevel=2,
        )
    return fold_time(graph, time_steps, names)


def trace_module(model: nn.Module, leaves: tuple[type[nn.Module], ...] = ()) -> fx.GraphModule:
    """An independent copy of a model as a graph of its layers; modules of type ``leaves`` stay whole."""

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, (LIF, TimeMean, HoldTime, *leaves)) or super().is_leaf_module(m, module_qualified_name)

        def create_args_for_root(self, *given: Any, **options: Any) -> tuple[Any, list[Any]]:
            """Of the model's arguments but the first, those that may be left out are: the trace has their defaults."""
            function, args = super().create_args_for_root(*given, **options)
            for at, argument in enumerate(args):
                if at > 1 and argument.node.args:
                    (args[at],) = argument.node.args
                    self.graph.erase_node(argument.node)
            return function, args

    original, model = model, copied(model)
    try:
        graph = fx.GraphModule(model, Tracer().trace(model))
        if model.training or any(node.target in _DROPOUTS for node in graph.graph.nodes):
            # A copy of its own: the trace left its constants in the first.
            other = Tracer().trace(copied(original).train(not model.training))
            if model.training:
                _require_one_for_both_modes(graph.graph, other)
            _free_dropouts(graph, other)
        return graph
    except SpikeportError:
        raise
    except Exception as error:  # fx lets anything the model's code raises pass
        raise SpikeportError(
            f"{type(model).__name__} cannot be traced ({reason(error)}); its forward must not depend on the data"
        ) from error


def _require_one_for_both_modes(training: fx.Graph, evaluation: fx.Graph) -> None:
    """Raises SpikeportError where a model does in training what would stay in the trace of its evaluation."""
    for node, other in zip_longest(training.nodes, evaluation.nodes):
        if node is None or other is None or _call(node) != _call(other):
            raise SpikeportError(
                f"{(node or other).name} is not the same in training and in evaluation, and a trace has one of the "
                "two; take model.eval(), or a module that knows its mode, such as nn.Dropout, for what differs"
            )


def _call(node: fx.Node) -> tuple[Any, ...]:
    """What a node does; of a dropout that will be a module, all but its mode."""
    if node.target in _DROPOUTS:
        return (node.target, str(node.all_input_nodes), _dropped(node))
    return (node.op, node.target, str(node.args), str(node.kwargs))


def _free_dropouts(graph: fx.GraphModule, other: fx.Graph) -> None:
    """Makes modules of the dropouts that follow the model's mode: a trace keeps the mode it was made in.

    Args:
        other: the same model traced in the other mode.
    """
    names = _Names(graph)
    for node, twin in zip(list(graph.graph.nodes), list(other.nodes), strict=False):
        if node.target in _DROPOUTS and node.target is twin.target and _drops(node) != _drops(twin):
            module = _DROPOUTS[node.target](_dropped(node)).train(graph.training)
            _replace(graph, node, names.add(node.name, module))
    graph.recompile()


def _dropped(node: fx.Node) -> Any:
    return node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)


def _drops(node: fx.Node) -> Any:
    return node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)


def copied(model: nn.Module) -> nn.Module:
    """A copy of the user's model, so that the model itself stays as it is."""
    model = _unwrapped(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise SpikeportError("the model is TorchScript, which has no layers to read; give the module it was made of")
    try:
        return copy.deepcopy(model)
    except Exception as error:  # a module may hold anything
        if "deepcopy protocol" in str(error):
            raise SpikeportError(
                f"{type(model).__name__} holds what an earlier step computed; reset it first: "
                "spikingjelly.activation_based.functional.reset_net(model) or snntorch.utils.reset(model); pruning and "
                "the old weight_norm are made permanent by prune.remove and remove_weight_norm of torch.nn.utils"
            ) from error
        raise SpikeportError(f"{type(model).__name__} cannot be copied ({reason(error)})") from error


def _unwrapped(model: Any) -> nn.Module:
    """What torch.compile or DataParallel has around it taken off."""
    while hasattr(model, "_orig_mod") or isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module
    return model


class _Names:
    """Adds modules to a graph module under names of their own."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.added: set[str] = set()

    def add(self, wanted: str, module: nn.Module, replaces: bool = False) -> str:
        """The name the module got; with ``replaces`` it takes the place of a module of that name, once."""
        taken = {name for name, _ in self.graph.named_modules()}
        if replaces and wanted not in self.added:
            taken.discard(wanted)
        name, number = wanted, 1
        while name in taken:
            number += 1
            name = f"{wanted}_{number}"
        self.added.add(name)
        self.graph.add_submodule(name, module)
        return name


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
    called = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    name = str(called).rstrip("_")
    on_signals = any(value.op != "get_attr" for value in node.all_input_nodes)
    return name if on_signals and name in _OTHER_ACTIVATIONS and node.op.startswith("call_") else None


def _replace(graph: fx.GraphModule, node: fx.Node, name: str) -> None:
    """Calls module ``name`` in the place of ``node``, on its first argument."""
    with graph.graph.inserting_after(node):
        new = graph.graph.call_module(name, (node.all_input_nodes[0],))
    node.replace_all_uses_with(new)
    graph.graph.erase_node(node)


def _in_place(node: fx.Node, graph: fx.GraphModule) -> bool:
    if node.op == "call_module":
        return bool(getattr(graph.get_submodule(str(node.target)), "inplace", False))
    flag = node.kwargs.get("inplace", node.args[-1] if len(node.args) > 1 else False)
    return flag is True or node.target in (torch.relu_, F.relu_, "relu_")


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


def fold_time(graph: fx.GraphModule, time_steps: int, names: "_Names | None" = None) -> fx.GraphModule:
    """Completes a network of LIF layers whose input is held constant.

    The LIF layers that see only the input take a constant current; where such a current meets signals that change,
    it is held; the output is averaged over time.
    """
    names = names or _Names(graph)
    modules = dict(graph.named_modules())
    kinds: dict[fx.Node, str] = {}
    for node in list(graph.graph.nodes):
        inputs = node.all_input_nodes
        if node.op == "placeholder":
            kinds[node] = HELD
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
        return SIZES if axis is None else SAMPLES if axis == 0 else CONSTANT
    if node.target is operator.getitem and kinds.get(node.args[0]) == SIZES:  # type: ignore[arg-type]
        key = node.args[1]
        if isinstance(key, slice):
            return CONSTANT if key.start else SIZES
        return SAMPLES if key == 0 else CONSTANT
    return SIZES if SIZES in given or SAMPLES in given else CONSTANT


def replace_modules(graph: fx.GraphModule, rule: Callable[[str, nn.Module], nn.Module | None]) -> None:
    """Replaces every called module for which ``rule(name, module)`` gives another."""
    for name in dict.fromkeys(str(n.target) for n in graph.graph.nodes if n.op == "call_module"):
        new = rule(name, graph.get_submodule(name))
        if new is not None:
            graph.add_submodule(name, new)
