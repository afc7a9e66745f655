"""Rewriting is exact: in float64 the graph fires where the model fires, for any network it accepts."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from networks import OPS, RandomNet, drawn, random_nets
from torch import nn
from torch.nn import functional as F

from spikeport.core import LIF, SpikeportError, TimeMean
from spikeport.core.neurons import HoldTime
from spikeport.export.interpreter import interpret
from spikeport.export.nir_graph import Metadata, build_nir
from spikeport.export.trace import trace


def run_both(net, x):
    """Spikes and class currents of the model in float64 and of its graph in the interpreter."""
    traced = trace(net, tuple(x.shape[1:]))
    graph, names = build_nir(traced, Metadata(traced.time_steps, input_shape=tuple(x.shape[1:])))
    seen = []
    double = copy.deepcopy(net).double()
    wanted = {layer for layer, _ in traced.observed}
    for layer, module in double.named_modules():
        if layer in wanted:
            module.register_forward_hook(lambda m, a, y: seen.append(y.unflatten(0, (traced.time_steps, -1)).numpy()))
    with torch.no_grad():
        prediction = double(x.double()).numpy()
    found = interpret(graph, x.double().numpy())
    pairs = []
    for (_, signal), expected in zip(traced.observed, seen, strict=True):
        joined = np.zeros(expected.shape)
        for term in signal.terms:
            used = np.flatnonzero(term.index >= 0)
            joined[:, :, used] += found.spikes[names[term.node]][:, :, term.index[used]]
        pairs.append((expected, joined))
    return pairs, prediction, found.prediction


@settings(max_examples=max(300, settings().max_examples))
@given(random_nets())
def test_every_spike_of_a_random_network_survives(case):
    net, x = case
    pairs, expected, found = run_both(net, x)
    for model, graph in pairs:
        np.testing.assert_array_equal(model, graph)
    np.testing.assert_allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("op", OPS)
def test_every_construct_alone_and_it_does_spike(op):
    net = RandomNet(["conv", op, "grouped"], 6, 8, 3, 5, True).eval()
    pairs, expected, found = run_both(net, torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(1)))
    for model, graph in pairs:
        np.testing.assert_array_equal(model, graph)
    assert pairs[0][0].sum() > 0
    np.testing.assert_allclose(found, expected, atol=1e-10)


@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_max_pooling_of_spikes_is_the_or_neuron(seed, kernel, stride, ceil_mode):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fire = LIF(time_steps=3, constant_input=True, tau=1.7)
            self.pool = nn.MaxPool2d(kernel, stride, padding=kernel // 2, ceil_mode=ceil_mode)
            self.head = nn.Conv2d(2, 1, 1)
            self.end = TimeMean(3)

        def forward(self, x):
            return self.end(F.adaptive_avg_pool2d(self.head(self.pool(self.fire(x))), 1).flatten(1))

    x = torch.randn(2, 2, 7, 6, generator=torch.Generator().manual_seed(seed)) * 3
    pairs, expected, found = run_both(Net().eval(), x)
    for model, graph in pairs:
        np.testing.assert_array_equal(model, graph)
    np.testing.assert_allclose(found, expected, atol=1e-12)


class Chain(nn.Module):
    """conv - LIF - the layer in question - conv - read-out."""

    def __init__(self, middle, first=True, channels=4):
        super().__init__()
        self.stem = nn.Conv2d(2, channels, 3, padding=1)
        self.act = LIF(time_steps=2, constant_input=first)
        self.middle = middle
        self.head = nn.Conv2d(channels, 3, 1)
        self.end = TimeMean(2)

    def forward(self, x):
        return self.end(F.adaptive_avg_pool2d(self.head(self.middle(self.act(self.stem(x)))), 1).flatten(1))


class Doubled(nn.Module):
    def forward(self, x):
        return F.max_pool2d(x + x, 2)


class Copies(nn.Module):
    def forward(self, x):
        return x[:, [0, 1, 1, 0]]


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / self.weight.std()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class FlatNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm1d(4 * 8 * 8)

    def forward(self, x):
        return self.norm(self.conv(x).flatten(1))


class Parts(nn.Module):
    def forward(self, x):
        return x.flatten(1).split(128, 1)[1]


class Broadcast(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(256, 256)

    def forward(self, x):
        x = x.flatten(1)
        return self.fc(x) + x


class InPlace(nn.Module):
    def forward(self, x):
        half = x[:, 2:]
        return torch.cat([half.add_(half), x[:, :2]], 1)


class Pads(nn.Module):
    def __init__(self, *pad, **options):
        super().__init__()
        self.pad, self.options = pad, options

    def forward(self, x):
        return F.pad(x, self.pad, **self.options)


class Does(nn.Module):
    """What a function of maps gives, which may look at the module's mode."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def does(function):
    return Does(lambda module, x: function(x))


