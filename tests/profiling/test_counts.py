"""Counts are exact: equal to counting by the definition, and to the paper's columns."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from networks import random_nets
from spikingjelly.activation_based import layer, neuron
from torch import nn
from torch.nn import functional as F

from spikeport.core import LIF, SpikeportError, TimeMean
from spikeport.core.models import ModelSpec, Twin
from spikeport.export.foreign import owner_forward
from spikeport.profiling.counting import batch_size, count_operations
from spikeport.profiling.energy import AC_PJ, HOROWITZ, MAC_PJ, model_sizes, paper_count


def direct_events(x, conv):
    """Weights that meet a non-zero input, and all weights on the map, counted one by one."""
    out, per_group, kh, kw = conv.weight.shape
    (sh, sw), (ph, pw), (dh, dw) = conv.stride, conv.padding, conv.dilation
    height = (x.shape[1] + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    width = (x.shape[2] + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    active = dense = 0
    for o, c, y, z, i, j in np.ndindex(out, per_group, height, width, kh, kw):
        row, column = y * sh + i * dh - ph, z * sw + j * dw - pw
        if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
            dense += 1
            active += bool(x[o // (out // conv.groups) * per_group + c, row, column])
    return active, dense


class One(nn.Module):
    """Spikes that the test chooses, one convolution, a read-out."""

    def __init__(self, conv, steps):
        super().__init__()
        self.fire = LIF(tau=1.0, v_threshold=0.5, time_steps=steps)
        self.conv, self.end = conv, TimeMean(steps)

    def forward(self, x):
        return self.end(self.conv(self.fire(x)).mean((2, 3)))


@given(
    st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.integers(1, 2),
    st.sampled_from([1, 2]), st.integers(5, 7), st.integers(1, 3),
)  # fmt: skip
def test_synaptic_operations_equal_counting_one_by_one(seed, kernel, stride, padding, dilation, groups, size, steps):
    rng = torch.Generator().manual_seed(seed)
    conv = nn.Conv2d(2, 4, kernel, stride, padding, dilation, groups)
    spikes = (torch.rand(steps * 2, 2, size, size + 1, generator=rng) < 0.3).float()
    model = One(conv, steps)
    # The model folds T into the batch: two samples of T steps each.
    counts = count_operations_of_folded(model, spikes, samples=2)
    found = counts["conv"]
    for n in range(2):
        for t in range(steps):
            active, dense = direct_events(spikes[t * 2 + n], conv)
            assert found.acs[n, t] == active
            assert found.dense == dense
            assert found.macs[n, t] == 0


def count_operations_of_folded(model, x, samples):
    from spikeport.profiling import counting

    layers = {}
    with counting._counting(model, samples, len(x) // samples, True, layers), torch.no_grad():
        model(x)
    return layers


def test_analog_input_costs_macs_and_only_for_the_images_that_are_analog():
    conv = nn.Conv2d(1, 2, 3, padding=1)
    model = nn.Sequential(conv, LIF(time_steps=2, constant_input=True))
    x = torch.zeros(2, 1, 4, 4)
    x[0, 0, 0, 0] = 1  # a spike
    x[1, 0, 1, 1] = 0.5  # an analog value
    counts = count_operations(model, x).layers["0"]
    assert counts.acs[:, 0].tolist() == [4 * 2, 0]
    dense = direct_events(torch.ones(1, 4, 4), conv)[1]
    assert counts.macs[:, 0].tolist() == [0, dense]
    assert counts.macs_effective[:, 0].tolist() == [0, 9 * 2]
    assert counts.analog


@pytest.mark.parametrize(("tau", "leaky"), [(1.0, False), (1.5, True), (math.inf, False)])
def test_membranes_that_keep_nothing_or_all_do_not_leak(tau, leaky):
    model = nn.Sequential(LIF(tau, time_steps=2, constant_input=True, decay_input=tau < math.inf))
    assert count_operations(model, torch.ones(1, 3)).layers["0"].leaky == leaky


def test_first_convolution_is_counted_once_and_the_others_t_times():
    model = ModelSpec(twin=Twin(time_steps=5), width=0.125).build().eval()
    counts = count_operations(model, torch.randn(3, 3, 16, 16))
    assert counts.layers["stem.conv"].macs.shape == (3, 1)
    assert counts.layers["features.fire4.squeeze.conv"].acs.shape == (3, 5)
    assert counts.layers["stem.act"].spikes.shape == (3, 5)


@given(random_nets())
def test_rate_is_the_mean_over_neurons_steps_and_samples(case):
    net, x = case
    assume(all(stage.op not in ("maxpool", "edgepool") for stage in net.stages))  # a function there, which is refused
    spikes = []
    for module in net.modules():
        if isinstance(module, LIF):
            module.register_forward_hook(lambda m, a, y: spikes.append(y.flatten()))
    counts = count_operations(net, x)
    assert counts.rate == pytest.approx(float(torch.cat(spikes).double().mean()))
    assert sum(int(c.spikes.sum()) for c in counts.layers.values() if c.kind == "LIF") == int(torch.cat(spikes).sum())


def test_a_cnn_multiplies_even_where_its_maps_are_binary():
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, 1))
    counts = count_operations(model, torch.ones(1, 1, 2, 2))
    assert (counts.total("macs"), counts.total("acs")) == (4, 0)


@pytest.mark.parametrize(
    ("name", "classes", "size", "macs"),
    [
        ("squeezenet", 10, 32, 4_466_848),
        ("squeezenet", 100, 32, 4_468_288),
        ("squeezenet", 200, 64, 17_879_552),
        ("squeezenet-p", 10, 32, 4_227_232),
        ("squeezenet-p", 100, 32, 4_228_672),
        ("squeezenet-p", 200, 64, 16_921_088),
    ],
)
def test_the_papers_mac_columns(name, classes, size, macs):
    model = ModelSpec(name, Twin(), classes, 3, size).build().eval()
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    assert paper_count(count_operations(model, x)).macs == macs


def test_the_papers_cnn_energy():
    sizes = model_sizes(ModelSpec("squeezenet", Twin("cnn")))
    assert sizes["macs"] / 1e6 == pytest.approx(54.755, abs=5e-4)
    assert HOROWITZ.of(0, sizes["macs"]) / 1e6 == pytest.approx(0.2519, abs=5e-5)  # mJ


def test_the_papers_acs_are_those_of_the_layers_with_weights_in_a_step_of_an_image():
    torch.manual_seed(0)
    neurons = [LIF(time_steps=4, v_threshold=0.1, constant_input=held) for held in (True, False)]
    spiking = nn.Conv2d(3, 2, 3), neurons[1], nn.Flatten(), nn.Linear(8, 2), TimeMean(4)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), neurons[0], nn.MaxPool2d(2), *spiking).eval()
    counts = count_operations(model, torch.rand(6, 1, 10, 10))
    acs = {name: layer.acs.sum() for name, layer in counts.layers.items()}
    assert acs["2"] > 0  # of the pooling, as OR neurons; the paper has none
    assert acs["3"] > 0
    assert acs["6"] > 0
    paper = paper_count(counts)
    assert paper.macs == 3 * (9 + 1) * 64  # with the bias
    assert paper.acs == (acs["3"] + acs["6"]) / (6 * 4)
    assert paper.energy_nj == pytest.approx(1e-3 * (0.9 * paper.acs + 4.6 * paper.macs), rel=1e-12)


@pytest.mark.parametrize(("bias", "macs"), [(True, 44), (False, 40)])
def test_the_papers_macs_of_a_linear_layer_have_its_bias(bias, macs):
    assert paper_count(count_operations(nn.Linear(10, 4, bias), torch.rand(3, 10))).macs == macs


def test_a_layer_is_analog_where_any_batch_is():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), LIF(time_steps=2, constant_input=True), TimeMean(2)).eval()
    binary, analog = torch.eye(8).repeat(64, 1, 1, 1), torch.rand(64, 1, 8, 8)
    for images in ((binary, analog), (analog, binary)):
        conv = count_operations(model, torch.cat(images)).layers["0"]
        assert conv.analog
        for of, found in zip(images, conv.macs.reshape(2, 64), strict=True):
            assert (found == (conv.dense if of is analog else 0)).all()


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_spikes_may_be_joined_along_any_side(dim):
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(1, 4, 3)
            self.a, self.b = (LIF(time_steps=3, v_threshold=v, constant_input=True) for v in (0.1, 0.3))
            self.conv, self.mean = nn.Conv2d(8 if dim == 1 else 4, 2, 3), TimeMean(3)

        def forward(self, x):
            x = self.first(x)
            return self.mean(self.conv(torch.cat([self.a(x), self.b(x)], dim)).mean((2, 3)))

    torch.manual_seed(0)
    model, x = Joined().eval(), torch.rand(2, 1, 7, 7)
    found = count_operations(model, x).layers["conv"].acs
    with torch.no_grad():
        maps = torch.cat([model.a(model.first(x)), model.b(model.first(x))], dim)
    expected = F.conv2d(maps, torch.ones_like(model.conv.weight)).sum((1, 2, 3)).reshape(3, 2).T
    np.testing.assert_array_equal(found, expected)


def test_a_normalisation_of_more_than_synapses_gave_is_counted_itself():
    class Beside(nn.Module):
        def __init__(self, beside):
            super().__init__()
            self.conv, self.norm, self.beside = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(6), beside

        def forward(self, x):
            return self.norm(torch.cat([self.conv(x), self.beside(x)], 1)).mean((2, 3))

    x = torch.randn(3, 2, 5, 5)
    for beside, macs, into in ((nn.ReLU(), 6 * 25, ()), (nn.Conv2d(2, 2, 1), 0, ("conv", "beside"))):
        norm = count_operations(Beside(beside).eval(), x).layers["norm"]
        assert norm.folds_into == into
        assert norm.macs.sum() == 3 * macs


@pytest.mark.parametrize(("side", "images"), [(8, 64), (32, 64), (64, 16), (400, 1)])
def test_a_batch_holds_no_more_pixels_than_64_images_of_cifar(side, images):
    assert batch_size(torch.zeros(1, 3, side, side)) == images


def test_energy_is_the_sum_of_its_operations():
    assert HOROWITZ.of(1000, 0) == AC_PJ
    assert HOROWITZ.of(0, 1000) == MAC_PJ


def test_an_input_that_changes_is_counted_step_by_step():
    layers = nn.Conv2d(1, 3, 3), LIF(time_steps=4, v_threshold=0.1), nn.Conv2d(3, 2, 3), TimeMean(4)
    model = nn.Sequential(*layers).eval()
    x = (torch.rand(4, 70, 1, 6, 6, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    counts = count_operations(model, x)
    with torch.no_grad():
        spikes = layers[1](layers[0](x.flatten(0, 1))).reshape(4, 70, 3, 4, 4)
    arriving = {"0": x, "2": spikes}
    for name, maps in arriving.items():
        ones = torch.ones_like(model.get_submodule(name).weight)
        expected = F.conv2d(maps.flatten(0, 1), ones).sum((1, 2, 3)).reshape(4, 70).T
        np.testing.assert_array_equal(counts.layers[name].acs, expected)
    assert (counts.samples, counts.time_steps) == (70, 4)
    np.testing.assert_array_equal(counts.layers["1"].spikes, spikes.sum((2, 3, 4)).T)
    with pytest.raises(SpikeportError, match=r"has 280 steps, the network takes one for each of its 4: \[T, N, ...\]"):
        count_operations(model, x.flatten(0, 1))


def test_one_step_may_be_given_with_its_axis():
    layers = nn.Conv2d(1, 3, 3), LIF(time_steps=1, v_threshold=0.1), nn.Flatten(), nn.Linear(48, 2), TimeMean(1)
    model = nn.Sequential(*layers).eval()
    x = torch.rand(1, 5, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    with_axis, without = count_operations(model, x), count_operations(model, x[0])
    assert (with_axis.samples, with_axis.time_steps) == (5, 1)
    np.testing.assert_array_equal(with_axis.layers["3"].acs, without.layers["3"].acs)
    with pytest.raises(SpikeportError, match="has 5 steps, the network takes one for each of its 1"):
        count_operations(model, x.transpose(0, 1))


def test_a_float64_model_is_counted_in_float64_and_a_half_one_refused():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), LIF(constant_input=True, v_threshold=0.1), nn.Conv2d(3, 2, 3))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = count_operations(model, x).layers["2"].acs
    assert expected.sum() > 0
    np.testing.assert_array_equal(count_operations(model.double(), x).layers["2"].acs, expected)
    with pytest.raises(SpikeportError, match=r"computes in torch.bfloat16, in which counts are not exact; count model"):
        count_operations(model.bfloat16(), x)


class Written(nn.Module):
    """Two layers of spikes, ``write`` between them and a convolution; a convolution written to before its BatchNorm."""

    def __init__(self, write):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(c, 3, 3, padding=1) for c in (1, 3, 3))
        self.a, self.b = LIF(1.0, 0.2, time_steps=2, constant_input=True), LIF(1.0, 0.2, time_steps=2)
        self.norm, self.end, self.write = nn.BatchNorm2d(3), TimeMean(2), write

    def forward(self, x):
        a = self.a(self.first(x))
        b = self.b(self.second(a))
        b = self.write(b, a)
        y = self.third(b)
        return self.end(self.norm(self.write(y, a)).mean((2, 3)))


@pytest.mark.parametrize(
    ("in_place", "plain"),
    [(lambda b, a: b.add_(a), lambda b, a: b + a), (lambda b, a: b.mul_(2.5), lambda b, a: b * 2.5)],
)
def test_what_is_written_to_in_place_is_counted_as_it_is_then(in_place, plain):
    torch.manual_seed(0)
    model = Written(in_place)
    x = torch.randn(2, 1, 6, 6)
    found, model.write = count_operations(model, x), plain
    expected = count_operations(model, x)
    for name, counts in expected.layers.items():
        for quantity in ("acs", "macs", "macs_effective"):
            assert np.array_equal(getattr(found.layers[name], quantity), getattr(counts, quantity)), (name, quantity)
    assert expected.layers["norm"].folds_into == found.layers["norm"].folds_into == ()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_samples_that_are_not_finite_are_refused(value):
    x = torch.zeros(2, 1, 6, 6)
    x[1, 0, 2, 3] = value
    with pytest.raises(SpikeportError, match="samples to count on hold NaN or infinity"):
        count_operations(Written(lambda b, a: b), x)


def test_a_model_that_is_not_on_the_cpu_is_refused():
    with pytest.raises(SpikeportError, match=r"on meta; counts run on the CPU"):
        count_operations(nn.Conv2d(1, 2, 3, device="meta"), torch.zeros(1, 1, 4, 4))


def test_zero_samples_and_mixed_steps_are_refused():
    with pytest.raises(SpikeportError, match="zero samples"):
        count_operations(nn.ReLU(), torch.zeros(0, 1))
    with pytest.raises(SpikeportError, match="disagree on the number of time steps"):
        count_operations(nn.Sequential(LIF(time_steps=2), LIF(time_steps=3)), torch.zeros(6, 1))


@pytest.mark.parametrize(
    "layer",
    [
        *(nn.MaxPool2d(2, dilation=2), nn.MaxPool2d(2, 4, dilation=2), nn.MaxPool2d(2, padding=1, dilation=3)),
        *(nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(3, 2, 1, 2, ceil_mode=True)),
        *(nn.Conv2d(1, 1, 2, padding="same"), nn.Conv2d(1, 1, (3, 4), padding="same", dilation=3)),
    ],
)
def test_a_spike_counts_in_every_window(layer):
    """Also where dilation leaves the number of windows as it is, and where windows reach beyond the padding."""
    for parameter in layer.parameters():
        nn.init.constant_(parameter, float(parameter.dim() > 1))
    model = nn.Sequential(LIF(time_steps=1, tau=1.0, v_threshold=0.5), layer)
    for row, column in np.ndindex(5, 5):
        x = torch.zeros(1, 1, 5, 5)
        x[0, 0, row, column] = 1
        assert count_operations(model, x).layers["1"].acs.sum() == layer(x).sum()


class Call(nn.Module):
    """A forward pass given as a function."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.function(self, x)


