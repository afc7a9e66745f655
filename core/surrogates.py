"""The Heaviside step with a surrogate derivative, for learning through spikes.

The five surrogates are those of the paper's search; ``u`` is the membrane's distance to the threshold,
``h - v_threshold``, and ``alpha`` the steepness. Each function returns d(spike)/du and is built of
differentiable operations, so that the gradient can itself be differentiated.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spikeport.core.errors import SpikeportError

Derivative = Callable[[Tensor, float], Tensor]


def atan(u: Tensor, alpha: float) -> Tensor:
    return alpha / 2 / (1 + (math.pi / 2 * alpha * u).square())


def sigmoid(u: Tensor, alpha: float) -> Tensor:
    s = torch.sigmoid(alpha * u)
    return alpha * s * (1 - s)


def fast_sigmoid(u: Tensor, alpha: float) -> Tensor:
    return 1 / (1 + alpha * u.abs()).square()


def piecewise_linear(u: Tensor, alpha: float) -> Tensor:
    return alpha * (1 - alpha * u.abs()).clamp(min=0)


def exponential(u: Tensor, alpha: float) -> Tensor:
    return alpha / 2 * torch.exp(-alpha * u.abs())


#: name -> (derivative, default alpha)
SURROGATES: dict[str, tuple[Derivative, float]] = {
    "atan": (atan, 2.0),
    "sigmoid": (sigmoid, 4.0),
    "fast-sigmoid": (fast_sigmoid, 10.0),
    "piecewise-linear": (piecewise_linear, 1.0),
    "exponential": (exponential, 2.0),
}


def surrogate_named(name: str) -> tuple[Derivative, float]:
    """The derivative and its default alpha. Raises SpikeportError for an unknown name."""
    if name not in SURROGATES:
        raise SpikeportError(f"unknown surrogate {name!r}; available: {', '.join(SURROGATES)}")
    return SURROGATES[name]


class _Step(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor, derivative: Derivative, alpha: float) -> Tensor:
        return (u >= 0).to(u.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        u, ctx.derivative, ctx.alpha = inputs
        ctx.save_for_backward(u)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        return grads[0] * ctx.derivative(u, ctx.alpha), None, None


def step(u: Tensor, derivative: Derivative, alpha: float) -> Tensor:
    """1 where u >= 0, else 0, in u's dtype; its derivative is ``derivative(u, alpha)``."""
    result: Tensor = _Step.apply(u, derivative, alpha)
    return result
