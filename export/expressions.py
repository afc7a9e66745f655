"""The exact rewriting of a spiking network: what its layers and functions do to signals.

A signal's channels are sums of channels of nodes (``signals``), so concatenation, channel split, slices and shuffle
only renumber channels, and vanish. All arithmetic is in float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from spikeport.core.errors import SpikeportError
from spikeport.core.geometry import Pair, Shape, output_size
from spikeport.export.signals import Conv, Input, Linear, Neuron, Node, Pool, Signal, Term, gives_spikes, whole


def select(x: Signal, channels: np.ndarray) -> Signal:
    """The channels of a signal, in the order given; zeros where -1."""
    terms = tuple(t for t in (t.select(channels) for t in x.terms) if (t.index >= 0).any())
    return Signal((len(channels), *x.shape[1:]), terms, x.flat)


def concat(signals: Sequence[Signal], where: str) -> Signal:
    """Their channels, one after the other. Raises SpikeportError where the maps differ in size."""
    if len({s.shape[1:] for s in signals}) != 1 or len({s.flat for s in signals}) != 1:
        raise SpikeportError(f"{where}: concatenates maps of different sizes {[s.shape for s in signals]}")
    total = sum(s.shape[0] for s in signals)
    terms, start = [], 0
    for signal in signals:
        for term in signal.terms:
            index = np.full(total, -1)
            index[start : start + signal.shape[0]] = term.index
            terms.append(Term(term.node, index))
        start += signal.shape[0]
    return Signal((total, *signals[0].shape[1:]), tuple(terms), signals[0].flat)


def add(a: Signal, b: Signal, where: str) -> Signal:
    """Their sum. Raises SpikeportError where the shapes differ."""
    if a.flat and b.flat and np.prod(a.shape) == np.prod(b.shape) and a.shape != b.shape:
        raise SpikeportError(
            f"{where}: adds flattened maps and features, {a.shape} and {b.shape}, which have no form in common; give "
            "the flattened maps a linear layer of their own"
        )
    if a.shape != b.shape or a.flat != b.flat:
        raise SpikeportError(f"{where}: adds maps of shapes {a.shape} and {b.shape}; broadcasting has no exact form")
    return Signal(a.shape, a.terms + b.terms, a.flat)


def require_fed(x: Signal, source: str) -> None:
    """Raises SpikeportError where every channel is zeros that no node gives: there is no node to follow."""
    if not x.terms:
        raise SpikeportError(f"{source}: takes channels of zeros alone, which no layer gives; leave it out")


def exact(tensor: Tensor) -> Tensor:
    """In float64 on the CPU."""
    # A float64 parameter would stay itself, and carry gradients where none are wanted.
    return (tensor if torch.is_grad_enabled() else tensor.detach()).cpu().double()


def convolve(
    x: Signal,
    weight: Tensor,
    bias: Tensor,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    source: str,
) -> Signal:
    """A convolution of a sum is a sum of convolutions, each with its slice of the weights; the bias is on the first."""
    if x.shape[0] != weight.shape[1] * groups:
        raise SpikeportError(f"{source}: takes {weight.shape[1] * groups} channels, is given {x.shape[0]}")
    require_fed(x, source)
    size = output_size(x.shape[1:], (weight.shape[2], weight.shape[3]), stride, padding, dilation)
    if min(size) < 1:
        raise SpikeportError(f"{source}: its kernel does not fit on a map of {x.shape[1:]}")
    shape = (weight.shape[0], *size)

    def node(inputs: Sequence[Node], kernel: Tensor, own_bias: Tensor, own_groups: int) -> Node:
        return Conv(source, distinct(inputs), shape, kernel, own_bias, stride, padding, dilation, own_groups)

    return _synapses(x, weight, bias, groups, shape, node)


def _synapses(
    x: Signal,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    shape: Shape,
    node: Callable[[Sequence[Node], Tensor, Tensor, int], Node],
) -> Signal:
    """One node for all the terms the signal takes whole, one with its slice of the weights for every other."""
    together = [term.node for term in x.terms if term.whole]
    nodes = [node(together, weight, bias, groups)] if together else []
    for term in x.terms:
        if not term.whole:
            full = ungrouped(weight, groups)
            empty = weight.new_zeros(weight.shape[0], term.node.shape[0], *weight.shape[2:])
            used = torch.from_numpy(np.flatnonzero(term.index >= 0))
            mine = empty.index_add(1, torch.from_numpy(term.index)[used], full[:, used])
            nodes.append(node([term.node], mine, torch.zeros_like(bias) if nodes else bias, 1))
    return Signal(shape, tuple(Term(n, np.arange(shape[0])) for n in nodes))


def ungrouped(weight: Tensor, groups: int) -> Tensor:
    """Grouped convolution weights [O, I / groups, ...] as dense ones [O, I, ...] with zeros between the groups."""
    if groups == 1:
        return weight
    out, per_group = weight.shape[0] // groups, weight.shape[1]
    full = weight.new_zeros(groups, out, groups, per_group, *weight.shape[2:])
    each = torch.arange(groups)
    full[each, :, each] = weight.unflatten(0, (groups, out))
    return full.flatten(2, 3).flatten(0, 1)


def multiply(x: Signal, weight: Tensor, bias: Tensor, source: str) -> Signal:
    """A linear layer over the flattened signal, one ``Linear`` per term."""
    features = int(np.prod(x.shape))
    if weight.shape[1] != features:
        raise SpikeportError(f"{source}: takes {weight.shape[1]} features, is given {features}")
    require_fed(x, source)
    shape = (weight.shape[0], 1, 1)

    def node(inputs: Sequence[Node], kernel: Tensor, own_bias: Tensor, groups: int) -> Node:
        return Linear(source, distinct(inputs), shape, kernel.reshape(len(kernel), -1), own_bias, flat=True)

    by_channel = weight.reshape(weight.shape[0], *x.shape)
    return replace(_synapses(x, by_channel, bias, 1, shape, node), flat=True)


def scale_shift(x: Signal, scale: Tensor, shift: Tensor, source: str) -> Signal:
    """Per-channel ``scale * x + shift``: a BatchNorm, taken into the synapses that feed it, its own where none do."""
    if (scale == 1).all() and not shift.any() and not (scale.requires_grad or shift.requires_grad):
        return x
    if len(scale) != x.shape[0]:
        raise SpikeportError(
            f"{source}: normalises {len(scale)} features of flattened maps of {x.shape[0]} channels, which cannot be "
            "folded; normalise the channels before flattening"
        )
    terms, missing = [], np.ones(x.shape[0], bool)
    for term in x.terms:
        used = np.flatnonzero(term.index >= 0)
        twice = len(set(term.index[used].tolist())) < len(used)
        if twice or not isinstance(term.node, (Conv, Linear)):  # synapses of its own
            term = _passed_on(term, source)
        node, rows = term.node, torch.from_numpy(term.index[used])
        assert isinstance(node, (Conv, Linear))
        first = missing[used]
        missing[used] = False
        factor = scale.new_ones(node.shape[0]).index_copy(0, rows, scale[used])
        offset = scale.new_zeros(node.shape[0]).index_copy(0, rows[first], shift[used[first]])
        places = len(node.weight) // len(factor)  # of flattened maps
        factor, offset = factor.repeat_interleave(places), offset.repeat_interleave(places)
        weight = node.weight * factor.reshape(-1, *[1] * (node.weight.ndim - 1))
        terms.append(Term(replace(node, weight=weight, bias=node.bias * factor + offset), term.index))
    if shift[torch.from_numpy(missing)].any():
        raise SpikeportError(f"{source}: normalises channels that nothing feeds")
    return Signal(x.shape, tuple(terms), x.flat)


def _passed_on(term: Term, source: str) -> Term:
    """The channels a term takes, each from a synapse of weight 1 of its own."""
    used = np.flatnonzero(term.index >= 0)
    index = np.full(len(term.index), -1)
    index[used] = np.arange(len(used))
    return Term(replace(selection(term.node, term.index[used]), source=source), index)


def fire(x: Signal, make: Callable[[tuple[Node, ...], Shape], Neuron]) -> Signal:
    """Neurons over a signal: one population for every block of channels that the same nodes feed.

    Channels that nothing feeds stay at rest: below the threshold, they are zeros.
    """
    covers = np.stack([t.index >= 0 for t in x.terms])
    blocks: dict[bytes, list[int]] = {}
    for channel in range(x.shape[0]):
        blocks.setdefault(covers[:, channel].tobytes(), []).append(channel)
    terms = []
    for channels in (np.array(block) for cover, block in blocks.items() if any(cover)):
        part = select(x, channels)
        node = replace(make(distinct([_aligned(t) for t in part.terms]), part.shape), flat=x.flat)
        index = np.full(x.shape[0], -1)
        index[channels] = np.arange(len(channels))
        terms.append(Term(node, index))
    return Signal(x.shape, tuple(terms), x.flat)


def _aligned(term: Term) -> Node:
    """A node whose channels are just those the term takes, in its order."""
    node, rows = term.node, term.index
    if term.whole and not isinstance(node, (Neuron, Input)):
        return node
    if isinstance(node, (Conv, Linear)) and getattr(node, "groups", 1) == 1:
        return replace(node, shape=(len(rows), *node.shape[1:]), weight=node.weight[rows], bias=node.bias[rows])
    if isinstance(node, Conv):
        weight = ungrouped(node.weight, node.groups)[rows]
        return replace(node, shape=(len(rows), *node.shape[1:]), weight=weight, bias=node.bias[rows], groups=1)
    return selection(node, rows)


def distinct(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes with every repetition replaced by a node of its own: a graph has no two equal edges."""
    seen: set[Node] = set()
    result = []
    for node in nodes:
        if node in seen:
            passes = isinstance(node, (Neuron, Input))
            node = selection(node, np.arange(node.shape[0])) if passes else replace(node)
        seen.add(node)
        result.append(node)
    return tuple(result)


