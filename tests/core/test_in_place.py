"""Networks that write in place become networks that do not, with the same values; what cannot is refused."""

import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from spikeport.core import SpikeportError, convert
from spikeport.core.tracing import trace_module

TWO = {"add": operator.add, "+=": operator.iadd, "-=": operator.isub, "add_": lambda a, b: a.add_(b)}
ONE = {
    "relu": torch.relu,
    "relu_": torch.relu_,
    ".relu_": lambda a: a.relu_(),
    "inplace": lambda a: F.relu(a, inplace=True),
    "positional": lambda a: F.relu(a, True),
    "leaky_relu_": lambda a: F.leaky_relu_(a, 0.5),
    "mul_": lambda a: a.mul_(2),
    "contiguous": lambda a: a.contiguous(),
    "detach": lambda a: a.detach(),
    "view": lambda a: a.view(a.shape[0], a.shape[1], 2, 2),
    "transposed": lambda a: a.mT.mT,
    "moved": lambda a: a.movedim(2, 3),
    "added to a view": lambda a: a.flatten(2).add_(1).unflatten(2, (2, 2)),
    "slice": lambda a: a[:, 1:],
}


class Program(nn.Module):
    """A pool of tensors: each operation takes one or two of them and adds what it gives."""

    def __init__(self, operations):
        super().__init__()
        self.operations = operations
        self.relu, self.same, self.dropped = nn.ReLU(inplace=True), nn.Identity(), nn.Dropout()

    def forward(self, x):
        pool, channels = [x, x + 1], [4, 4]
        for name, i, j in self.operations:
            i, j = i % len(pool), j % len(pool)
            if name == "chunk":
                if channels[i] % 2 == 0:
                    parts = torch.chunk(pool[i], 2, 1)
                    pool += [parts[0], parts[1]]
                    channels += [channels[i] // 2] * 2
            elif name == "reversed":
                pool.append(pool[i][:, list(reversed(range(channels[i])))])
                channels.append(channels[i])
            elif name in TWO:
                if channels[i] == channels[j]:
                    pool.append(TWO[name](pool[i], pool[j]))
                    channels.append(channels[i])
            elif name in ("relu module", "identity", "dropout"):
                module = {"relu module": self.relu, "identity": self.same, "dropout": self.dropped}[name]
                pool.append(module(pool[i]))
                channels.append(channels[i])
            elif name != "slice" or channels[i] > 1:
                pool.append(ONE[name](pool[i]))
                channels.append(channels[i] - (name == "slice"))
        return torch.cat(pool, 1)


names = st.sampled_from([*TWO, *ONE, "chunk", "reversed", "relu module", "identity", "dropout"])
places = st.integers(0, 9)


@settings(max_examples=4 * settings.default.max_examples)
@given(st.lists(st.tuples(names, places, places), min_size=1, max_size=8))
def test_the_values_are_those_of_the_network_or_it_is_refused(operations):
    network = Program(operations).eval()
    x = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    try:
        graph = trace_module(network)
    except SpikeportError as error:
        assert "writes in place to memory of which" in str(error)  # noqa: PT017
        return
    given, expected = x.clone(), network(x.clone())
    assert torch.equal(graph(given), expected)
    assert torch.equal(given, x)


class Block(nn.Module):
    """A convolution and a neuron, then what ``rest`` makes of them."""

    def __init__(self, rest, relu):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.rest = nn.Conv2d(3, 4, 3, padding=1), relu, rest
        self.same, self.dropped, self.other = nn.Identity(), nn.Dropout2d(), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4 * 36, 5)

    def forward(self, x):
        return self.head(self.rest(self, self.relu(self.conv(x))).flatten(1))


def shortcut(through, add):
    """A residual block whose shortcut is taken before the neurons write in place."""

    def rest(block, y):
        skip = through(block, y)
        y = block.relu(y)
        return torch.relu(add(block.other(y), skip))

    return rest


def added(block, y):
    skip = y
    y += block.other(y)
    return torch.relu(block.other(y) + skip)


