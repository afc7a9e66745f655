"""The functions and tensor methods a forward pass may use between its layers: joining, cutting, renumbering.

Shapes are known while tracing, all but the batch, which reads -1; so arithmetic on sizes is simply carried out.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.nn import functional as F

from spikeport.core.errors import SpikeportError
from spikeport.core.geometry import Pair, ceil_reach, pair
from spikeport.export import arithmetic
from spikeport.export import expressions as ex
from spikeport.export.signals import Signal


@dataclass(frozen=True, eq=False)
class Grouped:
    """A signal viewed as [N, groups, channels / groups, H, W], in the middle of a channel shuffle.

    ``order`` [groups, channels / groups] names the channel at each place.
    """

    signal: Signal
    order: np.ndarray


@dataclass(frozen=True, eq=False)
class Line:
    """Maps [N, C, 1, n] or [N, C, n, 1] without their axis of length 1, as [N, C, n]."""

    signal: Signal


#: What is seen of a signal while it is rearranged.
View = Signal | Grouped | Line


def shape(x: View) -> tuple[int, ...]:
    if isinstance(x, Grouped):
        return (-1, *x.order.shape, *x.signal.shape[1:])
    if isinstance(x, Line):
        return (-1, x.signal.shape[0], int(np.prod(x.signal.shape[1:])))
    return (-1, int(np.prod(x.shape))) if x.flat else (-1, *x.shape)


def apply(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The value of a call in the traced graph. Raises SpikeportError where it has no exact form."""
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    if not _holds((*args, *kwargs.values()), View):  # sizes and constants
        return target(*args, **kwargs) if callable(target) else getattr(args[0], name)(*args[1:], **kwargs)
    rule = RULES.get(target) or RULES.get(name)
    if rule is None:
        raise SpikeportError(f"{node.name}: {name}() has no exact spiking form; use a layer or leave it out")
    named = {NAMES.get(key, key): value for key, value in kwargs.items()}
    if rule not in OF_GROUPS and _holds((*args, *kwargs.values()), Grouped):
        raise SpikeportError(
            f"{node.name}: {name}() of channels in groups has no exact form; flatten(1, 2) makes maps of them again"
        )
    if rule not in OF_LINES and _holds((*args, *kwargs.values()), Line):
        raise SpikeportError(
            f"{node.name}: {name}() of maps that lost their rows or columns has no exact form; flatten(1) makes "
            "features of them"
        )
    try:
        first = [named.pop("input")] if "input" in named else []
        return rule(node.name, *first, *args, **named)
    except (TypeError, IndexError):
        given = [_described(a) for a in args] + [f"{key}={_described(a)}" for key, a in kwargs.items()]
        raise SpikeportError(
            f"{node.name}: {name}({', '.join(given)}) has no exact form; use a layer or leave it out"
        ) from None


def _described(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_described, value))}]"
    return f"maps {shape(value)[1:]}" if isinstance(value, View) else str(value)


def _holds(value: Any, kinds: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds(v, kinds) for v in value)
    return isinstance(value, kinds)


def _cat(where: str, tensors: Any, dim: int = 0) -> Signal:
    if dim not in (1, -3) or not all(isinstance(t, Signal) for t in tensors):
        raise SpikeportError(f"{where}: concatenates along dimension {dim}; only channels (dim=1) have an exact form")
    return ex.concat(tensors, where)


def flatten(where: str, x: Any, start_dim: int = 0, end_dim: int = -1) -> Signal:
    axes = len(shape(x))
    flattened = (start_dim % axes, end_dim % axes)
    if isinstance(x, Grouped) and flattened == (1, 2):
        return _ungrouped(x)
    if flattened == (1, axes - 1):
        return replace(_ungrouped(x), flat=True)
    raise SpikeportError(
        f"{where}: flattens dimensions {start_dim} to {end_dim}; only flatten(1) has an exact form (with "
        "SpikingJelly's time axis: layer.Flatten(), and SeqToANNContainer in place of seq_to_ann_forward)"
    )


def _ungrouped(x: View) -> Signal:
    if isinstance(x, Line):
        return x.signal
    return ex.select(x.signal, x.order.ravel()) if isinstance(x, Grouped) else x