def selection(node: Node, rows: np.ndarray) -> Conv | Linear:
    """Synapses of weight 1 that pass the channels ``rows`` of a node on unchanged."""
    channels, bias = len(rows), torch.zeros(len(rows), dtype=torch.float64)
    shape = (channels, *node.shape[1:])
    if node.flat:
        size = node.shape[1] * node.shape[2]
        taken = torch.eye(node.shape[0] * size, dtype=torch.float64).reshape(node.shape[0], size, -1)[rows]
        weight, bias = taken.reshape(channels * size, -1), bias.repeat_interleave(size)
        return Linear(node.source, (node,), shape, weight, bias, flat=True)
    if channels == node.shape[0] and (rows == np.arange(channels)).all():
        return Conv(node.source, (node,), shape, bias.new_ones(channels, 1, 1, 1), bias, groups=channels)
    weight = bias.new_zeros(channels, node.shape[0], 1, 1)
    weight[np.arange(channels), rows] = 1
    return Conv(node.source, (node,), shape, weight, bias)


def pool(x: Signal, kernel: Pair, stride: Pair, padding: Pair, source: str) -> Signal:
    """Average pooling works channel by channel, so it commutes with sums and with renumbering."""
    require_fed(x, source)
    size = output_size(x.shape[1:], kernel, stride, padding)
    if min(size) < 1:
        raise SpikeportError(f"{source}: its window does not fit on a map of {x.shape[1:]}")
    if all(t.whole for t in x.terms):
        return whole(Pool(source, distinct(x.nodes), (x.shape[0], *size), kernel, stride, padding), x.flat)
    means = {node: Pool(source, (node,), (node.shape[0], *size), kernel, stride, padding) for node in x.nodes}
    return Signal((x.shape[0], *size), tuple(Term(means[t.node], t.index) for t in x.terms), x.flat)


