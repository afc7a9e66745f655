"""BatchNorm followed by LIF as torch operators: statistics, the fused layer and its gradient.

The normalised current is never written to memory: it is computed again from x wherever it is needed, and x is
all of its size that is saved for the backward pass. The gradient of the gradient goes through differentiable
torch operations and ``spikeport::lif``.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from spikeport.core.errors import SpikeportError
from spikeport.core.kernels import cpu, cuda, ops
from spikeport.core.kernels.layout import Layout, with_dense_steps
from spikeport.core.kernels.parameters import SCHEMA, Norm, Setting, state_dtype

_LIBRARY = torch.library.Library("spikeport", "FRAGMENT")
_FACTORS = "Tensor? weight, Tensor? bias, Tensor mean, Tensor variance"
_LIBRARY.define("channel_moments(Tensor x, bool constant) -> (Tensor, Tensor)")
_NUMBERS = f"float eps, bool batch_statistics, bool pooled, {SCHEMA}"
_LIBRARY.define(f"batch_norm_lif(Tensor x, {_FACTORS}, {_NUMBERS}) -> Tensor")
_LIBRARY.define(
    f"batch_norm_lif_backward(Tensor x, {_FACTORS}, Tensor grad_spikes, {_NUMBERS}) -> (Tensor, Tensor, Tensor)"
)


class Options(NamedTuple):
    """What the operators take besides tensors and a ``Setting``."""

    eps: float
    batch_statistics: bool
    pooled: bool


N_OPTIONS = len(Options._fields)
N_NUMBERS = N_OPTIONS + ops.N_SETTING


def channel_moments(x: Tensor, constant: bool) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel, [C] in the membrane's dtype; without a gradient.

    Args:
        x: [N, C, ...] if ``constant``, else [T, N, C, ...].
    """
    result: tuple[Tensor, Tensor] = torch.ops.spikeport.channel_moments(x, constant)
    return result


def batch_norm_lif(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    options: Options,
    setting: Setting,
) -> Tensor:
    """Spikes [T, N, C, ...] of LIF neurons at rest whose current is (x - mean) / sqrt(variance + eps) * weight + bias.

    Args:
        x: [N, C, ...] if ``setting.constant``, else [T, N, C, ...].
        weight, bias, mean, variance: [C], in the membrane's dtype.
        options: batch_statistics: mean and variance are those of x, and its gradient passes through them. pooled: the
            spikes are max-pooled in windows of 2x2 pixels, [T, N, C, H / 2, W / 2]; only where ``can_pool``.
    """
    result: Tensor = torch.ops.spikeport.batch_norm_lif(x, weight, bias, mean, variance, *options, *setting)
    return result


def can_pool(x: Tensor, constant: bool) -> bool:
    """Whether ``batch_norm_lif`` can pool the spikes: images of even height and width, channels-last."""
    neurons = x if constant or x.shape[0] == 0 else x[0]
    return (
        neurons.dim() == 4
        and not (neurons.shape[2] % 2 or neurons.shape[3] % 2)
        and neurons.is_contiguous(memory_format=torch.channels_last)
    )


def _channels(layout: Layout) -> tuple[int, int]:
    """The channels of [N, C, ...] and ``inner``: neuron i is of channel (i // inner) % channels."""
    channels = layout.shape[1]
    # In a tensor without gaps, the stride of a dimension is the number of elements that lie within one index of it.
    return channels, layout.strides[1] if channels > 1 else math.prod(layout.shape)


def _dense(x: Tensor, constant: bool) -> tuple[Tensor, Layout]:
    """As ``with_dense_steps``; copied too where all steps are one in memory, which the GPU takes for constant."""
    x, layout = with_dense_steps(x, constant)
    repeated = not constant and x.shape[0] > 1 and x.stride(0) == 0
    return layout.over(len(x)).arrange(x, x.dtype) if repeated else x, layout