NOTHING = does(lambda x: F.pad(x, (0, 0, 0, 0, 4, 0))[:, :4])


@pytest.mark.parametrize(
    ("middle", "message"),
    [
        (does(lambda x: x.mean(1)), r"mean: averages over dimensions 1; only mean\(\(2, 3\)\) has an exact form"),
        (does(lambda x: x.mean()), r"mean: averages over dimensions None; only mean\(\(2, 3\)\) has an exact form"),
        (does(lambda x: F.adaptive_avg_pool2d(x, 1).squeeze()), r"squeezes an axis, .*; write flatten\(1\)"),
        (does(lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(0)), r"squeezes an axis, .*; write flatten\(1\)"),
        (does(lambda x: x.mean(-1)), r"head .Conv2d.: takes maps that lost .*, \['N', 4, 8\]; flatten\(1\) makes"),
        (does(lambda x: x.mean(-1).chunk(2, 1)[0]), r"chunk\(\) of maps that lost their rows or columns"),
        (does(lambda x: x[:, :, 8]), r"getitem\(maps \(4, 8, 8\), .*\) has no exact form"),
        (nn.ReLU(), "middle .ReLU.: has no exact spiking form; replace it by LIF"),
        (nn.Softmax(1), "middle .Softmax.: has no exact spiking form"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padding_mode 'reflect'"),
        (nn.AvgPool2d(3, ceil_mode=True), r"middle: with ceil_mode its windows reach beyond maps of \(8, 8\)"),
        (nn.MaxPool2d(2, dilation=2), "middle: max-pooling with dilation"),
        (nn.Sequential(nn.Conv2d(4, 4, 1), nn.MaxPool2d(2)), "middle.1: max-pooling of analog values"),
        (Doubled(), "max-pooling of a sum of spikes is not an OR"),
        (nn.BatchNorm2d(4, track_running_stats=False), "without running statistics"),
        (FlatNorm(), "middle.norm: normalises 256 features of flattened maps of 4 channels"),
        (Parts(), "splits flattened maps"),
        (Broadcast(), "adds flattened maps and features, .*; give the flattened maps a linear layer of their own"),
        (InPlace(), "add_ writes in place to memory of which getitem_1 reads another view, act; write it out of place"),
        (nn.AvgPool2d(3, 1, 1, count_include_pad=False), "middle: average pooling"),
        (nn.AdaptiveAvgPool2d(3), "do not divide evenly into .3, 3.; use AvgPool2d"),
        (nn.AdaptiveAvgPool2d(16), "do not divide evenly into .16, 16.; leave it out"),
        (nn.ConstantPad2d(1, 0.5), r"pads \(1, 1, 1, 1\) \(constant, 0.5\)"),
        (does(lambda x: x[:, [[1, 0], [2, 3]]].flatten(1, 2)), "only slices of channels, rows and columns"),
        (does(lambda x: x[:, [4]]), r"getitem\(maps \(4, 8, 8\), .*\) has no exact form"),
        (does(lambda x: x.unflatten(1, (2, 2)).chunk(2, 1)[0]), r"chunk\(\) of channels in groups has no exact form"),
        (does(lambda x: x.unflatten(1, (2, 2)).mean((3, 4))), r"mean\(\) of channels in groups has no exact form"),
        (does(lambda x: torch.cat([x.unflatten(1, (2, 2))], 1)), r"cat\(\) of channels in groups has no exact form"),
        (does(lambda x: x.view(2, -1, 4, 8, 8).transpose(1, 2)), "only flattening and splitting channels into groups"),
        (does(lambda x: x.view(2, -1, 2, 8, 8).transpose(1, 2)), "only flattening and splitting channels into groups"),
        (does(lambda x: x.flatten(1).view(-1, 4, 8, 8)), r"views \(-1, 256\) as \(-1, 4, 8, 8\); only flattening and"),
        (
            does(lambda x: x.flatten(1).view(-1, 2, 2, 8, 8).transpose(1, 2)),
            r"views \(-1, 256\) as \(-1, 2, 2, 8, 8\);",
        ),
        (does(lambda x: x.unflatten(2, (2, 4)).flatten(1, 2)), "unflatten: adds or repeats an axis"),
        (
            does(lambda x: x.unflatten(1, (2, 2)).transpose(1, 3)),
            "transposes dimensions 1 and 3; only a channel shuffle",
        ),
        (nn.Sequential(nn.Flatten(), nn.AvgPool1d(2, 1)), "middle.1: only the mean of every k features in a row"),
        (nn.Sequential(nn.Flatten(), nn.AvgPool1d(2, 2, 1)), "middle.1: only the mean of every k features in a row"),
        (nn.AvgPool1d(2), "middle: only the mean of every k features in a row has an exact form"),
        (NOTHING, "head: takes channels of zeros alone"),
        (nn.Sequential(NOTHING, nn.MaxPool2d(2)), "middle.1: takes channels of zeros alone"),
        (nn.Sequential(NOTHING, nn.AvgPool2d(2)), "middle.1: takes channels of zeros alone"),
        (nn.Sequential(NOTHING, LIF(time_steps=2)), "middle.1: takes channels of zeros alone"),
        (HoldTime(2), "middle: holds a current that changes from step to step"),
        (TimeMean(2), "head: follows the mean over time; TimeMean must be the last layer"),
        (nn.Conv2d(4, 4, 9), "middle: its kernel does not fit"),
        (nn.Sequential(nn.Conv2d(4, 4, 1), LIF(time_steps=5)), "disagree on the number of time steps"),
        (LIF(time_steps=2, v_threshold=0.0), "middle: v_threshold 0 is not above v_reset 0; raise it"),
        (LIF(time_steps=2, v_threshold=1e-46), "middle: v_threshold 1e-46 is not above v_reset 0; raise it"),
        (LIF(time_steps=2, v_threshold=1 + 1e-9, v_reset=1.0), "middle: v_threshold 1 is not above v_reset 1; raise"),
        (LIF(time_steps=2, v_threshold=1e39), r"middle: v_threshold is 1e\+39, so none of its neurons fires"),
        (
            does(lambda x: x * x),
            r"^in middle \(Does\), mul: multiplies two tensors of the network; only constants have an exact form: add",
        ),
        (does(lambda x: 1 / x), "truediv: divides by a tensor of the network; only constants"),
        (does(lambda x: x / 0), "truediv: multiplies by, or adds, a constant that is NaN or infinite"),
        (
            does(lambda x: x * torch.ones(8)),
            r"mul: takes constants \[8\] with maps \(4, 8, 8\); only one number, or one",
        ),
        (does(lambda x: x[:, :1] + torch.ones(4, 1, 1)), r"add: takes constants \[4, 1, 1\] with maps \(1, 8, 8\)"),
        (does(lambda x: x.chunk(2, 1) * 2), r"mul\(\[maps \(2, 8, 8\), .*\], 2\) has no exact form"),
        (does(lambda x: F.pad(x, (0, 0, 0, 0, 1, 0))[:, :4] + 1), "add: normalises channels that nothing feeds"),
        (does(lambda x: x.sum(1)), r"sum_1: adds up over dimensions 1; only sum\(\(2, 3\)\) has an exact form"),
    ],
)
def test_what_has_no_exact_form_is_refused_by_name(middle, message):
    with pytest.raises(SpikeportError, match=message):
        trace(Chain(middle).eval(), (2, 8, 8))


@pytest.mark.parametrize(
    "middle",
    [
        nn.AvgPool2d(2, divisor_override=4),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.AdaptiveAvgPool2d((4, 2)),
        nn.AdaptiveAvgPool2d((None, 2)),
        nn.AvgPool2d(3, 2, 1, divisor_override=1),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False, divisor_override=5),
        does(lambda x: F.avg_pool2d(x[:, [2, 0, 1, 3]], 2, divisor_override=3)),
        nn.Sequential(nn.Conv2d(4, 2, 1), Copies(), drawn(nn.BatchNorm2d(4), torch.Generator().manual_seed(3))),
        nn.Sequential(Copies(), drawn(nn.BatchNorm2d(4), torch.Generator().manual_seed(3))),
        does(lambda x: 2 - x * torch.tensor([1.0, 0.5, 0.25, 2]).view(1, 4, 1, 1) / 0.5),
        does(lambda x: torch.sub(x, x.neg() + 1, alpha=0.25).add_(1.5).mul_(2)),
        does(lambda x: F.pad(x, (0, 0, 0, 0, 1, 0))[:, :4] * 2),
        does(lambda x: x * 0.3 + 0.1),
        Standardised(4, 4, 3, padding=1),
        does(lambda x: x + 0.0),
        does(lambda x: 0 + (x + 0)),
        does(lambda x: sum([x, x], 0.0)),
        does(lambda x: x.sum((2, 3), keepdim=True)),
        does(lambda x: torch.sum(x, dim=(-1, -2), keepdim=True)),
    ],
)
def test_sums_averages_and_constants_are_exact(middle):
    torch.manual_seed(1)
    net, x = Chain(middle).eval(), torch.randn(3, 2, 8, 8) * 3
    pairs, expected, found = run_both(net, x)
    assert pairs[0][0].sum() > 0
    np.testing.assert_array_equal(*pairs[0])
    np.testing.assert_allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize(
    ("features", "function"),
    [
        (4, lambda x: x.mean(3).mean(2)),
        (4, lambda x: x.mean(-1).mean(-1)),
        (4, lambda x: x.mean(2, keepdim=True).mean(3).flatten(1)),
        (4, lambda x: x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1)),
        (4, lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(3).squeeze(2)),
        (4, lambda x: F.adaptive_avg_pool2d(x, 1).squeeze((2, 3)).squeeze(-1)),
        (4, lambda x: torch.squeeze(F.adaptive_avg_pool2d(x, 1), dim=2).squeeze(2)),
        (4, lambda x: F.avg_pool2d(x, (6, 8))[:, :, 0, 0]),
        (4, lambda x: x[..., -1, 3]),
        (2, lambda x: x[:, 1:3, 2, -1]),
        (8, lambda x: x[:, [1], 2].flatten(1)),
        (6, lambda x: x[:, 1:2, :, 0].view(x.size(0), -1)),
        (24, lambda x: x.sum(-1).flatten(1)),
        (32, lambda x: x.mean(2).reshape(x.shape[0], x.size(1) * x.size(3))),
        (4, lambda x: x.sum(2).mean(-1)),
        (32, lambda x: F.dropout(x.mean(2), training=False).flatten(1)),
    ],
)
def test_maps_lose_their_rows_and_columns_in_any_order(features, function):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.act = nn.Conv2d(2, 4, 3, padding=1), LIF(time_steps=2, constant_input=True, v_threshold=0.3)
            self.head, self.end = nn.Linear(features, 3), TimeMean(2)

        def forward(self, x):
            return self.end(self.head(function(self.act(self.stem(x)))))

    torch.manual_seed(1)
    pairs, expected, found = run_both(Net().eval(), torch.randn(3, 2, 6, 8) * 3)
    assert pairs[0][0].sum() > 0
    np.testing.assert_array_equal(*pairs[0])
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_flattened_maps_are_scaled_by_numbers():
    torch.manual_seed(1)
    first = nn.Conv2d(2, 4, 3, padding=1), LIF(time_steps=2, constant_input=True, v_threshold=0.3), nn.Flatten()
    then = does(lambda x: 2 * x), LIF(time_steps=2), does(lambda x: 1.5 - 0.5 * x), nn.Linear(4 * 5 * 4, 3), TimeMean(2)
    pairs, expected, found = run_both(nn.Sequential(*first, *then).eval(), torch.randn(3, 2, 5, 4) * 3)
    assert 0 < pairs[1][0].mean() < 1
    np.testing.assert_allclose(found, expected, atol=1e-10)


