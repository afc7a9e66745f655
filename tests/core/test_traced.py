"""What a traced network knows of samples, steps and modes: constants, sizes, dropout."""

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from torch import nn
from torch.nn import functional as F

from spikeport.core import LIF, SpikeportError, convert


class Net(nn.Module):
    """Convolution, ReLU, and what is made of its maps."""

    def __init__(self, end, activation=None):
        super().__init__()
        torch.manual_seed(0)
        self.c, self.act, self.end = nn.Conv2d(2, 4, 3, padding=1), activation or nn.ReLU(), end
        self.fc = nn.Linear(4, 5)
        self.w, self.scale = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.rand(1, 4, 1, 1) + 0.5)

    def forward(self, x):
        return self.end(self, x)


def own_weights(net, x):
    return F.linear(net.act(net.c(x)).mean((2, 3)), net.w)


def own_scale(net, x):
    return net.fc((net.act(net.c(x)) * net.scale).mean((2, 3)))


def own_constant(net, x):
    return net.fc(net.act(net.c(x)).mean((2, 3)) + torch.tensor([1.0, 2.0, 3.0, 4.0]))


def size_before(net, x):
    n = x.size(0)
    return net.fc(net.act(net.c(x)).reshape(n, 4, -1).mean(2))


def shape_before(net, x):
    n, h = x.shape[0], x.shape[-1]
    return net.fc(net.act(net.c(x)).view(n, 4, h * h).mean(2))


def sizes_before(net, x):
    n, _, h, w = x.size()
    return net.fc(net.act(net.c(x)).view(n, 4, h * w).mean(2))


def slice_before(net, x):
    h, w = x.shape[-2:]
    return net.fc(F.adaptive_avg_pool2d(net.act(net.c(x)), (h // h, w // w)).flatten(1))


ENDS = (own_weights, own_scale, own_constant, size_before, shape_before, sizes_before, slice_before)


@pytest.mark.parametrize("samples", [1, 3, 8])
@pytest.mark.parametrize("end", ENDS)
def test_the_twin_is_the_network_with_stateful_neurons_step_by_step(end, samples):
    twin = convert(Net(end), time_steps=4, tau=2.0, v_threshold=0.3).eval()
    stateful = Net(end, neuron.LIFNode(tau=2.0, v_threshold=0.3)).eval()
    x = torch.rand(samples, 2, 6, 6)
    with torch.no_grad():
        expected = torch.stack([stateful(x) for _ in range(4)]).mean(0)
        functional.reset_net(stateful)
        assert expected.std()
        torch.testing.assert_close(twin(x), expected)


def test_numbers_reckoned_from_the_samples_before_the_steps_are_refused():
    def reckoned(net, x):
        rows = x.size(0) * 2
        return net.fc(net.act(net.c(x)).reshape(rows, 4, -1).mean(2))

    with pytest.raises(SpikeportError, match=r"takes the number of samples from .*read it from the tensor"):
        convert(Net(reckoned))


@pytest.mark.parametrize("training", [True, False])
def test_dropout_that_follows_the_mode_goes_on_following_it(training):
    def dropping(net, x):
        return net.fc(F.dropout(net.act(net.c(x)), 0.5, training=net.training).mean((2, 3)))

    twin = convert(Net(dropping).train(training), v_threshold=0.3)
    x = torch.rand(2, 2, 6, 6)
    assert twin.training == training
    assert torch.equal(twin.eval()(x), twin(x))
    assert not torch.equal(twin.train()(x), twin(x))


def test_dropout_that_does_not_follow_the_mode_stays_so():
    def dropping(net, x):
        return net.fc(F.dropout(net.act(net.c(x)), 0.5).mean((2, 3)))

    twin = convert(Net(dropping), v_threshold=0.3).eval()
    x = torch.rand(2, 2, 6, 6)
    assert not torch.equal(twin(x), twin(x))


class InPlace(nn.Module):
    """A ReLU whose input is read again afterwards, under both of its names."""

    def __init__(self, how: str):
        super().__init__()
        self.how, self.relu = how, nn.ReLU(inplace=True)
        self.a, self.b, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        x = self.a(x)
        if self.how == "module":
            y = self.relu(x)
            x = self.b(x) + 0 * self.b(y)
        elif self.how == "method":
            x.relu_()
            x = self.b(x)
        else:
            F.relu(x, inplace=True) if self.how == "function" else F.relu_(x)
            x = self.b(x)
        return self.head(F.relu(x).mean((2, 3)))


@pytest.mark.parametrize("how", ["module", "method", "function", "underscore"])
def test_what_is_read_after_a_relu_in_place_is_what_the_neuron_fired(how):
    twin = convert(InPlace(how), time_steps=2)
    (first,) = [n for n in twin.graph.nodes if n.op == "call_module" and n.target == "a"]
    (only,) = first.users
    assert isinstance(twin.get_submodule(only.target), LIF)
    assert {user.target for user in only.users} == {"b"}


class Moody(nn.Module):
    def __init__(self, what: str):
        super().__init__()
        self.what, self.conv, self.head = what, nn.Conv2d(1, 4, 3), nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x):
        x = self.conv(x)
        if self.what == "norm":
            x = F.batch_norm(x, self.mean, self.var, training=self.training)
        x = torch.maximum(F.relu(x), torch.tensor(0.0))
        if self.what == "noise" and self.training:
            x = x + torch.randn_like(x)
        if self.what == "slopes":
            x = F.rrelu(x, training=self.training)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(("what", "node"), [("norm", "batch_norm"), ("noise", "randn_like"), ("slopes", "rrelu")])
def test_what_only_training_does_is_refused_by_name(what, node):
    with pytest.raises(SpikeportError, match=f"{node} is not the same in training and in evaluation"):
        convert(Moody(what))
    twin = convert(Moody(what).eval()).train().eval()
    x = torch.randn(2, 1, 6, 6)
    assert torch.equal(twin(x), twin(x))
    assert convert(Moody("nothing")).training
