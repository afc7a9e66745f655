"""Models of one's own, trained in the chip's integers in a loop of one's own."""

import copy
import functools
import warnings

import numpy as np
import pytest
import snntorch
import torch
from graphs import graph_of
from hypothesis import given, settings
from hypothesis import strategies as st
from snntorch import surrogate as snn_surrogate
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel

from spikeport import convert
from spikeport.core import LIF, SpikeportError, TimeMean
from spikeport.core.neurons import HoldTime
from spikeport.targets import compile_model, prepare_qat
from spikeport.targets.loihi.compile import compile
from spikeport.targets.loihi.fixed import simulate_fixed

STEPS = 3


def jelly(surrogate_function=None, step_mode="s"):
    """Three layers of SpikingJelly with an odd norm, for maps of 2 x 6 x 6."""
    torch.manual_seed(0)
    how = {"surrogate_function": surrogate_function or surrogate.Sigmoid(), "v_threshold": 0.3}
    net = nn.Sequential(
        layer.Conv2d(2, 6, 3, padding=1), layer.BatchNorm2d(6), neuron.LIFNode(tau=1.6, **how), layer.MaxPool2d(2),
        layer.Conv2d(6, 6, 3, bias=False), neuron.IFNode(**how), layer.Flatten(), layer.Linear(6, 4),
    )  # fmt: skip
    nn.init.uniform_(net[1].running_var, 0.5, 1.5)
    functional.set_step_mode(net, step_mode)
    return net.eval()


def normed(net):
    parametrizations.weight_norm(net[0])
    return net


def leaky():
    torch.manual_seed(0)
    neurons = snntorch.Leaky(beta=0.7, threshold=0.2, init_hidden=True, reset_mechanism="zero")
    return nn.Sequential(nn.Conv2d(2, 6, 3, stride=2), neurons, nn.Flatten(), nn.Linear(24, 4)).eval()


def features():
    torch.manual_seed(0)
    neurons = LIF(v_threshold=0.2, time_steps=STEPS)
    return nn.Sequential(nn.Linear(5, 8), neurons, nn.Linear(8, 4), TimeMean(STEPS)).eval()


def twin(**how):
    torch.manual_seed(0)
    cnn = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4))
    return convert(cnn, time_steps=STEPS, v_threshold=0.4, **how).eval()


