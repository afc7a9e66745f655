"""Quantisation-aware training: what is trained is what the chip runs, spike for spike."""

import csv

import numpy as np
import pytest
import torch
from graphs import graph_of
from hypothesis import given
from networks import RandomNet, random_nets
from torch import nn
from torch.nn import functional as F

from spikeport.core import LIF, SpikeportError, TimeMean, train
from spikeport.core.hooks import watched
from spikeport.core.neurons import HoldTime
from spikeport.core.rates import NETWORK, Rates, spiking_layers
from spikeport.core.records import LAYERS_FILE
from spikeport.core.runs import DataInfo
from spikeport.export import to_nir
from spikeport.profiling import count_operations
from spikeport.profiling.comparison import compare
from spikeport.targets import compile as compile_run
from spikeport.targets.loihi.compile import compile
from spikeport.targets.loihi.fixed import simulate_fixed
from spikeport.targets.loihi.qat import preparation, prepare_run


def info_of(x):
    """A data set whose pixels, normalised, reach as far as x does."""
    reach = float(x.abs().max())
    return DataInfo("random", tuple(x.shape[1:]), (0.5,) * x.shape[1], (0.5 / reach,) * x.shape[1], ("a", "b", "c"))


def both(net, x):
    """The training forward and the fixed engine on the same samples, or None where the network does not compile."""
    chip = prepare_run(net, info_of(x)).eval()
    try:
        network = chip.network()
    except SpikeportError as error:
        assert "pads a map" in str(error) or "all of its weights are zero" in str(error)  # noqa: PT017
        return None
    with torch.no_grad():
        values = chip.values(network, x)
        program = compile(graph_of(net, x, info_of(x).input_bound))
    return network, values, simulate_fixed(program, x.numpy(), rasters=len(x)), program


@given(random_nets())
def test_the_training_forward_is_the_fixed_engine(case):
    net, x = case
    result = both(net, x)
    if result is None:
        return
    network, values, record, program = result
    for layer in network.layers:
        if layer.name != network.output:
            raster = torch.from_numpy(record.rasters[layer.name]).transpose(0, 1).flatten(0, 1)
            assert torch.equal(values[layer.name], raster.float()), layer.name
    scale = program.population(program.output).scale * 64 * program.time_steps
    sums = values[network.output].flatten(1).numpy() * scale
    np.testing.assert_array_equal(np.rint(sums), record.output_sums)


