"""Energy models: against hand counts, against SpikingJelly's version, and where the SNN stops winning."""

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import layer, neuron, op_counter
from torch import nn

from spikeport.core import LIF, SpikeportError, TimeMean
from spikeport.profiling.breakeven import break_even
from spikeport.profiling.counting import count_operations
from spikeport.profiling.energy import (
    HOROWITZ,
    HOROWITZ_INT8,
    LEMAIRE,
    MODELS,
    SRAM_PJ,
    by_layer,
    total,
)


def linear_snn(steps: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        LIF(tau=2.0, v_threshold=0.3, time_steps=steps, constant_input=True),
        nn.Linear(12, 40),
        LIF(tau=2.0, v_threshold=0.1, time_steps=steps),
        nn.Linear(40, 7, bias=False),
        LIF(tau=2.0, v_threshold=0.05, time_steps=steps),
    )


def conv_snn(steps: int) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        LIF(tau=2.0, v_threshold=0.3, time_steps=steps, constant_input=True),
        nn.Conv2d(3, 30, 1),
        LIF(tau=2.0, v_threshold=0.1, time_steps=steps),
        nn.Conv2d(30, 8, 1, groups=2),
        LIF(tau=2.0, v_threshold=0.05, time_steps=steps),
    )


@pytest.mark.parametrize(
    ("make", "shape"), [(linear_snn, (12,)), (conv_snn, (3, 6, 5))], ids=["linear", "1x1 convolutions"]
)
@pytest.mark.parametrize("steps", [1, 4])
def test_lemaire_equals_spikingjelly_where_no_tap_falls_on_padding(make, shape, steps):
    ours = make(steps).eval()
    x = torch.rand(1, *shape)
    found = by_layer(LEMAIRE, count_operations(ours, x))
    theirs = [ours[0](x).unflatten(0, (steps, 1))]
    modules: list[nn.Module] = []
    for module in ours[1:]:
        if isinstance(module, LIF):
            modules.append(neuron.LIFNode(tau=2.0, v_threshold=module.v_threshold, step_mode="m"))
            continue
        if isinstance(module, nn.Conv2d):
            sizes = (module.in_channels, module.out_channels, 1)
            modules.append(layer.Conv2d(*sizes, groups=module.groups, step_mode="m"))
        else:
            bias = module.bias is not None
            modules.append(layer.Linear(module.in_features, module.out_features, bias, step_mode="m"))
        modules[-1].load_state_dict(module.state_dict())
    expected = op_counter.estimate_lemaire_energy(nn.Sequential(*modules).eval(), theirs[0])
    sums = {name: sum(causes.values()) * 1e3 for name, causes in found.items() if name != "0"}
    assert sum(sums.values()) == pytest.approx(expected.total_pj, rel=1e-9)
    assert float(expected.total_pj) > 0


def test_lemaire_of_a_cnn_is_the_sum_of_its_accesses_at_the_price_of_their_memories():
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False)).eval()
    counts = count_operations(model, torch.randn(1, 2, 8, 8))
    macs = 2 * 4 * (3 * 8 - 2) ** 2
    found = by_layer(LEMAIRE, counts)["0"]
    price = lambda numbers: SRAM_PJ[1] * numbers * 4 / 8192 / 1e3  # noqa: E731
    assert found["multiply-accumulate"] == pytest.approx(3.2 * macs / 1e3)
    assert found["weights"] == pytest.approx(price(72) * macs)
    assert found["inputs and outputs"] == pytest.approx(price(128) * macs + price(256) * 256)
    assert found["addressing"] == pytest.approx(0.1 * (128 + 256 + 36) / 1e3)
    assert found["states"] == found["neuron update"] == found["accumulate"] == 0


def test_eight_bits_cost_both_twins_less_and_the_cnn_least():
    assert HOROWITZ_INT8.of(1000, 0) == pytest.approx(0.03)
    assert HOROWITZ_INT8.of(0, 1000) == pytest.approx(0.23)
    assert HOROWITZ.of(0, 1) / HOROWITZ_INT8.of(0, 1) == pytest.approx(20)


def twins(steps: int) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(2)
    conv = lambda: nn.Conv2d(3, 8, 3, padding=1)  # noqa: E731
    behind = lambda: nn.Conv2d(8, 8, 3, padding=1)  # noqa: E731
    snn = nn.Sequential(
        conv(), LIF(v_threshold=0.4, time_steps=steps, constant_input=True), behind(), LIF(time_steps=steps)
    )
    return nn.Sequential(snn, TimeMean(steps)).eval(), nn.Sequential(conv(), nn.ReLU(), behind(), nn.ReLU()).eval()