class Slices(nn.Module):
    """A sum of slices of features, by the names of torch.add's arguments."""

    def forward(self, x):
        return torch.add(x[:, 1:3], other=x[:, 2:])


def features(*end, part=None):
    lif = {"time_steps": 2, "v_threshold": 0.1}
    first = nn.Linear(4, 4), LIF(constant_input=True, **lif)
    return nn.Sequential(
        *first, part or Slices(), nn.Linear(2, 4), LIF(**lif), nn.Linear(4, 4), *end, TimeMean(2)
    ).eval()


@pytest.mark.parametrize("part", [Slices(), does(lambda x: x.chunk(2, 1)[1]), does(lambda x: x.split([1, 2, 1], 1)[1])])
def test_features_are_sliced_as_channels_are(part):
    torch.manual_seed(0)
    pairs, wanted, found = run_both(features(part=part), torch.randn(64, 4))
    for ours, theirs in pairs:
        assert ours.any()
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_an_output_that_is_not_one_layers_is_refused():
    with pytest.raises(SpikeportError, match="the output joins or slices what layers give"):
        build_nir(trace(features(Slices()), (4,)), Metadata(2, input_shape=(4,)))


def test_a_second_input_is_refused():
    class Two(Chain):
        def forward(self, x, y):
            return super().forward(x + y)

    with pytest.raises(SpikeportError, match="y: the model takes more than one input; only one is supported"):
        trace(Two(nn.Identity()).eval(), (2, 8, 8))