THROUGH = {
    "identity": lambda block, y: block.same(y),
    "dropout": lambda block, y: block.dropped(y),
    "itself": lambda block, y: y,
}


def twin(rest, relu):
    return convert(Block(rest, relu).eval(), time_steps=3, v_threshold=0.1)


@pytest.mark.parametrize("name", THROUGH)
def test_a_shortcut_has_what_neurons_in_place_made_of_it(name):
    def explicit(block, y):
        y = block.relu(y)
        return torch.relu(block.other(y) + y)

    x = torch.randn(4, 3, 6, 6)
    given = twin(shortcut(THROUGH[name], operator.iadd), nn.ReLU(inplace=True))
    assert torch.equal(given(x), twin(explicit, nn.ReLU())(x))
    assert given(x).any()


@pytest.mark.parametrize(
    ("through", "training"),
    [
        (lambda block, y: block.dropped(y), True),  # in evaluation it is y itself
        (lambda block, y: F.dropout(y, training=block.training), True),
        (lambda block, y: y.contiguous(), False),  # which of them it is, y's layout decides
        (lambda block, y: y.double(), False),
        (lambda block, y: y.to(torch.float32), False),
        (lambda block, y: y.movedim(1, 1), False),
        (lambda block, y: y.swapdims(2, 3), False),
        (lambda block, y: y.diagonal(0, 2, 3), False),
        (lambda block, y: y.unfold(1, 1, 1), False),
        (lambda block, y: y[:, 1:], False),
        (lambda block, y: y[:, y.shape[1] - 1], False),
    ],
)
def test_what_may_be_memory_that_is_written_to_is_refused(through, training):
    network = Block(shortcut(through, operator.add), nn.ReLU(inplace=True)).train(training)
    with pytest.raises(SpikeportError, match=r"writes in place to memory of which \w+ reads another view"):
        trace_module(network)


@pytest.mark.parametrize("attribute", ["mT", "data"])
def test_what_is_written_to_a_view_that_is_an_attribute_is_not_lost(attribute):
    def rest(block, y):
        getattr(y, attribute).add_(1.0)
        return block.relu(y)

    with pytest.raises(SpikeportError, match="add_ writes in place to memory of which relu_1 reads another view"):
        trace_module(Block(rest, nn.ReLU()))


@pytest.mark.parametrize("key", [[3, 2, 1, 0], torch.tensor([3, 2, 1, 0])])
def test_channels_in_another_order_are_a_copy(key):
    def rest(block, y):
        other = y[:, key]
        return block.relu(other) + y

    network, x = Block(rest, nn.ReLU(inplace=True)).eval(), torch.randn(2, 3, 6, 6)
    assert torch.equal(trace_module(network)(x), network(x))


def test_a_view_that_was_written_to_may_be_read_again():
    def rest(block, y):
        view = y.flatten(2)
        view += 1
        return block.relu(view)

    network, x = Block(rest, nn.ReLU(inplace=True)).eval(), torch.randn(2, 3, 6, 6)
    assert torch.equal(trace_module(network)(x), network(x))


def test_a_name_kept_from_before_a_sum_in_place_has_the_sum():
    def explicit(block, y):
        y = y + block.other(y)
        return torch.relu(block.other(y) + y)

    x = torch.randn(4, 3, 6, 6)
    assert torch.equal(twin(added, nn.ReLU())(x), twin(explicit, nn.ReLU())(x))


def test_one_half_in_place_leaves_the_other_and_changes_the_whole():
    def halves(block, y):
        a, b = y.chunk(2, 1)
        return torch.cat([F.relu(a, inplace=True), b], 1)

    def whole(block, y):
        a, _ = y.chunk(2, 1)
        return torch.cat([F.relu(a, inplace=True), y], 1)[:, :4]

    assert twin(halves, nn.ReLU())(torch.randn(2, 3, 6, 6)).any()
    with pytest.raises(SpikeportError, match="relu_1 writes in place to memory of which cat reads another view, relu;"):
        twin(whole, nn.ReLU())
