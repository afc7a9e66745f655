"""A model as a graph of its layers, by torch.fx, and what changes such graphs."""

import copy
import re
import traceback
from collections.abc import Callable, Collection
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import type_before_parametrizations

from spikeport.core.computed_weights import hooks
from spikeport.core.errors import SpikeportError, reason
from spikeport.core.in_place import Proxy, out_of_place
from spikeport.core.neurons import LIF, HoldTime, TimeMean

_DROPOUTS: dict[Any, type[nn.Module]] = {
    F.alpha_dropout: nn.AlphaDropout,
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}


def trace_module(model: nn.Module, leaves: tuple[type[nn.Module], ...] = ()) -> fx.GraphModule:
    """An independent copy of a model as a graph of its layers, none in place; modules of type ``leaves`` stay whole."""

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            kind = type_before_parametrizations(m)  # torch makes one of its own of each that it parametrizes
            torchs = kind.__module__.startswith(("torch.nn", "torch.ao.nn")) and not isinstance(m, nn.Sequential)
            return torchs or isinstance(m, (LIF, TimeMean, HoldTime, *leaves))

        def proxy(self, node: fx.Node) -> fx.Proxy:
            return Proxy(node, self)

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
        graph = fx.GraphModule(model, Tracer().trace(model), type(model).__name__)
        if model.training or any(node.target in _DROPOUTS for node in graph.graph.nodes):
            # A copy of its own: the trace left its constants in the first.
            other = Tracer().trace(copied(original).train(not model.training))
            if model.training:
                _require_one_for_both_modes(graph.graph, other)
            _free_dropouts(graph, other, {name for name, _ in original.named_modules()})
        out_of_place(graph)
        return graph
    except SpikeportError:
        raise
    except Exception as error:  # fx lets anything the model's code raises pass
        remedy = "run it once in PyTorch, where it may fail too"
        if re.search("Proxy|symbolic", str(error)):
            remedy = "its forward must do the same for every input: no if, no loop and no check that asks a tensor"
        raise SpikeportError(
            f"{type(model).__name__} cannot be traced ({reason(error)}{_at(error)}); {remedy}"
        ) from error


def _at(error: Exception) -> str:
    """The innermost line of the user's code that an error came from."""
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)]
    if not frames:
        return ""
    code = f": `{frames[-1].line}`" if frames[-1].line else ""
    return f", at {Path(frames[-1].filename).name}:{frames[-1].lineno}{code}"


def inside(node: fx.Node) -> str:
    """How an error about a call begins: with the module whose forward it is in, unless that is the model's own."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return f"in {stack[-1][0]} ({stack[-1][1].__name__}), " if stack else ""


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


def _free_dropouts(graph: fx.GraphModule, other: fx.Graph, taken: set[str]) -> None:
    """Makes modules of the dropouts that follow the model's mode: a trace keeps the mode it was made in.

    Args:
        other: the same model traced in the other mode.
        taken: names of the model's own modules, of which the trace has those alone that it calls.
    """
    names = Names(graph, taken)
    for node, twin in zip(list(graph.graph.nodes), list(other.nodes), strict=False):
        if node.target in _DROPOUTS and node.target is twin.target and _drops(node) != _drops(twin):
            module = _DROPOUTS[node.target](_dropped(node)).train(graph.training)
            replace_call(graph, node, names.add(node.name, module))
    graph.recompile()


def _dropped(node: fx.Node) -> Any:
    return node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)


def _drops(node: fx.Node) -> Any:
    return node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)


def copied(model: nn.Module) -> nn.Module:
    """A copy of the user's model, so that the model itself stays as it is."""
    model = unwrapped(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise SpikeportError("the model is TorchScript, which has no layers to read; give the module it was made of")
    # torch does not copy what was computed with gradients; weights that a hook computes are computed again anyway.
    computed = (vars(module).get(name) for module in model.modules() for name in hooks(module))
    memo = {id(weight): weight.detach().clone() for weight in computed if weight is not None}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # a module may hold anything
        if "deepcopy protocol" in str(error):
            raise SpikeportError(
                f"{type(model).__name__} holds what an earlier step computed; reset it first: "
                "spikingjelly.activation_based.functional.reset_net(model) or snntorch.utils.reset(model)"
            ) from error
        raise SpikeportError(f"{type(model).__name__} cannot be copied ({reason(error)})") from error


def unwrapped(model: Any) -> nn.Module:
    """What torch.compile or DataParallel has around it taken off."""
    while hasattr(model, "_orig_mod") or isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module
    return model


class Names:
    """Adds modules to a graph module under names of their own."""

    def __init__(self, graph: fx.GraphModule, others: Collection[str] = ()) -> None:
        self.graph = graph
        self.others = others
        self.added: set[str] = set()

    def add(self, wanted: str, module: nn.Module, replaces: bool = False) -> str:
        """The name the module got; with ``replaces`` it takes the place of a module of that name, once."""
        taken = {name for name, _ in self.graph.named_modules()} | set(self.others)
        if replaces and wanted not in self.added:
            taken.discard(wanted)
        name, number = wanted, 1
        while name in taken:
            number += 1
            name = f"{wanted}_{number}"
        self.added.add(name)
        self.graph.add_submodule(name, module)
        return name


def replace_call(graph: fx.GraphModule, node: fx.Node, name: str) -> None:
    """Calls module ``name`` in the place of ``node``, on its first argument."""
    with graph.graph.inserting_after(node):
        new = graph.graph.call_module(name, (node.all_input_nodes[0],))
    node.replace_all_uses_with(new)
    graph.graph.erase_node(node)


def replace_modules(graph: fx.GraphModule, rule: Callable[[str, nn.Module], nn.Module | None]) -> None:
    """Replaces every called module for which ``rule(name, module)`` gives another."""
    for name in dict.fromkeys(str(n.target) for n in graph.graph.nodes if n.op == "call_module"):
        new = rule(name, graph.get_submodule(name))
        if new is not None:
            graph.add_submodule(name, new)