@pytest.mark.parametrize(
    ("message", "model"),
    [
        (r"0 \(ConvTranspose2d\): has parameters", nn.Sequential(nn.ConvTranspose2d(2, 2, 3))),
        (r"0 \(GroupNorm\): has parameters", nn.Sequential(nn.GroupNorm(1, 2))),
        (r"a \(MultiheadAttention\): has parameters", Call(lambda m, x: m.a(x), a=nn.MultiheadAttention(4, 2))),
        (r"0 \(Conv2d\): padding_mode 'circular'", nn.Sequential(nn.Conv2d(2, 2, 3, 1, 1, padding_mode="circular"))),
        (r"0 \(Linear\): runs on a tensor of shape \[3, 2, 4, 4\]", nn.Sequential(nn.Linear(4, 5))),
        ("0: runs convolution outside", nn.Sequential(Call(lambda m, x: F.conv2d(x, torch.ones(1, 2, 3, 3))))),
        ("0: runs mm outside", nn.Sequential(Call(lambda m, x: F.linear(x.flatten(1), torch.ones(1, 32))))),
        ("the model: runs bmm outside", Call(lambda m, x: x @ x)),
        ("the model: runs _cdist_forward outside", Call(lambda m, x: torch.cdist(x, x))),
        ("the model: runs linalg_inv_ex outside", Call(lambda m, x: torch.linalg.inv(x))),
        ("the model: runs native_group_norm outside", Call(lambda m, x: F.group_norm(x, 2))),
        (
            "runs max_pool2d_with_indices outside",
            Call(lambda m, x: F.max_pool2d(m.l(x), 2), l=LIF(constant_input=True)),
        ),
    ],
)
def test_work_that_is_not_counted_is_refused_by_name(message, model):
    with pytest.raises(SpikeportError, match=message):
        count_operations(model, torch.rand(3, 2, 4, 4))


