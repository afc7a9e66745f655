"""Second derivatives in closed form, where torch's own take most of a step on a CPU.

The gradient-aware loss differentiates a gradient. torch writes the second derivative of BatchNorm as two dozen passes
over memory, takes that of a convolution from convolutions of permuted copies, and fills maps with zeros for those of
max-pooling and concatenation.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_aten = torch.ops.aten


class SecondDerivatives(TorchFunctionMode):
    """While it is entered, what a model is made of has cheap second derivatives on a CPU.

    That is BatchNorm (in training), Conv2d (outside autocast), MaxPool2d and torch.cat. Values and derivatives are
    torch's but for rounding; a third derivative is refused.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        ours = OURS.get(func)
        if ours is None or (func is torch.conv2d and torch.is_autocast_enabled("cpu")):
            return func(*args, **kwargs)
        first = args[0][0] if func is torch.cat else args[0]
        return (ours if first.device.type == "cpu" else func)(*args, **kwargs)


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training or weight is None or bias is None:
        return functional.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    y: Tensor = _BatchNorm.apply(x, weight, bias, running_mean, running_var, momentum, eps)
    return y


class _BatchNorm(Function):
    """y = weight xhat + bias, xhat = (x - mean) s, s = 1 / sqrt(variance + eps)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
        running_mean, running_var, momentum, ctx.eps = rest
        y, mean, s = _aten.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, ctx.eps)
        ctx.save_for_backward(x, weight, mean, s)
        result: Tensor = y
        return result

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        return *_BatchNormGradient.apply(grad_y, *ctx.saved_tensors, ctx.eps), None, None, None, None


def _gradient(grad_y: Tensor, x: Tensor, weight: Tensor, mean: Tensor, s: Tensor, eps: float) -> Any:
    return _aten.native_batch_norm_backward(grad_y, x, weight, None, None, mean, s, True, eps, [True] * 3)


class _BatchNormGradient(Function):
    """With sums over the n elements of a channel::

        grad_bias = sum grad_y;   grad_weight = sum grad_y xhat
        grad_x = weight s (grad_y - grad_bias / n - xhat grad_weight / n)

    grad_x is linear in grad_y and symmetric: its gradient by grad_y is the same map.
    """

    @staticmethod
    def forward(ctx: Any, grad_y: Tensor, x: Tensor, weight: Tensor, mean: Tensor, s: Tensor, eps: float) -> Any:
        grad_x, grad_weight, grad_bias = _gradient(grad_y, x, weight, mean, s, eps)
        ctx.save_for_backward(grad_y, x, weight, mean, s, grad_x, grad_weight, grad_bias)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return grad_x, grad_weight, grad_bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_x: Tensor | None, to_weight: Tensor | None, to_bias: Tensor | None) -> Any:
        grad_y, x, weight, mean, s, grad_x, grad_weight, grad_bias = ctx.saved_tensors
        each = (1, -1, *[1] * (x.dim() - 2))  # a value per channel beside x
        n = x.numel() / weight.numel()
        by_grad_y = by_x = by_weight = None
        if to_x is not None:
            by_grad_y, moment, total = _gradient(to_x, x, weight, mean, s, ctx.eps)
            product = _product(to_x, grad_y, s)
            by_weight = s * (product - (total * grad_bias + moment * grad_weight) / n)
            by_x = (x - mean.view(each)).mul_((-s * s * weight * by_weight / n).view(each))
            by_x.addcmul_(grad_x, (-s * moment / n).view(each))
            by_x = by_x.addcmul_(by_grad_y, (-s * grad_weight / n).view(each)).to(x.dtype)
        if to_weight is not None:
            # Of sum grad_y xhat: xhat by grad_y; grad_y through xhat by x.
            factor = (to_weight * s).view(each)
            by_grad_y = _sum(by_grad_y, ((x - mean.view(each)) * factor).to(x.dtype))
            unscaled, _, _ = _gradient(grad_y, x, torch.ones_like(weight), mean, s, ctx.eps)
            by_x = _sum(by_x, (unscaled * to_weight.view(each)).to(x.dtype))
        if to_bias is not None:
            by_grad_y = _sum(by_grad_y, to_bias.view(each).expand_as(x))
        return by_grad_y, by_x, by_weight, None, None, None


def _product(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    """Sum of a * b over each channel, in one pass: as a BatchNorm's gradient by its weight, for mean 0 and s 1."""
    mean, s = torch.zeros_like(like), torch.ones_like(like)
    _, product, _ = _aten.native_batch_norm_backward(a, b, None, None, None, mean, s, True, 0.0, [False, True, False])
    result: Tensor = product
    return result