def test_data_dependent_control_flow_is_refused():
    class Net(Chain):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else super().forward(-x)

    line = r"at test_rewriting.py:\d+: `return .* if x.sum\(\) > 0 .*`\); its forward must do the same for every input"
    with pytest.raises(SpikeportError, match=f"Net cannot be traced .*{line}"):
        trace(Net(nn.Identity()).eval(), (2, 8, 8))


def test_a_model_that_fails_is_not_said_to_depend_on_its_data():
    class Net(Chain):
        def forward(self, x):
            return super().forward(x).step_mode_of(self.nothing)

    with pytest.raises(SpikeportError, match=r"no attribute 'nothing', at .*nothing\)`\); run it once in PyTorch"):
        trace(Net(nn.Identity()).eval(), (2, 8, 8))


def test_unknown_function_is_refused():
    class Net(Chain):
        def forward(self, x):
            return super().forward(torch.sigmoid(x))

    with pytest.raises(SpikeportError, match=r"sigmoid\(\) has no exact spiking form"):
        trace(Net(nn.Identity()).eval(), (2, 8, 8))


def test_nan_weights_are_refused_by_name():
    net = Chain(nn.Identity()).eval()
    net.head.weight.data[0, 0] = torch.nan
    with pytest.raises(SpikeportError, match="head.weight holds NaN"):
        trace(net, (2, 8, 8))