@pytest.mark.parametrize("name", list(MODELS))
def test_at_the_break_even_rate_both_twins_cost_the_same(name):
    snn, cnn = twins(4)
    x = torch.randn(2, 3, 8, 8)
    spiking, analog = count_operations(snn, x), count_operations(cnn, x)
    found = break_even(MODELS[name], spiking, analog)
    wanted = total(MODELS[name], (c.work() for c in analog.layers.values()))
    for steps, rate in found.rates.items():
        works = [c.work().scaled(rate / spiking.rate, steps / 4) for c in spiking.layers.values()]
        assert total(MODELS[name], works) == pytest.approx(wanted)
    assert found.longest == max([t for t, rate in found.rates.items() if rate > spiking.rate], default=0)


def test_break_even_by_hand():
    """Under horowitz: the first convolution is charged to both; behind it 0.9 pJ times rate times T against 4.6 pJ."""
    snn, cnn = twins(4)
    x = torch.randn(2, 3, 8, 8)
    spiking = count_operations(snn, x)
    found = break_even(HOROWITZ, spiking, count_operations(cnn, x))
    dense = spiking.layers["0.2"].dense
    behind_per_rate = spiking.layers["0.2"].mean("acs") / spiking.rate / 4
    assert found.rates[4] == pytest.approx(4.6 * dense / (0.9 * behind_per_rate * 4))
    assert found.rates[8] == pytest.approx(found.rates[4] / 2)


def test_what_spikes_as_a_held_input_cost_depends_on_no_rate():
    snn, cnn = twins(20)
    x = (torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    spiking, analog = count_operations(snn, x), count_operations(cnn, x)
    first, behind = (spiking.layers[name].mean("acs") for name in ("0.0", "0.2"))
    assert first
    assert behind
    found = break_even(HOROWITZ, spiking, analog)
    wanted = total(HOROWITZ, (c.work() for c in analog.layers.values()))
    assert found.rates[20] == pytest.approx(spiking.rate * (wanted * 1e3 - 0.9 * first) / (0.9 * behind))
    assert max(found.rates) == 20


def test_the_rate_of_neurons_that_run_twice_is_the_mean_over_all_outputs():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = LIF(v_threshold=0.4, time_steps=2)
            self.first = LIF(v_threshold=0.2, time_steps=2, constant_input=True)
            self.c, self.d, self.end = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), TimeMean(2)

        def forward(self, x):
            return self.end(self.l(self.d(self.l(self.c(self.first(x))))))

    torch.manual_seed(0)
    net, outputs = Twice().eval(), []
    for neurons in (net.first, net.l):
        neurons.register_forward_hook(lambda module, args, y: outputs.append(y))
    counts = count_operations(net, torch.rand(2, 3, 4, 4))
    assert counts.rate == pytest.approx(float(torch.cat([y.flatten() for y in outputs]).mean()))


@pytest.mark.parametrize("steps", [1, 4])
def test_twice_the_steps_scale_as_a_model_with_twice_the_steps_counts(steps):
    x = torch.rand(1, 3, 8, 8)
    once, twice = (count_operations(twins(t)[0], x) for t in (steps, 2 * steps))
    for name, layer_counts in once.layers.items():
        scaled, counted = layer_counts.work().scaled(1.0, 2.0), twice.layers[name].work()
        for quantity in ("macs", "updates", "bias_adds", "analog_passes"):
            assert getattr(scaled, quantity) == getattr(counted, quantity), (name, quantity)


def test_spikes_that_cost_nothing_have_no_break_even():
    """A global pooling multiplies what the neurons give it: there is no addition to save."""
    snn = nn.Sequential(
        nn.Conv2d(1, 2, 3), LIF(1.0, 0.1, time_steps=2, constant_input=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(2, 2), TimeMean(2),
    )  # fmt: skip
    nn.init.ones_(snn[0].weight), nn.init.constant_(snn[0].bias, -4.0)  # its inputs add up to 4.5 on average
    x = torch.rand(2, 1, 6, 6)
    counts = count_operations(snn, x)
    assert 0 < counts.rate < 1
    assert break_even(MODELS["horowitz"], counts, counts) is None


def test_a_silent_network_is_refused():
    _, cnn = twins(2)
    dead = nn.Sequential(LIF(v_threshold=9.0, time_steps=2, constant_input=True), nn.Conv2d(3, 2, 1), TimeMean(2))
    with pytest.raises(SpikeportError, match="does not fire"):
        break_even(
            HOROWITZ, count_operations(dead, torch.zeros(1, 3, 4, 4)), count_operations(cnn, torch.zeros(1, 3, 8, 8))
        )


def test_sources_and_assumptions_are_stated():
    for model in MODELS.values():
        assert np.char.isnumeric(list(model.source)).any()  # a year
        assert len(model.assumptions) > 80