def test_a_model_of_spikingjelly_is_counted_as_what_it_becomes_here():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), neuron.LIFNode(v_threshold=0.2), layer.Flatten(), nn.Linear(144, 5))
    x = torch.rand(3, 1, 8, 8)
    with pytest.raises(SpikeportError, match="say over how many time steps"):
        count_operations(model, x)
    counts = count_operations(model, x, time_steps=4)
    fired = owner_forward(model, x.numpy(), 4)[0]["1"]
    assert counts.layers["0"].macs.tolist() == [[4 * 9 * 36]] * 3
    assert counts.layers["3"].acs.T.tolist() == (fired.sum((2, 3, 4)) * 5).tolist()
    assert fired.sum() > 0
    moving = count_operations(model, x.expand(4, *x.shape), time_steps=4)
    assert moving.layers["0"].macs.tolist() == [[4 * 9 * 36] * 4] * 3
    assert moving.layers["3"].acs.tolist() == counts.layers["3"].acs.tolist()
    with pytest.raises(SpikeportError, match=r"\[4, 3, 1, 8, 8\]: \[T, N, ...\] with 4 steps, asked for 3"):
        count_operations(model, x.expand(4, *x.shape), time_steps=3)
    with pytest.raises(SpikeportError, match="the model has 2 of its own"):
        count_operations(LIF(time_steps=2, constant_input=True), x, time_steps=4)