def test_training_mode_and_missing_ends_are_refused():
    with pytest.raises(SpikeportError, match="call model.eval"):
        trace(Chain(nn.Identity()), (2, 8, 8))
    with pytest.raises(SpikeportError, match="no read-out"):
        trace(nn.Sequential(nn.Conv2d(2, 3, 1), LIF(constant_input=True), nn.Conv2d(3, 1, 1)).eval(), (2, 4, 4))
    with pytest.raises(SpikeportError, match="no spiking neurons"):
        trace(nn.Sequential(nn.Conv2d(2, 3, 1), TimeMean(1)).eval(), (2, 4, 4))


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def test_analog_residual_connections_in_a_row_are_looked_through_once_each():
    """The ways up through them are 2^60."""
    blocks = [Residual(nn.Conv2d(1, 1, 1)) for _ in range(60)]
    end = LIF(time_steps=2, constant_input=True), nn.Flatten(), nn.Linear(4, 2), TimeMean(2)
    assert trace(nn.Sequential(*blocks, *end).eval(), (1, 2, 2)).constant_input


class Rows(nn.Module):
    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def forward(self, x):
        return x[:, :, self.rows]


@pytest.mark.parametrize("middle", [Pads(-4, -4), Pads(1, 1, mode="reflect"), Pads(1, 1, value=1.0), Pads(*[0] * 7, 1)])
def test_padding_that_is_no_zeros_around_maps_is_refused(middle):
    with pytest.raises(
        SpikeportError, match=r"pad: pads .*; only zeros around maps and channels of zeros have an exact"
    ):
        trace(Chain(middle).eval(), (2, 8, 8))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (3, "head .Conv2d.: takes maps that lost their rows or columns"),
        ([0, 1], "only slices of channels, rows and columns have an exact form"),
        (True, "only slices of channels, rows and columns have an exact form"),
        (slice(8, None), "only slices of channels, rows and columns have an exact form"),
        (slice(4, 2), "only slices of channels, rows and columns have an exact form"),
    ],
)
def test_rows_that_are_no_slice_or_none_at_all_are_refused(rows, message):
    with pytest.raises(SpikeportError, match=message):
        trace(Chain(Rows(rows)).eval(), (2, 8, 8))


