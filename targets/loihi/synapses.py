"""Chains of linear NIR nodes (convolution, pooling, flatten, affine) as single convolutions, exactly.

On a chip every synapse ends in neurons, so what lies between two populations must become one convolution.
"""

from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spikeport.core.errors import SpikeportError
from spikeport.core.geometry import Pair, Shape, output_size, pair
from spikeport.export.expressions import ungrouped
from spikeport.export.nir_nodes import check_synapses

#: NIR's nodes that have a place on the chip.
COMPILED = ("LIF", "CubaLIF", "IF", "Conv2d", "Linear", "Affine", "Scale", "AvgPool2d", "SumPool2d", "Flatten")


@dataclass(frozen=True, eq=False)
class Path:
    """What a population sends along one way: a convolution with bias, in float64.

    Weights are tensors: those of a graph traced with gradients lead back to the model's parameters.

    Attributes:
        pre: the population at its start.
        names: the NIR nodes it passes.
        shape: channels, height, width at its end.
        bias: [C]; or [C, H, W] where one was added before a convolution that pads: less of it arrives at the borders.
        mean: whether it only averages (weight [C, 1, kH, kW], groups = C).
    """

    pre: str
    names: tuple[str, ...]
    input_shape: Shape
    shape: Shape
    weight: Tensor
    bias: Tensor
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    mean: bool = False


def start(pre: str, shape: Shape) -> Path:
    """The path that goes nowhere: the population itself."""
    ones = torch.ones(shape[0], 1, 1, 1, dtype=torch.float64)
    return Path(pre, (), shape, shape, ones, ones.new_zeros(shape[0]), groups=shape[0], mean=True)


def follow(path: Path, name: str, node: nir.NIRNode, with_bias: bool = True) -> Path:
    """The path extended by one NIR node. Raises SpikeportError where the two do not compose exactly.

    Where several paths meet in a node, its bias must be added on one of them only (``with_bias``).
    """
    check_synapses(name, node)
    if isinstance(node, nir.Flatten):
        return path
    if isinstance(node, (nir.AvgPool2d, nir.SumPool2d)):
        kernel, stride, padding = pair(node.kernel_size), pair(node.stride), pair(node.padding)
        size = output_size(path.shape[1:], kernel, stride, padding)
        _require_fitting(path, name, size)  # before a window of any size takes its memory
        tap = 1 / (kernel[0] * kernel[1]) if isinstance(node, nir.AvgPool2d) else 1.0
        weight = path.weight.new_full((path.shape[0], 1, *kernel), tap)
        return _compose(path, name, weight, weight.new_zeros(path.shape[0]), stride, padding, path.shape[0], mean=True)
    if isinstance(node, nir.Conv2d):
        stride, padding, dilation = pair(node.stride), pair(node.padding), pair(node.dilation)
        bias = _exact(node.bias) * with_bias
        return _compose(path, name, _exact(node.weight), bias, stride, padding, int(node.groups), dilation=dilation)
    if isinstance(node, (nir.Affine, nir.Linear)):
        weight = _exact(node.weight)
        if weight.ndim != 2 or weight.shape[1] != np.prod(path.shape):
            raise SpikeportError(f"{name}: weights {tuple(weight.shape)} do not take a map of {path.shape}")
        has_bias = with_bias and isinstance(node, nir.Affine)
        bias = _exact(node.bias) if has_bias else weight.new_zeros(len(weight))
        return _compose(path, name, weight.reshape(len(weight), *path.shape), bias, (1, 1), (0, 0), 1)
    if isinstance(node, nir.Scale):
        factor = _exact(node.scale)
        if factor.shape == (int(np.prod(path.shape)),):
            factor = factor.reshape(path.shape)
        try:
            factor = factor.broadcast_to(path.shape)
        except RuntimeError:
            raise SpikeportError(f"{name}: a scale of shape {tuple(factor.shape)} for a map of {path.shape}") from None
        if (factor != factor[:, :1, :1]).any():
            raise SpikeportError(f"{name}: scales within a map; only one factor per channel compiles to Loihi")
        weight = factor[:, :1, :1, None]
        return _compose(path, name, weight, weight.new_zeros(path.shape[0]), (1, 1), (0, 0), path.shape[0])
    raise SpikeportError(f"{name}: {type(node).__name__} does not compile to Loihi; these do: {', '.join(COMPILED)}")


def _exact(values: Any) -> Tensor:
    return torch.as_tensor(values if isinstance(values, Tensor) else np.asarray(values, np.float64)).double()


def _require_fitting(path: Path, name: str, size: Pair) -> None:
    if min(size) < 1:
        raise SpikeportError(f"{name}: its kernel does not fit on a map of {path.shape[1:]}")