def _reshape(where: str, x: Any, *sizes: Any, size: Any = ()) -> Signal | Grouped:
    batch, *wanted = (int(s) for s in (size or (sizes if isinstance(sizes[0], int) else sizes[0])))
    maps = _ungrouped(x)
    channels, height, width = maps.shape
    one_sample = batch < 0 or -1 not in wanted  # else the other axes may hold a part of the batch
    if wanted.count(-1) == 1:
        wanted[wanted.index(-1)] = channels * height * width // max(1, -int(np.prod(wanted)))
    if wanted == [channels * height * width]:
        return replace(maps, flat=True)
    if not maps.flat and wanted == [channels, height, width]:
        return maps
    in_groups = one_sample and wanted[2:] == [height, width] and int(np.prod(wanted[:2])) == channels
    if not maps.flat and in_groups:
        return Grouped(maps, np.arange(channels).reshape(wanted[:2]))
    raise SpikeportError(
        f"{where}: views {shape(x)} as {(batch, *wanted)}; only flattening and splitting channels into groups have an "
        "exact form"
    )


def _unflatten(where: str, x: Any, dim: int, sizes: Any) -> Signal | Grouped:
    if not isinstance(x, Signal) or dim not in (1, -3) or x.flat:
        _own_axis(where)
    return _reshape(where, x, -1, *sizes, *x.shape[1:])


def _transpose(where: str, x: Any, dim0: int, dim1: int) -> Grouped:
    if not isinstance(x, Grouped) or {dim0 % 5, dim1 % 5} != {1, 2}:
        raise SpikeportError(
            f"{where}: transposes dimensions {dim0} and {dim1}; only a channel shuffle has an exact form"
        )
    return Grouped(x.signal, x.order.T)


def _permute(where: str, x: Any, *given: Any, dims: Any = ()) -> Grouped:
    order = tuple(dims or (given[0] if len(given) == 1 else given))
    if [d % 5 for d in order] != [0, 2, 1, 3, 4]:
        raise SpikeportError(f"{where}: permutes to {order}; only a channel shuffle has an exact form")
    return _transpose(where, x, 1, 2)