SLICES = st.builds(slice, st.none() | st.integers(-9, 9), st.none() | st.integers(-9, 9), st.none() | st.integers(1, 4))


@given(SLICES, SLICES, st.tuples(*[st.integers(-2, 3)] * 4), st.booleans())
def test_any_slice_of_maps_and_any_zeros_around_them(rows, columns, around, short):
    """Padding by a negative number cuts off; channels are one less in front and one of zeros more behind."""

    class Part(nn.Module):
        def forward(self, x):
            x = F.pad(x, (*around, -1, 1))
            return x[..., rows, columns] if short else x[:, :, rows, columns]

    torch.manual_seed(0)
    middle = Part()
    assume(middle(torch.zeros(1, 4, 7, 6)).numel() > 0)
    pairs, wanted, found = run_both(Chain(middle).eval(), torch.randn(2, 2, 7, 6) * 2)
    for ours, theirs in pairs:
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_zeros_as_a_layer_and_neurons_that_nothing_feeds():
    torch.manual_seed(0)
    middle = nn.Sequential(
        nn.ZeroPad2d(2), Pads(0, 0, 0, 0, 1, 1), LIF(time_steps=2, v_threshold=0.3), Rows(slice(0, None, 3))
    )
    net = Chain(middle)
    net.head = nn.Conv2d(6, 3, 1)
    pairs, wanted, found = run_both(net.eval(), torch.randn(4, 2, 8, 8) * 2)
    for ours, theirs in pairs:
        assert ours.any()
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(found, wanted, atol=1e-12)