def _moments(x: Tensor, constant: bool) -> tuple[Tensor, Tensor]:
    x, layout = _dense(x, constant)
    mean, variance = _new_moments(x, constant)
    if not x.numel():
        return mean.fill_(torch.nan), variance.fill_(torch.nan)
    steps = 1 if constant else x.shape[0]
    setting = Setting(steps, constant, [0.0] * 5, 0)
    (cuda if x.is_cuda else cpu).norm_moments(x, setting, Norm(*_channels(layout)), mean, variance)
    return mean, variance


def _new_moments(x: Tensor, constant: bool) -> tuple[Tensor, Tensor]:
    channels, dtype = x.shape[1 if constant else 2], state_dtype(x.dtype)
    return x.new_empty(channels, dtype=dtype), x.new_empty(channels, dtype=dtype)


def _norm_lif(x: Tensor, *arguments: Any) -> Tensor:
    factors, options, setting = _parse(arguments)
    x, layout = _dense(x, setting.constant)
    spikes = _spikes(layout, options).over(setting.steps).new(x.dtype, x.device)
    _run(ops.FORWARD, x, layout, options, setting, factors | {"spikes": spikes})
    return spikes


def _parse(arguments: tuple[Any, ...]) -> tuple[dict[str, Tensor | None], Options, Setting]:
    names = ("weight", "bias", "mean", "variance")
    factors = {name: None if t is None else t.contiguous() for name, t in zip(names, arguments[:4], strict=True)}
    numbers = arguments[-N_NUMBERS:]
    return factors, Options(*numbers[:N_OPTIONS]), Setting(*numbers[N_OPTIONS:])


def _spikes(layout: Layout, options: Options) -> Layout:
    """Of one step."""
    if not options.pooled:
        return layout
    images, channels, height, width = layout.shape
    height, width = height // 2, width // 2
    strides = (height * width * channels, 1, width * channels, channels)
    return Layout((images, channels, height, width), strides)


def _run(
    code: int, x: Tensor, layout: Layout, options: Options, setting: Setting, tensors: dict[str, Tensor | None]
) -> None:
    pair = 2 * layout.shape[3] * layout.shape[1] if options.pooled else 0
    if pair and not can_pool(x, setting.constant):
        raise SpikeportError(
            f"batch_norm_lif pools channels-last images of even height and width; got {list(x.shape)} with strides "
            f"{list(x.stride())}"
        )
    channels, inner = _channels(layout)
    if x.numel():
        inner = 1 if pair else inner  # a single channel is channels-last as well
        norm = Norm(channels, inner, options.eps, options.batch_statistics, pair)
        (cuda if x.is_cuda else cpu).norm(code, x, setting, norm, **tensors)


def _fake_norm_lif(x: Tensor, *arguments: Any) -> Tensor:
    _, options, setting = _parse(arguments)
    x, layout = _dense(x, setting.constant)
    return _spikes(layout, options).over(setting.steps).new(x.dtype, x.device)


