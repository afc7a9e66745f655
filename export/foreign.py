"""Models built of SpikingJelly or snnTorch, taken as they are: their layers and neurons become ours, weights kept.

What our neuron cannot do exactly (soft reset, learnt or per-channel constants, other neurons) is refused by name.
"""

import copy
import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from spikeport.core.conversion import fold_time
from spikeport.core.errors import SpikeportError, reason
from spikeport.core.functional import whole_steps
from spikeport.core.neurons import LIF
from spikeport.core.tracing import copied, replace_modules, trace_module
from spikeport.export.logs import quiet

#: SpikingJelly's layers that are torch's with a time axis.
_SAME = (
    "Conv2d", "Linear", "BatchNorm1d", "BatchNorm2d", "MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d", "Flatten",
)  # fmt: skip
#: Its layers that do nothing to a network that is deployed, not trained.
_NOTHING = ("Dropout", "Dropout2d")
#: Its containers, which run what they hold one after the other, step by step.
_CONTAINERS = ("SeqToANNContainer", "MultiStepContainer", "StepModeContainer")

#: Surrogates that are ours, steepness for steepness: SpikingJelly's classes, snnTorch's functions -> our names.
_SURROGATES = {
    "ATan": "atan",
    "Sigmoid": "sigmoid",
    "PiecewiseQuadratic": "piecewise-linear",
    "PiecewiseExp": "exponential",
    "atan": "atan",
    "sigmoid": "sigmoid",
    "fast_sigmoid": "fast-sigmoid",
}


def is_foreign(model: nn.Module) -> bool:
    """Whether any module of the model belongs to SpikingJelly or snnTorch."""
    return any(owner(module) is not None for module in model.modules())


def owner(module: nn.Module) -> str | None:
    """The package whose layer or neuron it is, or is derived from where it is a neuron.

    The ready-made models of SpikingJelly are nobody's: they are built of its layers, as the user's are.
    """
    for kind in type(module).__mro__:
        package, _, rest = kind.__module__.partition(".")
        if package in ("spikingjelly", "snntorch") and (kind is type(module) or "neuron" in rest):
            return package if ".model." not in rest else None
    return None


def _is_neuron(module: nn.Module) -> bool:
    return any("neuron" in kind.__module__ for kind in type(module).__mro__)


def _rule(module: nn.Module) -> Callable[[str, Any, int], LIF] | None:
    """How a neuron becomes ours; None where it has no rule, as one derived from it, which may do something else."""
    package = type(module).__module__.partition(".")[0]
    return NEURONS.get((package, type(module).__name__))


def adopted(model: nn.Module, shape: Sequence[int], time_steps: int | None) -> nn.Module:
    """A model of ours itself; one of another framework in our layers, for samples of ``shape``.

    Raises:
        SpikeportError: see ``adopt``; the number of steps is not said, or is not that of the samples.
    """
    if not is_foreign(model):
        return model
    if time_steps is None:
        raise SpikeportError(
            f"{type(model).__name__} is a model of another framework; say over how many time steps (time_steps=T, or "
            "--time-steps T)"
        )
    changes = is_sequence(shape)
    if changes and shape[0] != time_steps:
        raise SpikeportError(
            f"samples of shape {list(shape)}: [T, N, ...] with {shape[0]} steps, asked for {time_steps} (images of one "
            "channel are [N, 1, H, W])"
        )
    return adopt(model, time_steps, not changes)


def is_sequence(shape: Sequence[int]) -> bool:
    """Whether samples of this shape change from step to step: [T, N, F] or [T, N, C, H, W]."""
    return len(shape) in (3, 5)


def adopt(model: nn.Module, time_steps: int, constant_input: bool = True) -> nn.Module:
    """The same network in our layers, over ``time_steps`` steps.

    Args:
        model: one step of time, [N, ...] to [N, K] (SpikingJelly: step mode "s" or "m"; snnTorch: neurons with
            ``init_hidden=True``); it is not changed.

    Returns:
        A module that takes [N, ...], or, without ``constant_input``, [T*N, ...], and gives the mean output over time,
        [N, K], in evaluation mode.

    Raises:
        SpikeportError: a layer or neuron without exact form, by name and remedy.
    """
    time_steps = whole_steps(time_steps)
    model = _one_step(model)
    if owner(model) is not None:
        raise SpikeportError(f"{type(model).__name__}: a layer alone is no network; put it into nn.Sequential")
    leaves = tuple({type(m) for m in model.modules() if owner(m) is not None})
    graph = trace_module(model, leaves)
    _refuse_shared(graph)
    pairs = {name for name, m in graph.named_modules() if owner(m) == "snntorch" and getattr(m, "output", False)}
    replace_modules(graph, lambda name, module: _ours(name, module, time_steps))
    _drop_membranes(graph, pairs)
    return fold_time(graph, time_steps, constant_input=constant_input).eval()