class Regroups(nn.Module):
    """Views, swaps and views again of 12 channels, as the steps say."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def forward(self, x):
        n, c, h, w = x.shape
        grouped = False
        for step in self.steps:
            if isinstance(step, int):
                x, grouped = x.reshape(n, step, -1, h, w), True
            elif not grouped:
                x, grouped = (x.unflatten(1, (4, -1)), True) if step == "swap" else (x.reshape(n, c, h, w), False)
            elif step == "swap":
                x = x.transpose(1, 2)
            elif step == "permute":
                x = x.permute(0, 2, 1, -2, -1)
            else:
                x, grouped = x.flatten(1, 2), False
        return x.reshape(n, c, h, w)


def assert_equal_spikes(net, x):
    pairs, wanted, found = run_both(net.eval(), x)
    for ours, theirs in pairs:
        assert ours.any()
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(found, wanted, atol=1e-12)


@given(st.lists(st.sampled_from((2, 3, 6, "swap", "permute", "maps")), min_size=1, max_size=8))
def test_any_row_of_views_and_swaps_of_channels(steps):
    torch.manual_seed(0)
    assert_equal_spikes(Chain(Regroups(steps), channels=12), torch.randn(4, 2, 3, 2) * 3)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.cat(tensors=x.split(split_size=1, dim=1)[::-1], axis=1),
        lambda x: torch.cat(torch.split(tensor=x, split_size_or_sections=[1, 3], dim=1)[::-1], 1),
        lambda x: torch.add(input=x, other=x),
        lambda x: torch.cat(torch.chunk(input=x, chunks=2, dim=1)[::-1], dim=1),
        lambda x: torch.reshape(x, shape=(-1, 2, 2, 8, 8)).transpose(dim0=1, dim1=2).flatten(start_dim=1, end_dim=2),
        lambda x: torch.permute(input=x.unflatten(dim=1, sizes=(2, 2)), dims=(0, 2, 1, 3, 4)).flatten(1, 2),
        lambda x: F.pad(input=x, pad=(1, 0, 1, 0)),
        lambda x: F.max_pool2d(input=x, kernel_size=2),
        lambda x: F.avg_pool2d(input=x, kernel_size=2),
        lambda x: F.adaptive_avg_pool2d(input=x, output_size=2),
        lambda x: F.channel_shuffle(input=x, groups=2),
    ],
)
def test_arguments_by_torchs_names(function):
    torch.manual_seed(0)
    assert_equal_spikes(Chain(does(function)), torch.randn(4, 2, 8, 8) * 2)


def test_layers_and_the_ends_by_torchs_names():
    class Net(Chain):
        def forward(self, x):
            x = self.head(input=self.act(x=self.stem(input=x)))
            return self.end(x=torch.flatten(input=x.mean(axis=(2, 3), keepdims=True), start_dim=1))

    torch.manual_seed(0)
    assert_equal_spikes(Net(nn.Identity()), torch.randn(4, 2, 8, 8) * 2)


def test_a_layer_that_is_given_more_than_a_tensor_is_refused():
    class Net(Chain):
        def forward(self, x):
            return self.end(self.act(x=self.stem(x), pooled=False))

    with pytest.raises(SpikeportError, match="act .LIF.: takes something else than one tensor"):
        trace(Net(nn.Identity()).eval(), (2, 8, 8))


@pytest.mark.parametrize(
    "middle",
    [
        Does(lambda module, x: F.dropout(x, 0.5, module.training)),
        Does(lambda module, x: F.dropout2d(x, training=module.training)),
        Does(lambda module, x: F.alpha_dropout(x, 0.5, module.training)),
        nn.Dropout3d(),
        nn.AlphaDropout(),
        nn.FeatureAlphaDropout(),
        nn.ConstantPad2d(1, 0.0),
        nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, 2)),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.MaxPool2d((2, 3), (3, 2), (0, 1), ceil_mode=True),
        nn.Sequential(does(lambda x: x[:, [3, 0, 0, 2], 1:-1, ::2]), nn.ZeroPad2d(1), nn.MaxPool2d(2, padding=1)),
    ],
)
def test_what_does_nothing_in_evaluation_and_zeros_before_pooling(middle):
    torch.manual_seed(0)
    assert_equal_spikes(Chain(middle), torch.randn(4, 2, 8, 8) * 2)


def test_a_dropout_that_was_a_function_is_no_module_of_its_name():
    torch.manual_seed(0)
    net = Chain(Does(lambda module, x: F.dropout(x, 0.5, module.training)))
    net.dropout = nn.Conv2d(4, 4, 1)  # which nothing calls
    assert_equal_spikes(net, torch.randn(4, 2, 8, 8) * 2)


class TwoHeads(Chain):
    def __init__(self, join):
        super().__init__(nn.Conv2d(4, 3, 1))
        self.join, self.second = join, TimeMean(2)

    def forward(self, x):
        spikes = self.act(self.stem(x))
        a, b = self.head(spikes).mean((2, 3)), self.middle(spikes).mean((2, 3))
        return self.join(self, a, b)


def test_two_heads_are_added_before_their_mean():
    torch.manual_seed(0)
    assert_equal_spikes(TwoHeads(lambda net, a, b: net.end(a + b)), torch.randn(4, 2, 8, 8) * 2)


@pytest.mark.parametrize(
    ("join", "message"),
    [
        (lambda net, a, b: net.end(a) + net.second(b), "second: a second mean over time; add up what enters them"),
        (lambda net, a, b: net.end(a) + b, "add: joins a mean over time with what has none"),
        (lambda net, a, b: (net.end(a), b)[1], "the model has no read-out"),
    ],
)
def test_heads_that_are_not_averaged_together_are_refused(join, message):
    with pytest.raises(SpikeportError, match=message):
        trace(TwoHeads(join).eval(), (2, 8, 8))


@pytest.mark.parametrize("first", [nn.Identity(), nn.Conv2d(2, 2, 1)])
def test_a_held_input_needs_no_neurons_that_hold_it(first):
    torch.manual_seed(0)
    net = Chain(nn.Identity(), first=False)
    net.stem = nn.Sequential(first, HoldTime(2), net.stem)
    assert_equal_spikes(net, torch.randn(3, 2, 8, 8) * 6)
    net.stem[1].time_steps = 3
    with pytest.raises(SpikeportError, match="disagree on the number of time steps"):
        trace(net, (2, 8, 8))


def test_a_refusal_does_not_grow_with_the_network():
    blocks = [Residual(nn.Conv2d(1, 1, 1)) for _ in range(60)]
    joined = does(lambda x: torch.cat((x, x), 1, out=None))
    with pytest.raises(SpikeportError, match=r"cat\(\[maps \(1, 2, 2\), maps \(1, 2, 2\)\], 1, out=None\) has no"):
        trace(nn.Sequential(*blocks, joined).eval(), (1, 2, 2))
    signal = trace(nn.Sequential(*blocks, *features()[1:2], nn.Flatten(), TimeMean(2)).eval(), (1, 2, 2)).output
    assert len(repr(signal)) < 1000
