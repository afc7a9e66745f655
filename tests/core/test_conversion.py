"""convert: a CNN's twin is the network one would have written by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from spikeport.core import LIF, SpikeportError, TimeMean, convert, lif
from spikeport.core.models import FORMS, MODELS, ModelSpec, Twin


def enliven(model):
    """BatchNorm biases and gains that make an untrained network spike, the same for equal layers."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, -0.5, 2.0, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 3.0, generator=generator)
    return model.eval()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", list(MODELS))
def test_converting_the_cnn_gives_the_snn(name, form):
    cnn = ModelSpec(name, Twin("cnn"), width=0.25).build().eval()
    snn = enliven(ModelSpec(name, Twin("snn", spiking=form, v_threshold=0.05, alpha=5.0), width=0.25).build())
    twin = enliven(convert(cnn, spiking=form, v_threshold=0.05, alpha=5.0))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    spikes = []
    for module in twin.modules():
        if isinstance(module, LIF):
            module.register_forward_hook(lambda m, a, y: spikes.append(float(y.mean())))
    with torch.no_grad():
        assert torch.equal(twin(x), snn(x))
    neurons = [[m.alpha for m in net.modules() if isinstance(m, LIF)] for net in (twin, snn)]
    assert neurons == [[5.0] * len(spikes)] * 2
    assert min(spikes) > 0, "a silent layer proves nothing"


class Mixed(nn.Module):
    """ReLU as a module used twice, as a function and as a method; a skip from the input."""

    def __init__(self):
        super().__init__()
        self.a, self.skip = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 1)
        self.b, self.c = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(64, 3)

    def forward(self, x):
        skip = self.skip(x)
        y = self.relu(self.a(x))
        y = F.relu(self.b(y) + skip)
        y = self.relu(self.c(y)).relu()
        return self.head(y.view(y.size(0), -1))


def test_relus_are_found_however_they_are_called():
    twin = convert(Mixed(), time_steps=3)
    lifs = [m for m in twin.modules() if isinstance(m, LIF)]
    assert [m.constant_input for m in lifs].count(True) == 1
    assert len({id(m) for m in lifs}) == 4
    assert not any(isinstance(m, nn.ReLU) for _, m in twin.named_modules() if m in list(twin.children()))


def test_a_current_from_the_input_is_held_where_it_joins():
    net = Mixed().eval()
    twin = convert(net, time_steps=3, tau=1.5)
    x = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 3
    by_hand = []
    states = [None] * 4
    for _ in range(3):
        skip, value = net.skip(x), net.a(x)
        for k, layer in enumerate((lambda s, skip=skip: net.b(s) + skip, net.c, lambda s: s, None)):
            v = torch.zeros_like(value) if states[k] is None else states[k]
            h = v * (1 - 1 / 1.5) + value * (1 / 1.5)
            spikes = (h >= 1).float()
            states[k] = h * (1 - spikes)
            value = layer(spikes) if layer else spikes
        by_hand.append(net.head(value.flatten(1)))
    torch.testing.assert_close(twin(x), torch.stack(by_hand).mean(0))


def test_an_input_that_changes_arrives_step_by_step():
    torch.manual_seed(0)
    cnn = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)).eval()
    twin = convert(cnn, time_steps=3, v_threshold=0.2, constant_input=False)
    x = torch.randn(3, 5, 2, 6, 6)
    spikes, _ = lif(torch.stack([cnn[0](step) for step in x]), v_threshold=0.2)
    expected = torch.stack([cnn[3](step.flatten(1)) for step in spikes]).mean(0)
    torch.testing.assert_close(twin(x.flatten(0, 1)), expected)
    held = convert(cnn, time_steps=3, v_threshold=0.2)
    torch.testing.assert_close(twin(x[:1].expand(3, -1, -1, -1, -1).flatten(0, 1)), held(x[0]))


def test_weights_stay_or_are_drawn_anew_and_the_model_is_untouched():
    net = Mixed()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    kept, fresh = convert(net), convert(net, weights=False)
    assert torch.equal(kept.b.weight, net.b.weight)
    assert not torch.equal(fresh.b.weight, net.b.weight)
    kept.b.weight.data.zero_()
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


def test_a_mean_over_time_that_is_there_stays_the_only_one():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2, 3), TimeMean(4))
    assert [type(m) for m in convert(net).modules()].count(TimeMean) == 1


def test_the_twin_learns():
    twin = convert(Mixed())
    twin(torch.randn(2, 2, 4, 4)).square().mean().backward()
    assert float(twin.a.weight.grad.abs().sum()) > 0


def test_what_cannot_be_converted_is_named():
    with pytest.raises(SpikeportError, match="has no ReLU"):
        convert(nn.Sequential(nn.Conv2d(1, 1, 1)))

    class Unused(nn.Conv2d):
        def forward(self, x):
            F.relu(x)
            return super().forward(x)

    with pytest.raises(SpikeportError, match="the output does not depend on any neuron"):
        convert(Unused(1, 1, 1))

    class Branching(Mixed):
        def forward(self, x):
            return super().forward(x) if x.mean() > 0 else super().forward(-x)

    with pytest.raises(SpikeportError, match="Branching cannot be traced"):
        convert(Branching())