class Bottleneck(nn.Module):
    """Norms and gains of an image, norms of spikes, and a linear bottleneck, before convolutions that pad."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.a = nn.BatchNorm2d(2), nn.Conv2d(2, 6, 3, padding=1)
        self.thin, self.thin_norm, self.b = nn.Conv2d(6, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3, 2, 1)
        self.head = nn.Linear(6, 3)
        self.first = LIF(v_threshold=0.3, time_steps=3, constant_input=True)
        self.second, self.end = LIF(v_threshold=0.2, time_steps=3), TimeMean(3)
        self.gain = nn.Parameter(torch.tensor([0.9, 1.1]).view(2, 1, 1))
        self.ones, self.zeros = nn.Parameter(torch.ones(3, 1, 1)), nn.Parameter(torch.zeros(3, 1, 1))
        for norm in (self.norm, self.thin_norm):
            nn.init.uniform_(norm.bias, 0.3, 0.6)

    def fired(self, x):
        return self.first(self.a(self.norm(self.gain * x - 0.1)))

    def forward(self, x):
        y = self.thin_norm(self.thin(self.fired(x))) * self.ones + self.zeros
        return self.end(self.head(self.second(self.b(y)).mean((2, 3))))


@pytest.mark.parametrize("input_mode", ["graded", "host-current"])
def test_a_bias_before_padding_runs_on_the_chip(input_mode):
    net, x = Bottleneck().eval(), torch.randn(5, 2, 6, 6)
    network, values, record, _ = both(net, x)
    assert [layer.bias.ndim for layer in network.layers] == [3, 3, 1]
    assert min(float(record.spikes[name].sum()) for name in record.spikes) > 0
    program = compile(graph_of(net, x, info_of(x).input_bound), input_mode=input_mode)
    fixed = simulate_fixed(program, x.numpy(), rasters=len(x))
    with torch.no_grad():
        spikes = torch.from_numpy(fixed.rasters["first"]).transpose(0, 1).flatten(0, 1)
        float_spikes = net.fired(x)
    assert (spikes != float_spikes).float().mean() < 0.02
    np.testing.assert_allclose(fixed.outputs, net(x).detach(), atol=0.1)
    if input_mode == "graded":
        assert torch.equal(values["first"], spikes.float())


def test_the_bias_before_padding_is_trained():
    net, x = Bottleneck().eval(), torch.randn(40, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    chip = prepare_run(net, info_of(x))
    found = torch.autograd.grad(chip(x).square().sum(), list(net.parameters()))
    wanted = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    for (name, _), a, b in zip(net.named_parameters(), found, wanted, strict=True):
        assert torch.linalg.norm(a - b) < 0.2 * torch.linalg.norm(b), name


def chain(tau=2.0, surrogate="atan", detach_reset=False, steps=2):
    net = nn.Sequential(
        nn.Conv2d(1, 1, 1),
        LIF(tau, time_steps=steps, constant_input=True, surrogate=surrogate, detach_reset=detach_reset),
        nn.Conv2d(1, 1, 1),
        nn.Flatten(),
        TimeMean(steps),
    )
    with torch.no_grad():
        for k, value in ((0, 1.5), (2, 0.75)):
            net[k].weight.fill_(value)
            net[k].bias.fill_(0.125)
    return net.eval()


@pytest.mark.parametrize("surrogate", ["atan", "sigmoid", "fast-sigmoid", "piecewise-linear", "exponential"])
@pytest.mark.parametrize("detach_reset", [False, True])
def test_gradients_are_those_of_the_float_network(surrogate, detach_reset):
    """At 8 bits one neuron's membrane is close to the float one, and so is every derivative along the way."""
    net = chain(surrogate=surrogate, detach_reset=detach_reset, steps=3)
    x = torch.linspace(-1, 1, 9).view(-1, 1, 1, 1)
    chip = prepare_run(net, DataInfo("d", (1, 1, 1), (0.5,), (0.5,), ("a",)))
    found = torch.autograd.grad(chip(x).square().sum(), list(net.parameters()))
    wanted = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0.03, atol=0.01)


@pytest.mark.parametrize("around", [0, (0, 2, 0, 2)])
def test_pooled_spikes_share_the_gradient(around):
    """By hand: two spikes in a window of four count half each; in a window without spikes, every place a quarter."""
    steps = 1
    net = nn.Sequential(
        nn.Conv2d(1, 1, 1, bias=False),
        LIF(tau=1.0, time_steps=steps, constant_input=True, surrogate="piecewise-linear"),
        nn.ZeroPad2d(around),
        nn.MaxPool2d(2),
        nn.Conv2d(1, 1, 1, bias=False),
        nn.Flatten(),
        TimeMean(steps),
    ).eval()
    with torch.no_grad():
        net[0].weight.fill_(2.0)
        net[4].weight.fill_(1.0)
    chip = prepare_run(net, DataInfo("d", (1, 2, 2), (0.5,), (0.5,), ("a",)))
    # h = 2x, the surrogate 1 - |h - 1|: x = 0.75 fires (h = 1.5), 0.25 does not (h = 0.5); derivative 0.5 for both.
    x = torch.tensor([[0.75, 0.75], [0.25, 0.25]])[None, None]
    (gradient,) = torch.autograd.grad(chip(x).sum(), net[0].weight)
    assert gradient.item() == pytest.approx(0.5 * 0.5 * (0.75 + 0.75), rel=0.02)
    (gradient,) = torch.autograd.grad(chip(x.clamp(max=0.25)).sum(), net[0].weight)
    assert gradient.item() == pytest.approx(0.25 * 0.5 * (4 * 0.25), rel=0.02)