def maps(*leading, seed=0):
    return torch.randn(*leading, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def events(*leading):
    return (maps(*leading) > 0.8).float()


#: a network, whether it is one of ours, samples it takes
NETWORKS = {
    "twin": (twin, True, lambda: maps(8)),
    "twin of events": (lambda: twin(constant_input=False), True, lambda: events(STEPS, 8)),
    "features of steps": (features, True, lambda: torch.randn(STEPS, 8, 5)),
    "SpikingJelly": (jelly, False, lambda: maps(8)),
    "SpikingJelly, many steps": (lambda: jelly(step_mode="m"), False, lambda: maps(STEPS, 8)),
    "SpikingJelly of events": (jelly, False, lambda: events(STEPS, 8)),
    "SpikingJelly, weight norm": (lambda: normed(jelly()), False, lambda: maps(8)),
    "snnTorch": (leaky, False, lambda: maps(8)),
    "snnTorch of steps": (leaky, False, lambda: maps(STEPS, 8)),
}


def parameters(model):
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("name", NETWORKS)
def test_what_was_trained_is_what_the_chip_runs(name, tmp_path):
    build, ours, sampled = NETWORKS[name]
    torch.manual_seed(1)
    model, x = build(), sampled()
    labels = torch.arange(8) % 4
    chip = prepare_qat(model, x, None if ours else STEPS)
    assert {id(p) for p in chip.parameters()} == {id(p) for p in model.parameters()}
    before, statistics = parameters(model), {k: v.clone() for k, v in model.named_buffers()}
    optimizer, losses = torch.optim.Adam(chip.parameters(), 1e-2), []
    for _ in range(5):
        loss = nn.functional.cross_entropy(chip.train()(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not any(torch.equal(a, b) for a, b in zip(before, parameters(model), strict=True))
    assert all(torch.equal(v, statistics[k]) for k, v in model.named_buffers())

    _, program = compile_model(model, tmp_path, x, None if ours else STEPS)
    record = simulate_fixed(program, x.numpy())
    with torch.no_grad():
        trained = chip(x)
    np.testing.assert_array_equal(trained.numpy(), record.outputs.astype(np.float32))
    assert min(counts.sum() for counts in record.spikes.values()) > 0


class Steps(nn.Module):
    """A network whose input changes, or is held behind a convolution."""

    def __init__(self, seed, steps, held):
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.hold = HoldTime(steps) if held else nn.Identity()
        tau = (1.0, 1.7, 3.0)[seed % 3]
        self.first, self.second = LIF(tau, 0.3, time_steps=steps), LIF(tau, 0.2, time_steps=steps)
        self.head, self.mean = nn.Linear(144, 3), TimeMean(steps)

    def forward(self, x):
        y = self.hold(self.a(x))
        spikes = self.first(y)
        return self.mean(self.head((self.second(self.b(spikes)) + spikes).flatten(1)))


@given(st.integers(0, 10_000), st.integers(1, 5), st.booleans(), st.sampled_from([1, 3, 40]))
@settings(max_examples=15)
def test_samples_of_steps_and_whole_numbers_are_those_of_the_fixed_engine(seed, steps, held, most):
    """Fractions, spikes, and whole numbers that enter as they are."""
    model = Steps(seed, steps, held).eval()
    x = maps(*(() if held else (steps,)), 5, seed=seed)
    x = (x * most / 3).clamp(-most, most).round() if seed % 2 else x
    if not x.any():
        return
    chip = prepare_qat(model, x)
    record = simulate_fixed(compile(graph_of(model, x, bound=None), x.numpy()), x.numpy(), rasters=5)
    with torch.no_grad():
        values, outputs = chip.values(chip.network(), x), chip(x)
    np.testing.assert_array_equal(outputs.numpy(), record.outputs.astype(np.float32))
    for name in ("first", "second"):
        assert np.array_equal(values[name].unflatten(0, (steps, 5)).transpose(0, 1), record.rasters[name]), name


def test_what_the_range_does_not_hold_is_refused():
    chip = prepare_qat(twin(), maps(8).clamp(-2, 2))
    with pytest.raises(SpikeportError, match=r"the input reaches 2.5, the network's range ends at 2; prepare it with"):
        chip(torch.full((1, 2, 6, 6), 2.5))
    with pytest.raises(SpikeportError, match="the input reaches nan"):
        chip(torch.full((1, 2, 6, 6), torch.nan))
    assert torch.isfinite(chip(torch.full((1, 2, 6, 6), -2.0))).all()

    chip = prepare_qat(twin(constant_input=False), events(STEPS, 8))
    with pytest.raises(SpikeportError, match="the input holds fractions, the samples that .* prepared with did not"):
        chip(events(STEPS, 2) / 2)
    with pytest.raises(SpikeportError, match="^the input has 2 steps, the network runs 3"):
        chip(events(2, 2))
    with pytest.raises(SpikeportError, match=r"input has shape \[3, 2, 2, 5, 6\]; the network takes \[3, N, 2, 6, 6\]"):
        chip(events(STEPS, 2)[:, :, :, 1:])


def test_what_cannot_be_trained_so_is_refused_before_anything_is_trained():
    cnn = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    with pytest.raises(SpikeportError, match="Sequential has no spiking neurons among its layers"):
        prepare_qat(cnn, maps(4))
    with pytest.raises(SpikeportError, match=r"say over how many time steps \(time_steps=T"):
        prepare_qat(jelly(), maps(4))
    with pytest.raises(SpikeportError, match=r"input shape \(8, 2, 6, 6\); expected"):
        prepare_qat(twin(), maps(STEPS, 8))
    with pytest.raises(SpikeportError, match="a network whose input changes takes"):
        prepare_qat(twin(constant_input=False), maps(4))
    with pytest.raises(SpikeportError, match="all 0, which gives the input no range"):
        prepare_qat(twin(), torch.zeros(4, 2, 6, 6))
    with pytest.raises(SpikeportError, match="time_steps is 4, the model has 3 of its own"):
        prepare_qat(twin(), maps(4), time_steps=4)
    assert prepare_qat(twin(), maps(4), time_steps=3) is not None
    broken = twin()
    next(broken.parameters()).data.fill_(torch.nan)
    with pytest.raises(SpikeportError, match="holds NaN or infinity"):
        prepare_qat(broken, maps(4))


def test_a_model_may_do_other_things_in_training():
    class Moody(nn.Sequential):
        def forward(self, x):
            return super().forward(x.flip(1) if self.training else x)

    x = maps(4)
    expected = prepare_qat(twin(), x)(x)
    assert torch.equal(prepare_qat(Moody(nn.Dropout(0.9), twin()).train(), x)(x), expected)


def run_fixed(model, folder, x, steps=STEPS):
    """What the program of a model gives."""
    _, program = compile_model(model, folder, x, steps, overwrite=True)
    return simulate_fixed(program, x.numpy()).outputs.astype(np.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_torchs_default_type_changes_nothing(dtype, tmp_path):
    model, x = jelly(), maps(8)
    chip, expected = prepare_qat(model, x, STEPS), run_fixed(model, tmp_path, x)
    try:
        torch.set_default_dtype(dtype)
        np.testing.assert_array_equal(chip(x).detach().numpy(), expected)
        np.testing.assert_array_equal(run_fixed(model, tmp_path, x), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def load(model):
    other = jelly()
    nn.init.normal_(other[4].weight)
    nn.init.uniform_(other[1].running_mean)
    model.load_state_dict(other.state_dict())


def assign(model):
    model.load_state_dict({name: value + 0.1 for name, value in model.state_dict().items()}, assign=True)


def train_in_float(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.train()(maps(8, seed=1)).square().sum().backward()
    optimizer.step()
    functional.reset_net(model.eval())


@pytest.mark.parametrize("change", [load, assign, train_in_float, lambda model: model.double()])
def test_what_changes_the_model_changes_the_network(change, tmp_path):
    model, x = jelly(), maps(8)
    chip = prepare_qat(model, x, STEPS)
    before = chip(x)
    change(model)
    after = chip(x).detach().numpy()
    np.testing.assert_array_equal(after, run_fixed(model, tmp_path, x))
    if change in (load, train_in_float):
        assert not np.array_equal(after, before.detach().numpy())


def test_hooks_are_refused_wherever_they_are():
    for at, register in (
        (2, nn.Module.register_forward_hook),
        (5, nn.Module.register_forward_pre_hook),
        (4, nn.Module.register_full_backward_hook),
        (0, nn.Module.register_full_backward_pre_hook),
    ):
        model = jelly()
        register(model[at], lambda *given: None)
        with pytest.raises(
            SpikeportError, match=rf"^{at} \(.*\): has a hook, which would not run in integers; remove it"
        ):
            prepare_qat(model, maps(4), STEPS)


def test_gradients_reach_what_is_in_front_of_the_network():
    """Straight through the rounding of the input, to within 8 bits as in float."""
    torch.manual_seed(0)
    model, x = twin(), maps(8) * 0.9
    chip, found, expected = prepare_qat(model, maps(8)), x.clone().requires_grad_(), x.clone().requires_grad_()
    chip(found).square().sum().backward()
    model(expected).square().sum().backward()
    assert torch.linalg.norm(found.grad - expected.grad) < 0.2 * torch.linalg.norm(expected.grad)


def test_autocast_changes_nothing(tmp_path):
    model, x = jelly(), maps(8)
    parametrizations.orthogonal(model[7])
    chip = prepare_qat(model, x, STEPS)
    with torch.autocast("cpu", torch.bfloat16):
        given = chip(x)
    np.testing.assert_array_equal(given.detach().numpy(), run_fixed(model, tmp_path, x))


def test_a_range_of_127_is_no_range_of_whole_numbers(tmp_path):
    model, x = jelly(), maps(8)
    x = x / x.abs().max() * 127
    np.testing.assert_array_equal(prepare_qat(model, x, STEPS)(x).detach().numpy(), run_fixed(model, tmp_path, x))


def test_a_network_is_copied_with_its_constants():
    class Scaled(nn.Sequential):
        def forward(self, x):
            return super().forward(x * torch.tensor(0.5))

    x = maps(8)
    chip = prepare_qat(Scaled(twin()), x)
    assert torch.equal(copy.deepcopy(chip)(x), chip(x))
    assert torch.equal(AveragedModel(chip)(x), chip(x))


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_what_is_wrapped_around_a_model_is_taken_off(wrap):
    x = maps(4)
    assert torch.equal(prepare_qat(wrap(twin()), x)(x), prepare_qat(twin(), x)(x))
    assert torch.equal(prepare_qat(wrap(jelly()), x, STEPS)(x), prepare_qat(jelly(), x, STEPS)(x))


def test_what_is_no_model_or_no_tensor_is_refused():
    chip = prepare_qat(twin(), maps(4))
    for model in ("runs/snn", None, chip):
        with pytest.raises(SpikeportError, match="prepare_qat takes a spiking model, a torch.nn.Module, not"):
            prepare_qat(model, maps(4))
    with pytest.raises(SpikeportError, match="the input is ndarray; give a tensor"):
        chip(maps(4).numpy())
    with pytest.raises(SpikeportError, match="the input is torch.complex64; give a tensor of real numbers"):
        chip(maps(4).to(torch.complex64))
    with pytest.raises(SpikeportError, match="zero samples; give at least one"):
        chip(maps(4)[:0])


class Flatter(surrogate.Sigmoid):
    """One of the user's own, by the name of another's base."""


Flatter.__name__ = "Sigmoid"


def test_a_surrogate_that_is_not_ours_is_told_of():
    for grad in (functools.partial(torch.relu), nn.Hardtanh(), snn_surrogate.triangular()):
        net = nn.Sequential(nn.Conv2d(2, 4, 3), snntorch.Leaky(0.5, spike_grad=grad, init_hidden=True), nn.Flatten())
        net[1].reset_mechanism = "zero"
        with pytest.warns(RuntimeWarning, match="^1: of a surrogate that LIF does not have"):
            prepare_qat(net.append(nn.Linear(64, 3)).eval(), maps(4), STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare_qat(jelly(), maps(4), STEPS)
    with pytest.warns(RuntimeWarning, match="^2, 5: of a surrogate"):
        prepare_qat(jelly(Flatter()), maps(4), STEPS)
    with pytest.warns(
        RuntimeWarning, match="^2, 5: of a surrogate that LIF does not have; trained with the arctangent"
    ):
        prepare_qat(jelly(surrogate.SoftSign()), maps(4), STEPS)