def windows(x: Signal, weight: float, kernel: Pair, stride: Pair, padding: Pair, source: str) -> Signal:
    """The sum of every window of each channel, times ``weight``."""
    ones = torch.full((x.shape[0], 1, *kernel), weight, dtype=torch.float64)
    return convolve(x, ones, ones.new_zeros(x.shape[0]), stride, padding, (1, 1), x.shape[0], source)


def placed(x: Signal, rows: range, columns: range, source: str) -> Signal:
    """Maps whose row i is row ``rows[i]`` of x, zeros where that lies outside it; and columns likewise.

    Convolutions whose kernel is a single 1. What passes spikes on so belongs to the layer that fired them.
    """
    height, width = x.shape[1:]
    if (rows, columns) == (range(height), range(width)):
        return x
    (kernel_h, row, top), (kernel_w, column, left) = _tap(height, rows), _tap(width, columns)
    around = (column, kernel_w - 1 - column, row, kernel_h - 1 - row)
    size, steps = (len(rows), len(columns)), (rows.step, columns.step)

    def part(node: Node) -> Node:
        same = selection(node, np.arange(node.shape[0]))
        assert isinstance(same, Conv)  # flattened maps have no rows and columns
        name = node.source if gives_spikes(node) else source
        weight = torch.nn.functional.pad(same.weight, around)
        return replace(
            same, source=name, shape=(node.shape[0], *size), weight=weight, stride=steps, padding=(top, left)
        )

    parts = {node: part(node) for node in x.nodes}
    return Signal((x.shape[0], *size), tuple(Term(parts[t.node], t.index) for t in x.terms), x.flat)


