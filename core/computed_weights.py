"""Weights that a layer computes at every call: torch's parametrizations, its older norms, and pruning."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from spikeport.core.errors import SpikeportError, reason


def hooks(module: nn.Module) -> dict[str, Any]:
    """Name of a weight -> the hook that sets it before every call of the module."""
    kinds = (WeightNorm, SpectralNorm, BasePruningMethod)
    found = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, kinds)]
    return {hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name: hook for hook in found}


def compute(module: nn.Module) -> None:
    """Sets the weights of ``hooks`` as a call of the module would."""
    for hook in hooks(module).values():
        hook(module, ())


def parameters(module: nn.Module) -> list[Tensor]:
    """A module's own parameters, with the weights it computes in the place of what it computes them from."""
    computed = [*hooks(module), *getattr(module, "parametrizations", ())]
    parts = {f"{name}_{part}" for name in computed for part in ("g", "v", "orig")}
    own = [value for name, value in module.named_parameters(recurse=False) if name not in {*parts, *_masked(module)}]
    return own + [getattr(module, name) for name in computed if name not in parts]


def _masked(module: nn.Module) -> list[str]:
    """What pruning keeps of the parameters it masks."""
    return [f"{name}_orig" for name, hook in hooks(module).items() if isinstance(hook, BasePruningMethod)]


def make_plain(model: nn.Module) -> nn.Module:
    """Gives every weight that is computed the value it has, in place."""
    for module in list(model.modules()):
        _untie(module)
        if parametrize.is_parametrized(module):
            kind = type(module)  # which copies of the module share, and from which the weight is about to be removed
            module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name)
        compute(module)
        found = hooks(module).items()
        for name, hook in found:  # first: what is masked may be a part of another weight
            if isinstance(hook, BasePruningMethod):
                nn.utils.prune.remove(module, name)
        for name, hook in found:
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, name)
    return model


def _untie(module: nn.Module) -> None:
    """Gives a module copies of what its weights are computed from: torch writes to it, and others may share it."""
    stores = [(module._parameters, name) for name in _masked(module)]
    for parametrizations in getattr(module, "parametrizations", {}).values():
        for store in (parametrizations._parameters, parametrizations._buffers):
            stores += [(store, name) for name in store if name.startswith("original")]
    for store, name in stores:
        value = store[name]
        if value is not None:
            copy = value.detach().clone()
            store[name] = nn.Parameter(copy, value.requires_grad) if isinstance(value, nn.Parameter) else copy


def draw_anew(module: nn.Module, where: str) -> None:
    """``reset_parameters``, where a module has it.

    Raises:
        SpikeportError: what its weights are computed from does not follow from new ones.
    """
    if not callable(getattr(module, "reset_parameters", None)):
        return
    try:
        if hooks(module):
            raise SpikeportError("remove_weight_norm, remove_spectral_norm or prune.remove make them permanent")
        with torch.no_grad(), parametrize.cached():
            module.reset_parameters()  # type: ignore[operator]
            new = {name: getattr(module, name).clone() for name in getattr(module, "parametrizations", ())}
        for name, value in new.items():
            setattr(module, name, value)  # solved for what it is computed from
    except Exception as error:  # a parametrization may raise anything
        raise SpikeportError(
            f"{where} ({type(module).__name__}): its weights are computed from others, for which no new ones can be "
            f"drawn ({reason(error)})"
        ) from error
