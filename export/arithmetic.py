"""Sums, and constants that a forward pass scales maps by, adds to them, or convolves them with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeport.core.errors import SpikeportError
from spikeport.core.geometry import conv_padding, pair
from spikeport.export import expressions as ex
from spikeport.export.signals import Signal


def _add(where: str, input: Any, other: Any, alpha: float = 1) -> Signal:
    if alpha != 1:
        other = _mul(where, other, alpha) if isinstance(other, Signal) else other * alpha
    if isinstance(input, Signal) and isinstance(other, Signal):
        return ex.add(input, other, where)
    x, shift = (input, other) if isinstance(input, Signal) else (other, input)
    return _scaled(where, x, 1, shift)


def _sub(where: str, input: Any, other: Any, alpha: float = 1) -> Signal:
    return _add(where, input, other, -alpha)


def _mul(where: str, input: Any, other: Any) -> Signal:
    x, factor = (input, other) if isinstance(input, Signal) else (other, input)
    return _scaled(where, x, factor, 0)


def _div(where: str, input: Any, other: Any) -> Signal:
    if isinstance(other, Signal):
        raise SpikeportError(f"{where}: divides by a tensor of the network; only constants have an exact form")
    return _scaled(where, input, 1 / _constant(other), 0)


def _neg(where: str, input: Any) -> Signal:
    return _scaled(where, input, -1, 0)


def _scaled(where: str, x: Any, factor: Any, shift: Any) -> Signal:
    """``factor * x + shift`` of constants: numbers, or tensors [C, 1, 1] ([F] of features)."""
    if not isinstance(x, Signal):
        raise TypeError
    if isinstance(factor, Signal):
        raise SpikeportError(
            f"{where}: multiplies two tensors of the network; only constants have an exact form: add them, or "
            "concatenate (a residual by AND or IAND: by ADD)"
        )
    return ex.scale_shift(x, _of_each_channel(where, factor, x), _of_each_channel(where, shift, x), where)


def _constant(value: Any) -> Tensor:
    """In float64."""
    return ex.exact(torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float64))


def conv2d(
    where: str, x: Signal, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Signal:  # fmt: skip
    kernel, strides, dilations = pair(weight.shape[2:]), pair(stride), pair(dilation)
    before, behind = conv_padding(padding, kernel, dilations)
    if behind != before:
        x, before = ex.padded(x, before, behind, where), (0, 0)
    weight = ex.exact(weight)
    offset = weight.new_zeros(len(weight)) if bias is None else ex.exact(bias)
    return ex.convolve(x, weight, offset, strides, before, dilations, groups, where)


def linear(where: str, x: Signal, weight: Tensor, bias: Tensor | None = None) -> Signal:
    if not x.flat:
        raise SpikeportError(f"{where}: a linear layer on maps; flatten them first")
    weight = ex.exact(weight)
    return ex.multiply(x, weight, weight.new_zeros(len(weight)) if bias is None else ex.exact(bias), where)


def _of_each_channel(where: str, value: Any, x: Signal) -> Tensor:
    """float64 [C]."""
    constant = _constant(value)
    batch, channels, *maps = (*[1] * ((2 if x.flat else 4) - constant.dim()), *constant.shape)
    each = channels == x.shape[0] and (not x.flat or x.shape[1:] == (1, 1))
    if batch != 1 or not (each or channels == 1) or any(size != 1 for size in maps):
        raise SpikeportError(
            f"{where}: takes constants {list(constant.shape)} with maps {x.shape}; only one number, or one for "
            "each channel, has an exact form"
        )
    if not constant.isfinite().all():
        raise SpikeportError(f"{where}: multiplies by, or adds, a constant that is NaN or infinite")
    return constant.flatten().expand(x.shape[0])


#: As ``functions.RULES``.
RULES: dict[Any, Callable[..., Any]] = {
    "add": _add,
    **dict.fromkeys(("sub", "subtract"), _sub),
    **dict.fromkeys(("mul", "multiply"), _mul),
    **dict.fromkeys(("div", "divide", "truediv", "true_divide"), _div),
    **dict.fromkeys(("neg", "negative"), _neg),
    F.conv2d: conv2d,
    F.linear: linear,
}
