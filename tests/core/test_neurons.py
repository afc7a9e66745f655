"""The LIF neuron against SpikingJelly, against a scalar loop, and against formulas by hand."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based import functional, surrogate
from spikingjelly.activation_based.neuron import LIFNode
from torch import nn

from spikeport.core import LIF, SpikeportError, TimeMean, lif
from spikeport.core.surrogates import SURROGATES

taus = st.floats(1.01, 10.0)
thresholds = st.floats(0.1, 2.0)
resets = st.sampled_from([0.0, -0.5, 0.05])
seeds = st.integers(0, 10_000)
steps = st.integers(1, 8)


def current(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Random currents that make a good part of the neurons fire."""
    return 0.7 + 1.5 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def spikingjelly(x: torch.Tensor, tau: float, v_threshold: float, v_reset: float) -> tuple[torch.Tensor, torch.Tensor]:
    node = LIFNode(tau=tau, v_threshold=v_threshold, v_reset=v_reset, step_mode="m", store_v_seq=True).double()
    return node(x), node.v_seq


@given(taus, thresholds, resets, steps, seeds)
def test_equals_spikingjelly_in_float64(tau, v_threshold, v_reset, time_steps, seed):
    x = current(seed, time_steps, 3, 5)
    expected, membranes = spikingjelly(x, tau, v_threshold, v_reset)
    for t in range(1, time_steps + 1):  # the membrane after every step, not only the last
        spikes, v = lif(x[:t], tau=tau, v_threshold=v_threshold, v_reset=v_reset)
        assert torch.equal(spikes, expected[:t])
        torch.testing.assert_close(v, membranes[t - 1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "theirs"), [("atan", surrogate.ATan(2.0)), ("sigmoid", surrogate.Sigmoid(4.0))])
@pytest.mark.parametrize("detach", [False, True])
def test_gradient_through_time_equals_spikingjelly(name, theirs, detach):
    ours, peer = current(1, 6, 4, 7).requires_grad_(), current(1, 6, 4, 7).requires_grad_()
    weight = current(2, 6, 4, 7)
    node = LIFNode(tau=1.7, surrogate_function=theirs, detach_reset=detach, step_mode="m").double()
    (lif(ours, tau=1.7, surrogate=name, detach_reset=detach)[0] * weight).sum().backward()
    (node(peer) * weight).sum().backward()
    functional.reset_net(node)
    torch.testing.assert_close(ours.grad, peer.grad, rtol=1e-12, atol=1e-12)