def test_no_gradient_passes_through_the_reset_of_pooled_spikes():
    """By hand, two steps: both fire, and the voltage the OR neuron resets in the first has no say in the second."""
    net = nn.Sequential(
        nn.Conv2d(1, 1, 1, bias=False),
        LIF(tau=1.0, time_steps=2, constant_input=True, surrogate="piecewise-linear"),
        nn.MaxPool2d(2),
        nn.Conv2d(1, 1, 1, bias=False),
        nn.Flatten(),
        TimeMean(2),
    ).eval()
    with torch.no_grad():
        net[0].weight.fill_(2.0)
        net[3].weight.fill_(1.0)
    chip = prepare_run(net, DataInfo("d", (1, 2, 2), (0.5,), (0.5,), ("a",)))
    x = torch.full((1, 1, 2, 2), 0.75)  # h = 1.5 in every step: all fire, derivative 0.5
    # Each of four places has a quarter of the gradient of the pooled spike, so 0.5 * 0.75 in every step; the LIF's own
    # reset takes nothing, for with tau = 1 nothing of v is kept.
    (gradient,) = torch.autograd.grad(chip(x).sum(), net[0].weight)
    assert gradient.item() == pytest.approx(0.5 * 0.75, rel=0.02)


def test_batch_norm_keeps_its_statistics():
    net = RandomNet(["conv"], 4, 6, 2, seed=1, pooled=True)
    before = {name: value.clone() for name, value in net.named_buffers()}
    x = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    chip = prepare_run(net, info_of(x)).train()
    chip(x).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_a_trained_network_runs_on_the_chip_as_it_was_trained(tiny, tmp_path):
    train(tiny(kind="snn"), tmp_path / "float")
    run = train(tiny(kind="snn", start=str(tmp_path / "float"), target="loihi"), tmp_path / "chip", prepare=prepare_run)
    to_nir(run)
    program = compile_run(tmp_path / "chip")
    x, labels = run.samples(10_000)
    record = simulate_fixed(program, x, labels)
    chip = prepare_run(run.model(), run.data).eval()
    with torch.no_grad():
        trained = chip(torch.from_numpy(x))
    np.testing.assert_array_equal(trained.numpy(), record.outputs.astype(np.float32))
    assert record.accuracy == run.results["test_accuracy"]


def test_rates_are_those_of_the_chip_and_can_be_trained(tiny, tmp_path):
    train(tiny(kind="snn"), tmp_path / "float")
    settings = {"kind": "snn", "start": str(tmp_path / "float"), "target": "loihi", "epochs": 1}
    free = train(tiny(**settings), tmp_path / "free", prepare=prepare_run)
    quiet = train(tiny(**settings, rate_weight=1000.0, rate_goal=0.0), tmp_path / "quiet", prepare=prepare_run)

    chip, rates = prepare_run(free.model(), free.data).eval(), Rates()
    images = torch.from_numpy(free.samples(64)[0])
    with torch.no_grad(), watched(spiking_layers(chip), rates.see):
        values = chip.values(chip.network(), images)
    found = rates.per_layer()
    sent = {layer.source: values[layer.name] for layer in chip.network().layers}
    assert set(found) == {name for name, module in free.model().named_modules() if isinstance(module, LIF)} | {NETWORK}
    assert all(found[name] == pytest.approx(float(sent[name].mean())) for name in set(found) - {NETWORK})

    def rate(run):
        rows = csv.DictReader((run.path / LAYERS_FILE).read_text().splitlines())
        return float(next(row["firing_rate"] for row in rows if row["layer"] == NETWORK))

    assert 0 <= rate(quiet) < rate(free)


def test_only_a_training_for_a_target_is_prepared(tiny):
    assert preparation(tiny(kind="snn")) is None
    assert preparation(tiny(kind="snn", start="run", target="loihi")) is prepare_run