def test_relu6_is_a_neuron_and_other_activations_are_named():
    layers = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU6(), nn.Conv2d(2, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(8, 3))
    with pytest.warns(RuntimeWarning, match=r"SiLU \(3\)"):
        twin = convert(layers)
    assert [type(module) for module in twin.children()][1] is LIF

    class Functions(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
            self.gain = nn.Parameter(torch.ones(2))

        def forward(self, x):
            x = F.relu6(self.a(x)) * self.gain.clamp(0, 1)
            return self.b(x).clamp(min=0)

    with pytest.warns(RuntimeWarning, match=r"convert: clamp \(clamp_1\): neither") as told:
        convert(Functions())
    assert len(told) == 1


def test_arguments_that_may_be_left_out_have_their_defaults():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 2)

        def forward(self, x, mask=None, scale=2.0, *, squared=False, **others):
            x = torch.relu(self.a(x)) * scale
            x = x if mask is None else x * mask
            return self.b(x * x if squared else x)

    torch.manual_seed(0)
    net = Masked()
    twin, x = convert(net), torch.randn(4, 2)
    (lif,) = (module for module in twin.modules() if isinstance(module, LIF))
    wanted = net.b(lif(net.a(x)) * 2.0).unflatten(0, (4, 4)).mean(0)
    assert torch.equal(twin(x), wanted)


def test_every_layer_knows_convolutions_called_as_functions():
    class Functions(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(2, 1, 3, 3))
            self.b, self.c = nn.Conv2d(2, 2, 3), nn.Linear(8, 2)

        def forward(self, x):
            x = torch.relu(self.b(F.conv2d(x, self.w)))
            return self.c(x.flatten(1))

    twin = convert(Functions(), spiking="every-layer")
    assert sum(isinstance(module, LIF) for module in twin.modules()) == 2


class Functional(nn.Module):
    """A convolution with ReLU, then what ``rest`` makes of it."""

    def __init__(self, rest):
        super().__init__()
        self.a, self.b, self.rest = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4), rest

    def forward(self, x):
        return self.b(self.rest(torch.relu(self.a(x))).mean((2, 3)))


@pytest.mark.parametrize(
    "rest",
    [
        lambda y: y.chunk(2)[0],
        lambda y: torch.chunk(y, 2, dim=0)[1],
        lambda y: torch.cat([y, y]),
        lambda y: torch.cat((y, y), axis=0),
        lambda y: y.narrow(0, 0, 1),
        lambda y: torch.split(y, 1)[0],
        lambda y: y.flip(0),
        lambda y: y.flip((0, 2)),
        lambda y: torch.roll(y, 1, 0),
        lambda y: y[1:],
        lambda y: y[::2, :4],
        lambda y: y[[1, 0]],
        lambda y: torch.cat([y, y], -4),
        lambda y: y - y.mean(0),
        lambda y: y / y.std(),
        lambda y: y - y.amax((0, 2, 3), keepdim=True),
        lambda y: y.cumsum(dim=0),
        lambda y: y.repeat(2, 1, 1, 1),
        lambda y: y.tile((2, 1, 1, 1)),
    ],
)
def test_samples_are_not_cut_or_joined_where_time_steps_lie_beside_them(rest):
    with pytest.raises(SpikeportError, match=r"\(\) works along dimension 0, where the samples lie"):
        convert(Functional(rest))


@pytest.mark.parametrize(
    "rest",
    [
        lambda y: torch.cat(y.chunk(2, 1)[::-1], 1),
        lambda y: torch.stack([y, y]).sum(0),
        lambda y: y[:, [1, 0, 2, 3, 4, 5, 6, 7]],
        lambda y: y[..., 1:].flip(2, 3),
        lambda y: (y - y.mean(1, keepdim=True)).repeat(1, 1, 2, 1),
        lambda y: torch.max(y, y.amax((2, 3), keepdim=True)),
        lambda y: torch.cat(tensors=[y[:, :4], y.narrow(1, 4, 4)], dim=1).roll(1, (2,)),
    ],
)
def test_channels_and_places_are_cut_and_joined(rest):
    torch.manual_seed(0)
    network, x = Functional(rest).eval(), torch.randn(2, 3, 6, 6)
    twin = convert(network, time_steps=3, v_threshold=0.2)
    (lif,) = (module for module in twin.modules() if isinstance(module, LIF))
    wanted = network.b(rest(lif(network.a(x))).mean((2, 3))).unflatten(0, (3, 2)).mean(0)
    assert torch.equal(twin(x), wanted)


def test_a_relu_that_is_called_as_a_function_takes_no_modules_name():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.relu, self.c = (
                nn.Conv2d(2, 4, 3),
                nn.Conv2d(4, 4, 3),
                nn.Conv2d(4, 4, 1),
                nn.Linear(16, 3),
            )

        def forward(self, x):
            return self.c(self.relu(self.b(F.relu(self.a(x)))).flatten(1))

    twin = convert(Both())
    assert isinstance(twin.relu, nn.Conv2d)
    assert [name for name, module in twin.named_modules() if isinstance(module, LIF)] == ["relu_2"]


def test_layers_of_ones_own_are_looked_into_where_they_are_parametrized():
    class Own(nn.Conv2d):
        def forward(self, x):
            return F.relu(super().forward(x))

    twin = convert(
        nn.Sequential(weight_norm(Own(2, 4, 3)), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    )
    assert sum(isinstance(module, LIF) for module in twin.modules()) == 2


def test_the_input_may_be_cut_along_the_samples():
    class Siamese(Functional):
        def forward(self, x):
            first, second = x.chunk(2, 0)
            return super().forward(first) - super().forward(second)

    torch.manual_seed(0)
    network, x = Siamese(lambda y: y).eval(), torch.randn(4, 3, 6, 6)
    twin, one = convert(network, time_steps=3), convert(Functional(lambda y: y), time_steps=3)
    one.load_state_dict(network.state_dict())
    assert torch.allclose(twin(x), one(x[:2]) - one(x[2:]), atol=1e-6)