@given(taus, thresholds, resets, steps, seeds)
def test_equals_a_scalar_loop(tau, v_threshold, v_reset, time_steps, seed):
    x = current(seed, time_steps, 4)
    spikes, state = lif(x, tau=tau, v_threshold=v_threshold, v_reset=v_reset)
    for n in range(4):
        v = v_reset
        for t in range(time_steps):
            h = v + (x[t, n].item() - (v - v_reset)) / tau
            fires = h >= v_threshold
            v = v_reset if fires else h
            assert spikes[t, n].item() == float(fires)
        assert state[n].item() == pytest.approx(v, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("v_reset", [0.0, -0.5, 0.25])
def test_fires_at_the_threshold_and_not_one_float_below(v_reset):
    at = torch.tensor([[1.0]], dtype=torch.float64)  # tau 1: the membrane is the current, seen from v_reset
    spikes, state = lif(at - v_reset, tau=1.0, v_threshold=1.0, v_reset=v_reset)
    assert spikes.item() == 1
    assert state.item() == v_reset
    below = torch.nextafter(at - v_reset, torch.zeros_like(at))
    assert lif(below, tau=1.0, v_threshold=1.0, v_reset=v_reset)[0].item() == 0


@given(taus, resets, steps, seeds)
def test_constant_input_equals_repeated_input(tau, v_reset, time_steps, seed):
    x = current(seed, 3, 5)
    held = lif(x, tau=tau, v_reset=v_reset, time_steps=time_steps)
    repeated = lif(x.expand(time_steps, 3, 5), tau=tau, v_reset=v_reset)
    assert torch.equal(held[0], repeated[0])
    assert torch.equal(held[1], repeated[1])


@given(taus, resets, steps, steps, seeds)
def test_state_carries_over(tau, v_reset, first, second, seed):
    x = current(seed, first + second, 2, 6)
    whole, last = lif(x, tau=tau, v_reset=v_reset)
    a, state = lif(x[:first], tau=tau, v_reset=v_reset)
    b, end = lif(x[first:], state, tau=tau, v_reset=v_reset)
    assert torch.equal(torch.cat([a, b]), whole)
    torch.testing.assert_close(end, last, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_keeps_a_float32_state(dtype):
    x = current(3, 6, 4, 9).to(dtype)
    spikes, state = lif(x, tau=1.8)
    expected, expected_state = lif(x.float(), tau=1.8)
    assert (spikes.dtype, state.dtype) == (dtype, torch.float32)
    assert torch.equal(spikes.float(), expected)
    assert torch.equal(state, expected_state)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("v_reset", [0.0, -0.5])
def test_module_equals_function_with_time_in_the_batch(constant, v_reset):
    x = current(4, 1 if constant else 5, 3, 2, 4)
    module = LIF(tau=1.6, v_threshold=0.9, v_reset=v_reset, time_steps=5, constant_input=constant)
    given_x = x[0] if constant else x
    expected, _ = lif(given_x, tau=1.6, v_threshold=0.9, v_reset=v_reset, time_steps=5 if constant else None)
    assert torch.equal(module(x.flatten(0, 1)), expected.flatten(0, 1))


def test_module_holds_nothing_between_calls():
    module = LIF(time_steps=4)
    x = current(5, 8, 3, dtype=torch.float32)
    first = module(x)
    module(10 * x)
    assert torch.equal(module(x), first)
    assert module.state_dict() == {}


def test_readout_is_the_mean_over_time():
    x = current(6, 12, 5)
    torch.testing.assert_close(TimeMean(4)(x), (x[0:3] + x[3:6] + x[6:9] + x[9:12]) / 4)


def by_hand(name: str, u: float, alpha: float) -> float:
    """The derivatives as the papers write them."""
    return {
        "atan": alpha / (2 * (1 + (math.pi * alpha * u / 2) ** 2)),
        "sigmoid": alpha * math.exp(-alpha * u) / (1 + math.exp(-alpha * u)) ** 2,
        "fast-sigmoid": 1 / (1 + alpha * abs(u)) ** 2,
        "piecewise-linear": max(0.0, alpha - alpha**2 * abs(u)),
        "exponential": alpha * math.exp(-alpha * abs(u)) / 2,
    }[name]


@pytest.mark.parametrize("name", SURROGATES)
@given(u=st.floats(-3, 3), alpha=st.floats(0.5, 10.0))
def test_surrogate_derivatives_are_those_of_the_papers(name, u, alpha):
    found = SURROGATES[name][0](torch.tensor(u, dtype=torch.float64), alpha).item()
    assert found == pytest.approx(by_hand(name, u, alpha), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", SURROGATES)
@given(u=st.floats(-3, 3), alpha=st.floats(0.5, 10.0))
def test_gradient_of_one_step_is_the_surrogates(name, u, alpha):
    tau, v_threshold = 2.5, 1.0
    x = torch.tensor([[tau * (u + v_threshold)]], dtype=torch.float64, requires_grad=True)
    lif(x, tau=tau, v_threshold=v_threshold, surrogate=name, alpha=alpha)[0].sum().backward()
    distance = x.item() / tau - v_threshold
    assert x.grad.item() == pytest.approx(by_hand(name, distance, alpha) / tau, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("detach", [False, True])
def test_gradient_through_the_reset_by_hand(name, detach):
    tau, alpha = 2.0, SURROGATES[name][1]
    x = torch.tensor([[1.7], [1.9]], dtype=torch.float64, requires_grad=True)
    spikes, _ = lif(x, tau=tau, surrogate=name, detach_reset=detach)
    (grad,) = torch.autograd.grad(spikes[1].sum(), x)
    gain, decay = 1 / tau, 1 - 1 / tau
    h1 = 1.7 * gain
    assert spikes[0].item() == 0
    h2 = decay * h1 + 1.9 * gain
    dv1 = gain - (0.0 if detach else h1 * by_hand(name, h1 - 1, alpha) * gain)
    assert grad[0].item() == pytest.approx(by_hand(name, h2 - 1, alpha) * decay * dv1, rel=1e-9)
    assert grad[1].item() == pytest.approx(by_hand(name, h2 - 1, alpha) * gain, rel=1e-9)


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogate_derivatives_can_be_differentiated_twice(name):
    derivative, alpha = SURROGATES[name]
    # away from 0 and from 1 / alpha, where some of them have a kink
    u = (torch.tensor([-1.3, -0.6, -0.31, 0.27, 0.44, 1.6], dtype=torch.float64) / alpha).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: derivative(u, alpha), u)
    assert torch.autograd.gradgradcheck(lambda u: derivative(u, alpha), u)


@pytest.mark.parametrize("name", SURROGATES)
def test_second_derivative_of_a_neuron_is_that_of_its_surrogate(name):
    alpha = SURROGATES[name][1]
    x = torch.tensor([[1 + 0.37 / alpha]], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(lif(x, tau=1.0, surrogate=name)[0].sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    u, eps = 0.37 / alpha, 1e-6
    expected = (by_hand(name, u + eps, alpha) - by_hand(name, u - eps, alpha)) / (2 * eps)
    assert second.item() == pytest.approx(expected, rel=1e-6)


X = torch.zeros(4, 2, 3)


@pytest.mark.parametrize(
    ("argument", "x", "kwargs"),
    [
        ("x is torch.int64", X.long(), {}),
        ("tau is 0.5", X, {"tau": 0.5}),
        ("tau is nan", X, {"tau": math.nan}),
        ("tau is inf", X, {"tau": math.inf}),
        ("v_threshold 1.0", X, {"v_reset": 1.0}),
        ("v_threshold nan", X, {"v_threshold": math.nan}),
        ("v_reset nan", X, {"v_reset": math.nan}),
        ("tau is a tensor", X, {"tau": nn.Parameter(torch.tensor(2.0))}),
        (r"x has shape \[4\]", X[:, 0, 0], {}),
        (r"x has shape \[\]; expected \[N", torch.tensor(1.0), {"time_steps": 4}),
        ("0 time steps", X[:0], {}),
        ("time_steps is -1; a whole number", X, {"time_steps": -1}),
        ("time_steps is 2.5; a whole number", X, {"time_steps": 2.5}),
        ("time_steps is True; a whole number", X, {"time_steps": True}),
        ("time_steps is 10*; a whole number", X, {"time_steps": 10**30}),
        ("tau is None; give a number", X, {"tau": None}),
        ("tau is True; give a number", X, {"tau": True}),
        ("v_threshold is '1'; give a number", X, {"v_threshold": "1"}),
        ("v_threshold is 10*; give a number", X, {"v_threshold": 10**400}),
        ("v_reset is 1j; give a number", X, {"v_reset": 1j}),
        ("alpha is True; the surrogate's", X, {"alpha": True}),
        (r"alpha is \[2\]; the surrogate's", X, {"alpha": [2]}),
        ("x is torch.float8_e5m2; currents are floating point", X.to(torch.float8_e5m2), {}),
        (r"state has shape \[3\]", X, {"state": torch.zeros(3)}),
        (r"state has shape \[2, 3\]", X, {"state": torch.zeros(2, 3), "time_steps": 4}),
        ("unknown surrogate 'step'", X, {"surrogate": "step"}),
    ],
)
def test_a_bad_argument_is_named(argument, x, kwargs):
    with pytest.raises(SpikeportError, match=argument):
        lif(x, **kwargs)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("number", [np.float32, np.int64, Fraction])
def test_numbers_of_other_libraries_are_numbers(monkeypatch, kernels, number):
    monkeypatch.setenv("SPIKEPORT_KERNELS", kernels)
    given = {"tau": number(2), "v_threshold": number(1), "v_reset": number(-1), "alpha": number(3)}
    ours, plain = current(7, 4, 9).requires_grad_(), current(7, 4, 9).requires_grad_()
    state = torch.zeros(9, dtype=torch.float64)
    for found, expected in zip(
        lif(ours, state, **given), lif(plain, state, **{name: float(v) for name, v in given.items()}), strict=True
    ):
        assert torch.equal(found, expected)
        found.sum().backward(retain_graph=True)
        expected.sum().backward(retain_graph=True)
    assert torch.equal(ours.grad, plain.grad)


def test_a_batch_that_is_no_multiple_of_the_steps_is_refused():
    with pytest.raises(SpikeportError, match="not a multiple of 4 time steps"):
        LIF(time_steps=4)(torch.zeros(6, 2))
    with pytest.raises(SpikeportError, match="unknown surrogate"):
        LIF(surrogate="none")


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("steps", "samples"), [(1, 1), (1, 2), (4, 1)])
def test_gradients_do_not_depend_on_the_layout(kernels, fused, steps, samples, monkeypatch):
    """torch's batch_norm has a wrong gradient for one channels-last image with the strides that unflatten gives it."""
    if kernels == "reference":
        monkeypatch.setenv("SPIKEPORT_KERNELS", kernels)
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)]
    lifs = [LIF(v_threshold=0.2, time_steps=steps, constant_input=first) for first in (True, False)]
    net = nn.Sequential(*layers).double()
    x = torch.randn(samples, 3, 9, 9, dtype=torch.float64)

    def gradients(layout):
        net.zero_grad()
        y = x.contiguous(memory_format=layout)
        for conv, norm, neurons in ((net[0], net[1], lifs[0]), (net[2], net[3], lifs[1])):
            y = neurons(conv(y), norm) if fused else norm(neurons(conv(y)))
        torch.tanh(nn.functional.adaptive_avg_pool2d(y, 1) + 0.3).square().sum().backward()
        return {name: p.grad.clone() for name, p in net.named_parameters()}

    contiguous = gradients(torch.contiguous_format)
    net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(gradients(torch.channels_last), contiguous)