def _chunk(where: str, x: Signal, chunks: int, dim: int = 0) -> list[Signal]:
    size = -(-x.shape[0] // chunks)
    return _split(where, x, size, dim)


def _split(where: str, x: Signal, split_size_or_sections: Any, dim: int = 0) -> list[Signal]:
    if dim not in (1, -3):
        raise SpikeportError(f"{where}: splits dimension {dim}; only channels (dim=1) have an exact form")
    if x.flat and x.shape[1:] != (1, 1):
        raise SpikeportError(f"{where}: splits flattened maps; only maps of channels have an exact form here")
    channels, sections = x.shape[0], split_size_or_sections
    sizes = sections if isinstance(sections, (list, tuple)) else [sections] * -(-channels // sections)
    ends = np.minimum(np.cumsum(sizes), channels)
    return [ex.select(x, np.arange(e - s, e)) for s, e in zip(np.diff(ends, prepend=0), ends, strict=True)]


def _getitem(where: str, x: Any, key: Any) -> Any:
    if not isinstance(x, Signal):
        return x[key]
    keys = _of_every_axis(key if isinstance(key, tuple) else (key,), 2 if x.flat else 4)
    maps = keys[2:] or (slice(None), slice(None))
    slices = len(maps) == 2 and all(isinstance(k, (slice, int)) and not isinstance(k, bool) for k in maps)
    listed = isinstance(keys[1], list) and all(isinstance(channel, int) for channel in keys[1])
    of_channels = keys[0] == slice(None) and (listed or isinstance(keys[1], slice))
    if slices and of_channels and (not x.flat or x.shape[1:] == (1, 1)):
        rows, columns = (_places(length, k) for length, k in zip(x.shape[1:], maps, strict=True))
        if rows and columns:
            part = ex.placed(ex.select(x, np.arange(x.shape[0])[keys[1]]), rows, columns, where)
            return _without_axes(part, sum(isinstance(k, int) for k in maps))
    raise SpikeportError(
        f"{where}: indexes {key}; only slices of channels, rows and columns have an exact form (what picks a time "
        "step: give the network of one step)"
    )


def _places(length: int, key: slice | int) -> range:
    """Which rows or columns a key names. Raises IndexError where there is none."""
    return range(length)[key] if isinstance(key, slice) else range(range(length)[key], range(length)[key] + 1)


def _without_axes(maps: Signal, gone: int) -> Signal | Line:
    """Maps without so many of their axes of length 1."""
    return (maps, Line(maps), replace(maps, flat=True))[gone]


def _of_every_axis(keys: tuple[Any, ...], axes: int) -> tuple[Any, ...]:
    """The keys with those that are left out, at the end or where an ellipsis stands."""
    at = next((i for i, key in enumerate(keys) if key is Ellipsis), len(keys))
    rest = keys[at + 1 :]
    return (*keys[:at], *[slice(None)] * (axes - at - len(rest)), *rest)


def pad(where: str, x: Signal, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Signal:
    left, right, top, bottom, front, back, *batch = (*pad, *[0] * (6 - len(pad)))
    channels = np.arange(-front, x.shape[0] + back)
    smallest = min(len(channels), x.shape[1] + top + bottom, x.shape[2] + left + right)
    if x.flat or any(batch) or mode != "constant" or value or smallest < 1:
        raise SpikeportError(
            f"{where}: pads {tuple(pad)} ({mode}, {value or 0}); only zeros around maps and channels of zeros have an "
            "exact form"
        )
    if front or back:
        x = ex.select(x, np.where((channels >= 0) & (channels < x.shape[0]), channels, -1))
    return ex.padded(x, (top, left), (bottom, right), where)


def max_pool(
    where: str, x: Signal, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Signal:  # fmt: skip
    if return_indices or pair(dilation) != (1, 1):
        raise SpikeportError(f"{where}: max-pooling with dilation or indices has no exact form; leave them out")
    kernel, strides, around = pair(kernel_size), pair(stride or kernel_size), pair(padding)
    beyond = ceil_reach((x.shape[1], x.shape[2]), kernel, strides, around) if ceil_mode else (0, 0)
    if any(beyond):  # where there are no spikes, as if the maps went on with zeros
        behind = (around[0] + beyond[0], around[1] + beyond[1])
        x, around = ex.padded(x, around, behind, where), (0, 0)
    return ex.or_pool(x, kernel, strides, around, where)


def avg_pool(
    where: str, x: Signal, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Signal:  # fmt: skip
    if pair(padding) != (0, 0) and not count_include_pad and not divisor_override:
        raise SpikeportError(
            f"{where}: average pooling with count_include_pad=False divides by less at the borders, which has no NIR "
            "form; use the default"
        )
    geometry = pair(kernel_size), pair(stride or kernel_size), pair(padding)
    if ceil_mode and any(ceil_reach((x.shape[1], x.shape[2]), *geometry)):
        raise SpikeportError(
            f"{where}: with ceil_mode its windows reach beyond maps of {x.shape[1:]} and average fewer values, which "
            "has no exact form; leave it out, or choose a padding that divides them evenly"
        )
    if divisor_override:
        return ex.windows(x, 1 / divisor_override, *geometry, where)
    return ex.pool(x, *geometry, where)


def adaptive_avg_pool(where: str, x: Signal, output_size: Any) -> Signal:
    wanted = output_size if isinstance(output_size, (tuple, list)) else (output_size,) * 2
    size = tuple(have if want is None else want for want, have in zip(wanted, x.shape[1:], strict=True))
    if any(have % want for want, have in zip(size, x.shape[1:], strict=True)):
        smaller = any(have < want for want, have in zip(size, x.shape[1:], strict=True))
        remedy = "leave it out, and make the layer behind it as wide as they are" if smaller else "use AvgPool2d"
        raise SpikeportError(f"{where}: maps of {x.shape[1:]} do not divide evenly into {size}; {remedy}")
    kernel = (x.shape[1] // size[0], x.shape[2] // size[1])
    return ex.pool(x, kernel, kernel, (0, 0), where)


def _mean(where: str, x: Any, dim: Any = None, keepdim: bool = False) -> Signal | Line:
    average = lambda maps, window: ex.pool(maps, window, window, (0, 0), where)  # noqa: E731
    return _over_maps(where, "averages", "mean", x, dim, keepdim, average)


def _sum(where: str, x: Any, dim: Any = None, keepdim: bool = False) -> Signal | Line:
    total = lambda maps, window: ex.windows(maps, 1.0, window, window, (0, 0), where)  # noqa: E731
    return _over_maps(where, "adds up", "sum", x, dim, keepdim, total)


def _over_maps(
    where: str, does: str, name: str, x: Any, dim: Any, keepdim: bool, reduced: Callable[[Signal, Pair], Signal]
) -> Signal | Line:
    axes = len(shape(x))
    dims = {d % axes for d in (dim if isinstance(dim, (tuple, list)) else (dim,))} if dim is not None else set()
    if not dims or not dims <= {2, 3} or axes == 2:
        raise SpikeportError(f"{where}: {does} over dimensions {dim}; only {name}((2, 3)) has an exact form")
    maps = _ungrouped(x)
    height, width = maps.shape[1:]
    both = isinstance(x, Line) or len(dims) == 2
    y = reduced(maps, (height, width) if both else (height, 1) if dims == {2} else (1, width))
    if keepdim:
        return Line(y) if isinstance(x, Line) else y
    return _without_axes(y, 2 if both else 1)


def _own_axis(where: str, *args: Any, **kwargs: Any) -> Any:
    raise SpikeportError(
        f"{where}: adds or repeats an axis, which has no exact form; give the network of one time step, without what "
        "repeats its input and averages its output over time"
    )


def _squeeze(where: str, x: Any, *given: Any, dim: Any = ()) -> Signal | Line:
    sizes = shape(x)
    dims = [d for entry in given or (dim,) for d in (entry if isinstance(entry, (tuple, list)) else (entry,))]
    gone = {d % len(sizes) for d in dims if sizes[d % len(sizes)] in (1, -1)}
    if not dims or not gone <= {2, 3}:
        raise SpikeportError(
            f"{where}: squeezes an axis, which has no exact form; write flatten(1), or mean((2, 3)) above"
        )
    return _without_axes(_ungrouped(x), len(gone) + isinstance(x, Line)) if gone else x


def _same(where: str, x: Any, *args: Any, **kwargs: Any) -> Any:
    return x


def _dropout(where: str, x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    if training and p:
        raise SpikeportError(
            f"{where}: drops at random in evaluation too; call it with training=self.training, in evaluation mode, or "
            "use nn.Dropout"
        )
    return x


def _size(where: str, x: Any, dim: int | None = None) -> Any:
    return shape(x) if dim is None else shape(x)[dim]


def _attribute(where: str, x: Any, attribute: str) -> Any:
    if attribute == "shape":
        return shape(x)
    raise SpikeportError(f"{where}: uses .{attribute} of a tensor, which has no exact form")


#: function, or name of a method or function -> its rule; every rule takes the place's name first
RULES: dict[Any, Callable[..., Any]] = {
    torch.cat: _cat,
    torch.concat: _cat,
    **arithmetic.RULES,
    "flatten": flatten,
    "view": _reshape,
    "reshape": _reshape,
    "transpose": _transpose,
    "permute": _permute,
    "contiguous": _same,
    "unflatten": _unflatten,
    **dict.fromkeys(("unsqueeze", "repeat", "expand", "stack"), _own_axis),
    "squeeze": _squeeze,
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d), _dropout),
    "chunk": _chunk,
    "split": _split,
    operator.getitem: _getitem,
    "size": _size,
    getattr: _attribute,
    "pad": pad,
    F.max_pool2d: max_pool,
    F.avg_pool2d: avg_pool,
    F.adaptive_avg_pool2d: adaptive_avg_pool,
    "mean": _mean,
    "sum": _sum,
    "channel_shuffle": lambda where, x, groups: channel_shuffle(x, groups),
}
#: Those that take channels in groups; every other would have to know how they lie.
OF_GROUPS = {flatten, _reshape, _unflatten, _transpose, _permute, _same, _dropout, _size, _attribute}
#: Those that take maps without rows or columns.
OF_LINES = {flatten, _reshape, _mean, _sum, _squeeze, _same, _dropout, _size, _attribute}

#: What else torch calls arguments of these functions -> the rules' own name; the tensor itself they take first.
NAMES = {
    "tensor": "input",
    "tensors": "input",
    "axis": "dim",
    "keepdims": "keepdim",
    "split_size": "split_size_or_sections",
    "shape": "size",
}


def channel_shuffle(x: Signal, groups: int) -> Signal:
    return ex.select(x, np.arange(x.shape[0]).reshape(groups, -1).T.ravel())