def _norm_lif_backward(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    factors, options, setting = _parse(arguments)
    x, layout = _dense(x, setting.constant)
    grad_x, grad_weight, grad_bias = _new_gradients(x, layout, setting)
    tensors = factors | {
        "grad_spikes": _spikes(layout, options).over(setting.steps).arrange(arguments[4], x.dtype),
        "grad_x": grad_x,
        "grad_weight": grad_weight,
        "grad_bias": grad_bias,
    }
    _run(ops.BACKWARD, x, layout, options, setting, tensors)
    return grad_x, grad_weight, grad_bias


def _new_gradients(x: Tensor, layout: Layout, setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = (layout if setting.constant else layout.over(setting.steps)).new(x.dtype, x.device)
    dtype = state_dtype(x.dtype)
    return grad_x, x.new_zeros(layout.shape[1], dtype=dtype), x.new_zeros(layout.shape[1], dtype=dtype)


def _fake_norm_lif_backward(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    setting = Setting(*arguments[-ops.N_SETTING :])
    x, layout = _dense(x, setting.constant)
    return _new_gradients(x, layout, setting)


def _save_for_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.numbers = inputs[5:]


def _gradient(ctx: Any, grad_spikes: Tensor) -> tuple[Tensor | None, ...]:
    given = ctx.saved_tensors
    gradients = torch.ops.spikeport.batch_norm_lif_backward(*given, grad_spikes, *ctx.numbers)
    wanted = [None if tensor is None else grad for tensor, grad in zip(given[:3], gradients, strict=True)]
    return *wanted, None, None, *(None,) * N_NUMBERS


def _save_for_double_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.numbers = inputs[6:]


def _double_gradient(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    *given, grad_spikes = ctx.saved_tensors
    options, setting = Options(*ctx.numbers[:N_OPTIONS]), Setting(*ctx.numbers[N_OPTIONS:])
    with torch.enable_grad():
        leaf = lambda t: None if t is None else t.detach().requires_grad_()  # noqa: E731
        x, grad = given[0].detach().requires_grad_(), grad_spikes.detach().requires_grad_()
        weight, bias = leaf(given[1]), leaf(given[2])
        spikes = _unfused(x, weight, bias, given[3], given[4], options, setting)
        inputs = [t for t in (x, weight, bias) if t is not None]
        first = torch.autograd.grad(spikes, inputs, grad, create_graph=True)
        chosen = [c for t, c in zip((x, weight, bias), cotangents, strict=True) if t is not None]
        second = iter(torch.autograd.grad(first, [*inputs, grad], chosen, allow_unused=True))
    grads = [None if t is None else next(second) for t in (x, weight, bias)]
    *grads, into_grad = _Last.apply(4, *grads, next(second), *given, grad_spikes, *cotangents)
    return *grads, None, None, into_grad, *(None,) * N_NUMBERS


class _Last(torch.autograd.Function):
    """The first ``count`` of its tensors, which have no derivative by the others."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        return tensors[:count]

    backward = staticmethod(ops.refuse_third_gradient)


def _unfused(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    options: Options,
    setting: Setting,
) -> Tensor:
    """The same spikes by differentiable torch operations."""
    channel = 1 if setting.constant else 2
    wide = x.to(state_dtype(x.dtype))
    if options.batch_statistics:
        others = [dimension for dimension in range(x.dim()) if dimension != channel]
        variance, mean = torch.var_mean(wide, others, correction=0)
    shape = [-1 if dimension == channel else 1 for dimension in range(x.dim())]
    y = (wide - mean.view(shape)) * (variance.view(shape) + options.eps).rsqrt()
    if weight is not None:
        y = y * weight.view(shape)
    if bias is not None:
        y = y + bias.view(shape)
    spikes = ops.lif(y, None, setting, False)[0].to(x.dtype)
    return max_pooled(spikes) if options.pooled else spikes


def max_pooled(spikes: Tensor) -> Tensor:
    """Spikes [T, N, C, H, W] after ``max_pool2d`` with windows of 2x2 pixels."""
    return max_pool2d(spikes.flatten(0, 1), 2).unflatten(0, spikes.shape[:2])


for _name, _kernel, _fake in (
    ("channel_moments", _moments, _new_moments),
    ("batch_norm_lif", _norm_lif, _fake_norm_lif),
    ("batch_norm_lif_backward", _norm_lif_backward, _fake_norm_lif_backward),
):
    _LIBRARY.impl(_name, _kernel, "CPU")
    _LIBRARY.impl(_name, _kernel, "CUDA")
    torch.library.register_fake(f"spikeport::{_name}", _fake, lib=_LIBRARY)
torch.library.register_autograd("spikeport::batch_norm_lif", _gradient, setup_context=_save_for_gradient, lib=_LIBRARY)
torch.library.register_autograd(
    "spikeport::batch_norm_lif_backward", _double_gradient, setup_context=_save_for_double_gradient, lib=_LIBRARY
)
