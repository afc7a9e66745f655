"""A network of the user's own, by the name of the function that builds it: ``pkg.module:factory``."""

import sys
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from spikeport.core.errors import SpikeportError, reason
from spikeport.core.runs import load_weights


def build_model(name: str, weights: Path | None = None) -> nn.Module:
    """Calls ``pkg.module:factory`` (found from the working folder too) and loads its weights.

    Args:
        weights: a .safetensors file, or a state dict saved by torch.save; nothing in it is run.

    Raises:
        SpikeportError: no such module or function, a factory that fails or gives no module, weights of another network.
    """
    module_name, _, function = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(import_module(module_name), function)
    except Exception as error:  # the user's code may raise anything
        raise SpikeportError(f"{name}: {error}; expected pkg.module:factory, importable from here") from error
    try:
        model = factory()
    except Exception as error:  # the user's code may raise anything
        raise SpikeportError(f"{name}() failed: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise SpikeportError(f"{name}() gave a {type(model).__name__}, not a torch.nn.Module")
    if weights is not None:
        if weights.suffix == ".safetensors":
            load_weights(model, weights)
        else:
            _load_state_dict(model, weights)
    return model.eval()


def _load_state_dict(model: nn.Module, path: Path) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SpikeportError(f"{path}: no such file") from None
    except Exception as error:  # torch.load raises many kinds
        raise SpikeportError(
            f"{path}: not a file of weights ({reason(error)}); write model.state_dict() with torch.save or safetensors"
        ) from None
    try:
        model.load_state_dict(state)
    except Exception as error:  # as does load_state_dict
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise SpikeportError(f"{path}: not weights of {type(model).__name__} ({' '.join(lines[:2])})") from None