def share_state(ours: nn.Module, theirs: nn.Module) -> None:
    """Gives ``ours``, which ``theirs`` was adopted as, its parameters and buffers: training one trains both."""
    originals = dict(theirs.named_modules(remove_duplicate=False))
    for name, module in ours.named_modules(remove_duplicate=False):
        for kind in ("_parameters", "_buffers") if name in originals else ():
            mine, own = getattr(module, kind), getattr(originals[name], kind)
            if mine.keys() == own.keys():
                setattr(module, kind, own)  # the dictionary: what replaces a tensor in it is shared too
            mine.update((key, own[key]) for key in mine.keys() & own.keys())


def _one_step(model: nn.Module) -> nn.Module:
    """A copy of the model in which SpikingJelly's layers take a step at a time, and its containers are plain ones."""
    model = copied(model)
    for name, module in list(model.named_modules()):
        if owner(module) == "spikingjelly" and type(module).__name__ in _CONTAINERS:
            plain = nn.Sequential(OrderedDict(module.named_children()))
            if not name:
                return plain
            model.set_submodule(name, plain)
        elif "s" in _step_modes(module):
            module.step_mode = "s"
    return model


def _step_modes(module: Any) -> tuple[str, ...]:
    """SpikingJelly's: "s", one step at a time, "m", many; none where it is no layer of SpikingJelly."""
    return tuple(module.supported_step_mode()) if hasattr(module, "supported_step_mode") else ()


def _many_steps(module: Any) -> bool:
    """Whether what it takes and gives has a time axis."""
    return getattr(module, "step_mode", "s") == "m" or _step_modes(module) == ("m",)


def _refuse_shared(graph: fx.GraphModule) -> None:
    """A neuron that is called twice in a step goes on from its own membrane, which ours does not."""
    used: set[str] = set()
    for name in (str(node.target) for node in graph.graph.nodes if node.op == "call_module"):
        module = graph.get_submodule(name)
        if _rule(module) is not None and name in used:
            raise SpikeportError(
                f"{name} ({type(module).__name__}): is used twice in one step and shares its membrane; give the "
                "network of one time step, without its loop over time, and with a neuron of its own at each place"
            )
        used.add(name)


def _ours(name: str, module: nn.Module, time_steps: int) -> nn.Module | None:
    package = owner(module)
    if package is None:
        return None
    kind = type(module).__name__
    rule = _rule(module)
    if rule is not None:
        return rule(name, module, time_steps)
    if package == "spikingjelly" and kind in _SAME:
        return _plain(module)
    if package == "spikingjelly" and kind in _NOTHING:
        return nn.Identity()
    if package == "spikingjelly" and kind == "VotingLayer":
        return nn.AvgPool1d(int(getattr(module, "voting_size", 0)))
    known = [k for p, k in NEURONS if p == package]
    if not _is_neuron(module):
        known = [*_SAME, *_NOTHING, *_CONTAINERS, "VotingLayer"]
    place = type(module).__module__
    derived = "" if place.startswith(package) else f", {package}'s own; this one is defined in {place}"
    raise SpikeportError(f"{name} ({package} {kind}): has no exact form here; known: {', '.join(known)}{derived}")


def _plain(module: nn.Module) -> nn.Module:
    """The torch layer under a SpikingJelly layer: same weights, no step mode."""
    base: Any = next(t for t in type(module).__mro__ if t.__module__.startswith("torch.nn"))
    plain: nn.Module = base.__new__(base)
    plain.__dict__.update(module.__dict__)
    return plain


def _spikingjelly(name: str, module: Any, time_steps: int) -> LIF:
    if module.v_reset is None:
        raise SpikeportError(
            f"{name} ({type(module).__name__}): soft reset has no exact form on Loihi; train with v_reset=0"
        )
    kind = type(module).__name__
    if not getattr(module.surrogate_function, "spiking", True):
        raise SpikeportError(
            f"{name} ({kind}): its surrogate_function has spiking=False, so what it gives are no spikes; set it to True"
        )
    decay_input = True
    if kind == "IFNode":
        tau, decay_input = math.inf, False
    elif kind == "ParametricLIFNode":
        tau, decay_input = 1 / float(torch.sigmoid(module.w.detach().double())), module.decay_input
    else:
        tau, decay_input = float(module.tau), module.decay_input
    return LIF(
        tau=tau,
        decay_input=decay_input,
        v_threshold=float(module.v_threshold),
        v_reset=float(module.v_reset),
        time_steps=time_steps,
        detach_reset=module.detach_reset,
        **_surrogate(module.surrogate_function),
    )