def _sum(a: Tensor | None, b: Tensor) -> Tensor:
    """a + b, into a."""
    return b if a is None else a.add_(b)


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str) or x.dim() != 4:
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    y: Tensor = _Convolution.apply(x, weight, bias, (*_pairs(stride, padding, dilation), False, [0, 0], groups))
    return y


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rest: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.rest = rest
        y: Tensor = _aten.convolution(x, weight, bias, *rest)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        return *_ConvolutionGradient.apply(grad_y, *ctx.saved_tensors, ctx.rest, ctx.needs_input_grad[:3]), None


def _convolution_gradient(grad_y: Tensor, x: Tensor, weight: Tensor, rest: Any, wanted: Any) -> Any:
    return _aten.convolution_backward(grad_y, x, weight, [len(weight)], *rest, list(wanted))


class _ConvolutionGradient(Function):
    """A convolution is linear in x and in its weight, so its gradients are linear in grad_y, x and weight."""

    @staticmethod
    def forward(ctx: Any, grad_y: Tensor, x: Tensor, weight: Tensor, rest: Any, wanted: Any) -> Any:
        ctx.save_for_backward(grad_y, x, weight)
        ctx.rest = rest
        ctx.set_materialize_grads(False)
        return _convolution_gradient(grad_y, x, weight, rest, wanted)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_x: Tensor | None, to_weight: Tensor | None, to_bias: Tensor | None) -> Any:
        grad_y, x, weight = ctx.saved_tensors
        by_grad_y = by_x = by_weight = None
        if to_x is not None:
            by_grad_y = _aten.convolution(to_x, weight, None, *ctx.rest)
            _, by_weight, _ = _convolution_gradient(grad_y, to_x, weight, ctx.rest, [False, True, False])
        if to_weight is not None:
            by_grad_y = _sum(by_grad_y, _aten.convolution(x, to_weight, None, *ctx.rest))
            if ctx.needs_input_grad[1]:
                by_x, _, _ = _convolution_gradient(grad_y, x, to_weight, ctx.rest, [True, False, False])
        if to_bias is not None:
            by_grad_y = _sum(by_grad_y, to_bias.view(1, -1, 1, 1).expand_as(grad_y))
        return by_grad_y, by_x, by_weight, None, None


def _max_pool(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    stride = kernel_size if stride is None else stride
    if return_indices or x.dim() != 4:
        return functional.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode, return_indices)  # type: ignore[call-overload]
    return _MaxPool.apply(x, (*_pairs(kernel_size, stride, padding, dilation), ceil_mode))


def _pairs(*numbers: Any) -> tuple[list[int], ...]:
    return tuple([n, n] if isinstance(n, int) else list(n) for n in numbers)


class _MaxPool(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, geometry: Any) -> Tensor:
        ctx.geometry = geometry
        y, indices = _aten.max_pool2d_with_indices(x, *geometry)
        ctx.save_for_backward(x, indices)
        result: Tensor = y
        return result

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        return _MaxPoolGradient.apply(grad_y, *ctx.saved_tensors, ctx.geometry), None


class _MaxPoolGradient(Function):
    """Sends every gradient to the largest of its window: linear, so that only grad_y has a gradient."""

    @staticmethod
    def forward(ctx: Any, grad_y: Tensor, x: Tensor, indices: Tensor, geometry: Any) -> Tensor:
        ctx.save_for_backward(indices)
        grad_x: Tensor = _aten.max_pool2d_with_indices_backward(grad_y, x, *geometry, indices)
        return grad_x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_x: Tensor) -> Any:
        (indices,) = ctx.saved_tensors
        return to_x.flatten(2).gather(2, indices.flatten(2)).view_as(indices), None, None, None


def _concatenation(tensors: Any, dim: int = 0) -> Tensor:
    y: Tensor = _Concatenation.apply(dim, *tensors)
    return y


class _Concatenation(Function):
    """Its gradient is one split, whose gradient is a concatenation; torch's own is a slice for every part.

    The parts are copied, or else everyone who reads one would copy it.
    """

    @staticmethod
    def forward(ctx: Any, dim: int, *tensors: Tensor) -> Tensor:
        ctx.dim, ctx.sizes = dim, [tensor.shape[dim] for tensor in tensors]
        return torch.cat(tensors, dim)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        return None, *(part.clone() for part in grad_y.split(ctx.sizes, ctx.dim))


#: torch's function -> the same with cheap second derivatives.
OURS: dict[Any, Callable[..., Any]] = {
    torch.conv2d: _convolution,
    torch.cat: _concatenation,
    functional.batch_norm: _batch_norm,
    functional.max_pool2d: _max_pool,
}