def padded(x: Signal, before: Pair, behind: Pair, source: str) -> Signal:
    """Maps with so many rows and columns of zeros before and behind them; so many fewer where negative."""
    rows, columns = (range(-b, n + e) for n, b, e in zip(x.shape[1:], before, behind, strict=True))
    return placed(x, rows, columns, source)


def _tap(length: int, taken: range) -> tuple[int, int, int]:
    """Length of a kernel, where its 1 lies, and the padding, that take these places of so many.

    Padding is on both ends: the 1 lies farther along by what there is too much of before, and the kernel is longer by
    what there is too much of behind.
    """
    padding = max(0, -taken[0], taken[-1] - (length - 1))
    place = taken[0] + padding
    return max(place + 1, length + 2 * padding - len(taken) * taken.step + 1), place, padding


def or_pool(x: Signal, kernel: Pair, stride: Pair, padding: Pair, source: str) -> Signal:
    """Max-pooling of spikes: a memoryless neuron that fires where any spike falls into its window.

    The mean of k*k spikes is at least 1/k^2 where one fired; halved by the gain of tau = 2, that is 0.5/k^2,
    above the threshold 0.25/k^2. A neuron that fires is reset and one that does not stays at 0: no memory.
    """
    require_fed(x, source)
    if not x.spiking:
        raise SpikeportError(
            f"{source}: max-pooling of analog values has no exact spiking form; pool after the neurons or use AvgPool2d"
        )
    taken = np.sum([t.index >= 0 for t in x.terms], axis=0)
    if taken.max() > 1:
        raise SpikeportError(f"{source}: max-pooling of a sum of spikes is not an OR; pool the branches before the sum")
    pooled = {}
    for node in x.nodes:
        mean = pool(whole(node), kernel, stride, padding, source).nodes[0]
        pooled[node] = Neuron(
            source, (mean,), mean.shape, tau=2.0, gain=0.5, v_threshold=0.25 / (kernel[0] * kernel[1])
        )
    terms = tuple(Term(pooled[t.node], t.index) for t in x.terms)
    return Signal((x.shape[0], *terms[0].node.shape[1:]), terms, x.flat)
