"""In-place operations of a traced network, written as those that give a new tensor.

A graph says who reads which tensor, not which tensors share their memory: an in-place operation also changes what
is read under another name. Here every reader is led to the value it reads.
"""

import functools
import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from spikeport.core.errors import SpikeportError

_OPERATORS = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
_DROPOUTS = ("alpha_dropout", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout")
#: By name: functions whose parts do not overlap; and what may give its argument though its schema does not say so.
_PARTS = ("chunk", "split", "tensor_split", "unbind")
_VIEWS = ("H", "T", "bfloat16", "cpu", "cuda", "data", "double", "float", "half", "type", "type_as")


class Proxy(fx.Proxy):
    """Records ``a += b`` as what it is; fx would take it for ``a = a + b``."""

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Held(NamedTuple):
    """The memory a node's value lies in, by the node that first filled it, and the view of it (None: all)."""

    memory: Any
    view: fx.Node | None


def out_of_place(graph: fx.GraphModule) -> None:
    """Rewrites the graph without in-place operations. Its modules must be its own: theirs are switched off.

    Raises:
        SpikeportError: of memory that was written to, another part or view is read afterwards.
    """
    held: dict[fx.Node, _Held] = {}
    inside: dict[Any, Any] = {}  # a part's memory -> that of the whole
    written: dict[Any, tuple[int, fx.Node]] = {}  # memory -> when, and the value since
    at: dict[fx.Node, int] = {}

    def wholes(memory: Any) -> Iterator[Any]:
        while memory in inside:
            memory = inside[memory]
            yield memory

    def changed(value: fx.Node, reader: fx.Node) -> fx.Node | None:
        """What ``value`` has become since it was computed."""
        memory = held[value].memory
        others = [m for m in written if m in set(wholes(memory)) or memory in set(wholes(m))]
        late = [written[m][1] for m in others if written[m][0] > at[value]]
        when, new = written.get(memory, (-1, value))
        if when > at[value] and held[new] != held[value]:
            late.append(new)
        if late:
            raise SpikeportError(
                f"{late[0].name} writes in place to memory of which {reader.name} reads another view, {value.name}; "
                "write it out of place (a = a + b, inplace=False)"
            )
        return new if when > at[value] else None

    for number, node in enumerate(graph.graph.nodes):
        at[node] = number
        for value in node.all_input_nodes:
            new = changed(value, node)
            if new is not None:
                node.replace_input_with(value, new)
        given = node.all_input_nodes[0] if node.all_input_nodes else None
        if given is not None and _without_writing(node, graph):
            held[node] = held[given]
            written[held[node].memory] = (number, node)
        else:
            held[node] = _held(node, given, graph, held, inside)
    graph.recompile()


def _held(
    node: fx.Node, given: fx.Node | None, graph: fx.GraphModule, held: dict[fx.Node, _Held], inside: dict[Any, Any]
) -> _Held:
    name = called(node)
    module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    if given is not None:
        memory = held[given].memory
        drops = name in _DROPOUTS or isinstance(module, nn.modules.dropout._DropoutNd)
        if name == "detach" or isinstance(module, nn.Identity) or (drops and not graph.training):
            return held[given]
        if name == "getitem" and called(given) in _PARTS:
            part = (given, str(node.args[1]))
            inside[part] = memory
            return _Held(part, None if isinstance(node.args[1], int) else node)
        views = _cuts(node) if name == "getitem" else _may_be_view(name)
        if views or drops or isinstance(module, (nn.Flatten, nn.Unflatten)):
            return _Held(memory, node)
    return _Held(node, None)


def _cuts(node: fx.Node) -> bool:
    """Whether what is indexed is cut out, as by whole numbers and slices; lists and constant tensors copy."""
    keys = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    return not any(isinstance(key, list) or (isinstance(key, fx.Node) and key.op == "get_attr") for key in keys)


@functools.cache
def _may_be_view(name: str) -> bool:
    """Whether what a function or method of torch gives may lie in the memory of what it takes."""
    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() else None
    overloads = [getattr(packet, overload) for overload in packet.overloads()] if packet else []
    given = [value.alias_info for op in overloads for value in op._schema.returns]
    return name in _VIEWS or any(info and not info.is_write for info in given)  # written to are arguments named out


def called(node: Any) -> str:
    """Of the function or method that a node calls, or of the attribute that it reads."""
    if not isinstance(node, fx.Node) or node.op not in ("call_function", "call_method"):
        return ""
    if node.target is getattr:
        return str(node.args[1])
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")


def _without_writing(node: fx.Node, graph: fx.GraphModule) -> bool:
    """Whether the node wrote to its first argument; it does not any more."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        writes = bool(getattr(module, "inplace", False)) or node.meta.get("inplace", False)
        if writes:
            for other in graph.graph.nodes:  # of one module that is called again
                if other.op == "call_module" and other.target == node.target:
                    other.meta["inplace"] = True
            vars(module)["inplace"] = False
        return writes
    if node.target in _OPERATORS:
        node.target = _OPERATORS[node.target]
        return True
    name = called(node)
    if name.endswith("_") and not name.endswith("__"):
        owners = (torch.Tensor,) if node.op == "call_method" else (torch, nn.functional)
        owner = next((one for one in owners if hasattr(one, name[:-1])), None)
        if owner is None:
            raise SpikeportError(f"{node.name}: {name} works in place; use what gives a new tensor")
        node.target = name[:-1] if node.op == "call_method" else getattr(owner, name[:-1])
        return True
    if node.op == "call_function" and getattr(node.target, "__module__", "") == "torch.nn.functional":
        return _flag_off(node)
    return False


def _flag_off(node: fx.Node) -> bool:
    """Of a function of torch.nn.functional: whether its ``inplace`` was set; it is not any more."""
    names = getattr(getattr(node.target, "__code__", None), "co_varnames", ())
    if "inplace" not in names:
        return False
    place = names.index("inplace")
    writes = bool(node.args[place] if len(node.args) > place else node.kwargs.get("inplace", False))
    if writes and len(node.args) > place:
        node.update_arg(place, False)
    elif writes:
        node.update_kwarg("inplace", False)
    return writes
