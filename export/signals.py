"""What a model's tensors are while it is rewritten: signals, made of the nodes that a chip can hold.

A *node* is synapses (``Conv``, ``Linear``), average pooling, or neurons; its inputs are summed. A *signal* is what a
tensor of the model is in terms of nodes: each of its channels is a sum of channels of nodes.

Weights are float64 tensors: traced with gradients, they lead back to the model's parameters.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from spikeport.core.errors import SpikeportError
from spikeport.core.geometry import Pair, Shape


def map_shape(shape: tuple[int, ...]) -> Shape:
    """(C, H, W) as it is, (F,) as (F, 1, 1). Raises SpikeportError for another."""
    if len(shape) not in (1, 3) or min(shape) < 1:
        raise SpikeportError(f"input shape {shape}; expected (C, H, W) or (F,)")
    channels, height, width = shape if len(shape) == 3 else (shape[0], 1, 1)
    return channels, height, width


@dataclass(frozen=True, eq=False)
class Node:
    """Base of all nodes.

    Attributes:
        source: name of the layer of the PyTorch model it comes from.
        inputs: the nodes whose values are summed at its entrance.
        shape: channels, height, width of its output.
        flat: whether the file holds its output as one axis, C * H * W.
    """

    source: str
    inputs: tuple["Node", ...] = field(repr=False)  # theirs and so on: ways up double at every residual connection
    shape: Shape
    flat: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, eq=False)
class Input(Node):
    """The network's input tensor."""


@dataclass(frozen=True, eq=False)
class Conv(Node):
    """Conv2d: weight float64 [O, I / groups, kH, kW], bias float64 [O]."""

    weight: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Linear(Node):
    """Linear over the flattened input: weight float64 [O, C * H * W], bias float64 [O]; shape [O, 1, 1]."""

    weight: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)


@dataclass(frozen=True, eq=False)
class Pool(Node):
    """AvgPool2d without ceil_mode; zeros of the padding count."""

    kernel: Pair
    stride: Pair
    padding: Pair


@dataclass(frozen=True, eq=False)
class Neuron(Node):
    """LIF with hard reset, measured from v_reset: h = v * (1 - 1/tau) + gain * x, fires at h >= v_threshold.

    ``gain`` is 1/tau, or 1 where the input does not decay; tau is infinite for an integrator (IF).
    """

    tau: float
    gain: float
    v_threshold: float
    v_reset: float = 0.0


@dataclass(frozen=True, eq=False)
class Term:
    """A node in a signal: channel c of the signal takes channel ``index[c]`` of the node, nothing where -1."""

    node: Node
    index: np.ndarray

    @property
    def whole(self) -> bool:
        """Whether the signal takes the node's channels one by one, all of them, in order."""
        return len(self.index) == self.node.shape[0] and bool((self.index == np.arange(len(self.index))).all())

    def select(self, channels: np.ndarray) -> "Term":
        return Term(self.node, np.where(channels >= 0, self.index[channels], -1))


@dataclass(frozen=True, eq=False)
class Signal:
    """A tensor of the model: the sum of its terms. ``flat``: the model sees [N, C * H * W]."""

    shape: Shape
    terms: tuple[Term, ...]
    flat: bool = False

    @property
    def spiking(self) -> bool:
        """Whether every term gives spikes."""
        return all(gives_spikes(node) for node in self.nodes)

    @property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(t.node for t in self.terms)


def gives_spikes(node: Node) -> bool:
    """Whether a node is neurons, or passes at most one of their spikes on to each place."""
    if not isinstance(node, Conv):
        return isinstance(node, Neuron)
    ones, taps = node.weight == 1, node.weight != 0
    single = torch.equal(ones, taps) and int(taps.sum((1, 2, 3)).max()) <= 1 and not node.bias.any()
    return single and len(node.inputs) == 1 and gives_spikes(node.inputs[0])


def whole(node: Node, flat: bool = False) -> Signal:
    """All channels of a node, in order."""
    return Signal(node.shape, (Term(node, np.arange(node.shape[0])),), flat)