def test_a_dropout_that_follows_the_mode_is_nothing_in_integers():
    class Dropping(nn.Flatten):
        def forward(self, x):
            return F.dropout(super().forward(x), 0.5, self.training)

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 1), LIF(constant_input=True), Dropping(), nn.Linear(8, 2), TimeMean(4))
    x = torch.randn(4, 1, 2, 2) * 3
    plain = nn.Sequential(net[0], net[1], nn.Flatten(), net[3], net[4])
    found, expected = (prepare_run(model, info_of(x))(x) for model in (net, plain))
    assert torch.equal(found, expected)
    assert expected.any()


class Named(nn.Module):
    """A network whose neurons have a name that another may have taken, fed as ``first`` makes them."""

    def __init__(self, name="lif", first=(), constant_input=True):
        super().__init__()
        torch.manual_seed(0)
        self.name, self.first = name, nn.Sequential(nn.Conv2d(1, 4, 3), *first)
        setattr(self, name, LIF(v_threshold=0.1, time_steps=3, constant_input=constant_input))
        self.linear, self.mean = nn.Linear(4, 3), TimeMean(3)

    def forward(self, x):
        return self.mean(self.linear(getattr(self, self.name)(self.first(x)).mean((2, 3))))


@pytest.mark.parametrize("name", ["output", "input", "pop", "keys", "update"])
def test_neurons_may_have_any_name(tmp_path, name):
    x = torch.rand(4, 1, 6, 6)
    model, plain = (prepare_run(Named(n).eval(), info_of(x)) for n in (name, "lif"))
    given = model(x)
    assert torch.equal(given, plain(x))
    given.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    certificate = to_nir(model.model, tmp_path / "model.nir", x.numpy())
    assert {w.status for w in certificate.witnesses} <= {"agrees", "cannot read"}
    program = compile_run(tmp_path / "model.nir", calibration=x.numpy())
    record = simulate_fixed(program, x.numpy())
    fired, silent = compare(count_operations(model.model, x), program, {"fixed": record})
    assert fired.spikes == pytest.approx(dict.fromkeys(("training", "fixed"), fired.spikes["fixed"]), rel=0.2)
    assert (fired.neurons_layer, silent.neurons_layer, silent.spikes) == (name, "", {})


def test_a_current_that_is_held_is_trained_in_integers():
    x = torch.rand(4, 1, 6, 6)
    held = Named(first=[HoldTime(3)], constant_input=False).eval()
    assert torch.equal(prepare_run(held, info_of(x))(x), prepare_run(Named().eval(), info_of(x))(x))


def test_a_cnn_and_a_changing_input_are_refused():
    x = torch.zeros(1, 1, 1, 1)
    for net in (nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()), nn.Sequential(LIF(), TimeMean(4))):
        with pytest.raises(SpikeportError, match="takes a spiking network .* held for T steps"):
            prepare_run(net.eval(), info_of(x + 1))


def test_what_would_not_run_in_integers_is_refused():
    class Own(LIF):
        def forward(self, x, *args):
            return super().forward(3 * x, *args)

    x = torch.rand(4, 1, 6, 6)
    hooked = Named().eval()
    next(hooked.children()).register_forward_hook(lambda m, a, y: 3 * y)
    with pytest.raises(SpikeportError, match="has a hook, which would not run in integers; remove it"):
        prepare_run(hooked, info_of(x))
    own = nn.Sequential(
        nn.Conv2d(1, 2, 1), Own(constant_input=True), nn.Flatten(), nn.Linear(72, 3), TimeMean(4)
    ).eval()
    with pytest.raises(SpikeportError, match="1 .Own.: a LIF with a forward of its own has no exact form"):
        prepare_run(own, info_of(x))(x)


def test_training_in_integers_goes_on_from_a_trained_network(tiny, tmp_path):
    with pytest.raises(SpikeportError, match="takes a trained network: train it without --target first"):
        train(tiny(kind="snn", target="loihi"), tmp_path / "run", prepare=prepare_run)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", [{"loss": "gradient-aware"}, {"compile": True}])
def test_what_integers_cannot_be_trained_with_is_refused(tiny, setting):
    with pytest.raises(SpikeportError, match="target 'loihi' trains with cross-entropy, a teacher and rate_weight"):
        tiny(kind="snn", target="loihi", start="run", **setting)