def _dilated(weight: Tensor, dilation: Pair) -> Tensor:
    """The same kernel with its holes written as zeros."""
    if dilation == (1, 1):
        return weight
    size = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    full = weight.new_zeros(*weight.shape[:2], *size)
    full[:, :, :: dilation[0], :: dilation[1]] = weight
    return full


def _compose(
    path: Path,
    name: str,
    weight: Tensor,
    bias: Tensor,
    stride: Pair,
    padding: Pair,
    groups: int,
    mean: bool = False,
    dilation: Pair = (1, 1),
) -> Path:
    channels = weight.shape[1] * groups
    if channels != path.shape[0]:
        raise SpikeportError(f"{name}: takes {channels} channels, is given {path.shape[0]}")
    size = output_size(path.shape[1:], (weight.shape[2], weight.shape[3]), stride, padding, dilation)
    _require_fitting(path, name, size)
    shape = (len(weight), *size)
    names = (*path.names, name)
    if not path.names:
        return replace(
            path,
            names=names,
            shape=shape,
            weight=weight,
            bias=bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            mean=mean,
        )
    if padding != (0, 0):
        _refuse_padding(path, name)
    if path.weight.shape[2:] == (1, 1):  # the second kernel, its taps farther apart
        holes = (path.stride[0] * dilation[0], path.stride[1] * dilation[1])
        joined, joined_groups = _joined_kernel(replace(path, stride=(1, 1)), weight, groups)
    else:  # two kernels in one leave no regular holes
        holes = (1, 1)
        first = replace(path, weight=_dilated(path.weight, path.dilation))
        joined, joined_groups = _joined_kernel(first, _dilated(weight, dilation), groups)
    return replace(
        path,
        names=names,
        shape=shape,
        weight=joined,
        bias=_joined_bias(path, weight, bias, stride, padding, groups, dilation),
        stride=(path.stride[0] * stride[0], path.stride[1] * stride[1]),
        padding=(path.padding[0] + path.stride[0] * padding[0], path.padding[1] + path.stride[1] * padding[1]),
        dilation=holes,
        groups=joined_groups,
        mean=path.mean and mean,
    )


def _joined_bias(
    path: Path, weight: Tensor, bias: Tensor, stride: Pair, padding: Pair, groups: int, dilation: Pair
) -> Tensor:
    """What the path's bias becomes behind a convolution, and that one's own."""
    if path.bias.ndim == 1 and (padding == (0, 0) or not path.bias.any()):
        return bias + ungrouped(weight, groups).sum((2, 3)) @ path.bias
    before = path.bias if path.bias.ndim == 3 else path.bias[:, None, None].expand(path.shape)
    added = F.conv2d(before[None], weight, bias, stride, padding, dilation, groups)[0]
    return added.flatten() if added.shape[1:] == (1, 1) else added


def _refuse_padding(path: Path, name: str) -> None:
    """Zeros padded behind a linear layer equal zeros padded before it only where it keeps positions apart: disjoint
    averages without a rest or a border, or a 1x1 convolution, whose bias then differs at the borders."""
    kernel = path.weight.shape[2:]
    tiles = path.mean and kernel == path.stride and path.padding == (0, 0) and path.dilation == (1, 1)
    even = all(n % k == 0 for n, k in zip(path.input_shape[1:], kernel, strict=True))
    if not ((tiles and even) or kernel == (1, 1)):
        raise SpikeportError(
            f"{name}: pads a map that comes from {path.names[-1]} with no neurons between them, which has no exact "
            "form as one synapse; put a LIF there"
            + (f", or pool a map whose sides are multiples of {tuple(kernel)}" if tiles else "")
        )


def _joined_kernel(path: Path, weight: Tensor, groups: int) -> tuple[Tensor, int]:
    """One kernel for the path's, then ``weight``, and its groups: tap (i, j) of the pair lies at stride * i + j."""
    first, (sh, sw) = path.weight, path.stride
    (ah, aw), (bh, bw) = first.shape[2:], weight.shape[2:]
    size = (sh * (bh - 1) + ah, sw * (bw - 1) + aw)
    depthwise = weight.shape[1] == 1 and groups == len(weight) == path.shape[0]
    if path.mean:
        result = weight.new_zeros(*weight.shape[:2], *size)
    elif depthwise:
        result, groups = weight.new_zeros(*first.shape[:2], *size), path.groups
    else:
        first, weight = ungrouped(first, path.groups), ungrouped(weight, groups)
        result, groups = weight.new_zeros(len(weight), first.shape[1], *size), 1
    for i in range(bh):
        for j in range(bw):
            window = result[:, :, sh * i : sh * i + ah, sw * j : sw * j + aw]
            if path.mean:
                window += weight[:, :, i, j, None, None] * first[0, 0]
            elif depthwise:
                window += weight[:, :, i, j, None, None] * first
            else:
                window += torch.einsum("om,mckl->ockl", weight[:, :, i, j], first)
    return result, groups
