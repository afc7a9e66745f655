"""Where numbers are not finite: the first tensor, layer or gradient."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spikeport.core.hooks import watched


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity."""
    return next((n for n, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())), None)


def first_output_not_finite(model: nn.Module, network: nn.Module, x: Tensor) -> str | None:
    """The first layer of ``model``, in the order of execution, that answers ``x`` with NaN or infinity."""
    found: list[str] = []

    def look(name: str, output: Any) -> None:
        if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
            found.append(name)

    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    with watched(leaves, look), torch.no_grad():
        network(x)
    return found[0] if found else None


def first_gradient_not_finite(model: nn.Module) -> str | None:
    """The last parameter of ``model`` whose gradient is not finite: going backwards, it was the first."""
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    return bad[-1] if bad else None