def _snntorch(name: str, module: Any, time_steps: int) -> LIF:
    where = f"{name} (Leaky)"
    if module.reset_mechanism != "zero":
        raise SpikeportError(
            f"{where}: reset_mechanism {module.reset_mechanism!r} has no exact form on Loihi; train with "
            'reset_mechanism="zero"'
        )
    if not module.init_hidden:
        raise SpikeportError(
            f"{where}: keeps its state outside; build it with init_hidden=True and give the network of one time step"
        )
    if module.inhibition or module.state_quant or float(module.graded_spikes_factor) != 1:
        raise SpikeportError(f"{where}: inhibition, state_quant and graded spikes have no exact form; leave them out")
    beta, threshold = _scalar(where, "beta", module.beta.clamp(0, 1)), _scalar(where, "threshold", module.threshold)
    return LIF(
        tau=math.inf if beta == 1 else 1 / (1 - beta),
        decay_input=False,
        # snnTorch fires above its threshold, we fire at it.
        v_threshold=float(np.nextafter(np.float32(threshold), np.float32(np.inf))),
        time_steps=time_steps,
        detach_reset=True,
        **_surrogate(module.spike_grad),
    )


def _surrogate(function: Any) -> dict[str, Any]:
    """Arguments of ``LIF`` for a surrogate; its own where it has no such one."""
    name = ""
    steepness: Iterable[Any] = ()
    if type(function).__module__ == "spikingjelly.activation_based.surrogate":
        name, steepness = type(function).__name__, [getattr(function, "alpha", None)]
    elif getattr(function, "__module__", None) == "snntorch.surrogate":  # functions, made by functions that they are in
        name, steepness = function.__qualname__.partition(".")[0], inspect.getclosurevars(function).nonlocals.values()
    return {"surrogate": _SURROGATES[name], "alpha": float(*steepness)} if name in _SURROGATES else {}


def _scalar(where: str, name: str, value: torch.Tensor) -> float:
    values = torch.unique(value.detach().double())
    if len(values) != 1:
        raise SpikeportError(f"{where}: {name} differs between neurons; only one value per layer has a form here")
    return float(values[0])


#: (package, class) -> how it becomes ours
NEURONS: dict[tuple[str, str], Callable[[str, Any, int], LIF]] = {
    ("spikingjelly", "LIFNode"): _spikingjelly,
    ("spikingjelly", "IFNode"): _spikingjelly,
    ("spikingjelly", "ParametricLIFNode"): _spikingjelly,
    ("snntorch", "Leaky"): _snntorch,
}


def _drop_membranes(graph: fx.GraphModule, pairs: set[str]) -> None:
    """snnTorch's Leaky may return (spikes, membrane), those named in ``pairs`` do; ours returns spikes."""
    for node in list(graph.graph.nodes):
        source = node.args[0] if node.args else None
        if node.op != "call_function" or getattr(node.target, "__name__", "") != "getitem":
            continue
        if not isinstance(source, fx.Node) or source.op != "call_module" or str(source.target) not in pairs:
            continue
        if node.args[1] == 0:
            node.replace_all_uses_with(source)
        elif node.users:
            raise SpikeportError(f"{source.target}: its membrane is used; only its spikes have a form here")
        graph.graph.erase_node(node)


def _reset(model: nn.Module) -> None:
    """Every neuron back to rest. snnTorch's ``utils.reset`` resets what its user built, but no copy of it."""
    if any(owner(m) == "spikingjelly" for m in model.modules()):
        from spikingjelly.activation_based import functional

        functional.reset_net(model)
    neurons: list[Any] = [m for m in model.modules() if owner(m) == "snntorch" and hasattr(m, "reset_mem")]
    for neuron in neurons:
        neuron.reset_mem()


def owner_forward(model: nn.Module, x: np.ndarray, time_steps: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The model as its own framework runs it, in float64: spikes per neuron layer [T, N, ...], outputs [T, N, K].

    Args:
        x: [N, ...], an input that is held, or [T, N, ...].
    """
    model = copy.deepcopy(model).double().eval()
    given = torch.from_numpy(np.asarray(x, np.float64))
    moving = given if is_sequence(given.shape) else given.expand(time_steps, *given.shape)
    many = any(map(_many_steps, model.modules()))
    _reset(model)
    seen: dict[str, list[torch.Tensor]] = {}

    def keep(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, y: Any) -> Any:
            # snnTorch's spikes are float32 whatever its membrane is.
            y = tuple(part.double() for part in y) if isinstance(y, tuple) else y.double()
            spikes = y[0] if isinstance(y, tuple) else y
            # A copy: what follows may add to it in place.
            seen.setdefault(name, []).append(spikes.clone() if _many_steps(module) else spikes[None].clone())
            return y

        return hook

    for name, module in model.named_modules():
        if _rule(module) is not None:
            module.register_forward_hook(keep(name))
    outputs = []
    with torch.no_grad(), quiet("torch._library.triton"):
        for current in [moving] if many else moving:
            try:
                y = model(current)
            except Exception as error:  # the user's code may raise anything
                raise SpikeportError(f"{type(model).__name__} fails in its own framework: {reason(error)}") from error
            outputs.append(y[0] if isinstance(y, tuple) else y)
    join = torch.cat if many else torch.stack
    return {name: torch.cat(steps).numpy() for name, steps in seen.items()}, join(outputs).numpy()
