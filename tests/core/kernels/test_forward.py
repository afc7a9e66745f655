"""Spikes and membranes of the CPU kernels equal the reference's, bit for bit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikeport.core import LIF, lif
from spikeport.core.kernels import cpu

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@st.composite
def layers(draw):
    """An input in some layout, a state or none, and parameters."""
    steps = draw(st.sampled_from([1, 2, 3, 4, 5, 8, 9, 16, 33]))
    shape = draw(st.lists(st.integers(0, 7), min_size=1, max_size=4))
    if draw(st.booleans()):
        shape[-1] += draw(st.sampled_from([100, 1023, 1100]))
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    constant = draw(st.booleans())
    full = shape if constant else [steps, *shape]
    x = (torch.randn(full, generator=generator) * 2 + 0.5).to(dtype)
    layout = draw(st.sampled_from(["contiguous", "reversed", "strided", "expanded"]))
    if layout == "reversed":  # the neurons of a step without gaps, in another order
        first = 0 if constant else 1
        order = [*range(first), *range(x.dim() - 1, first - 1, -1)]
        x = x.permute(order).contiguous().permute(order)
    elif layout == "strided":
        x = torch.stack([x, x + 1], -1)[..., 0]
    elif layout == "expanded":
        x = x[:1].expand_as(x)
    state = torch.randn(shape, generator=generator) if draw(st.booleans()) else None
    v_reset = draw(st.floats(-1, 1))
    options = {
        "tau": draw(st.floats(1, 20)),
        "v_threshold": v_reset + draw(st.floats(0.1, 2)),
        "v_reset": v_reset,
        "time_steps": steps if constant else None,
        "decay_input": draw(st.booleans()),
    }
    return x, state, options


@settings(max_examples=300, deadline=None)
@given(layer=layers(), level=st.integers(0, 2))
def test_spikes_and_membrane_are_the_references(kernel, reference, assert_same, layer, level):
    x, state, options = layer
    cpu.library().spikeport_use(level)
    spikes, membrane = kernel(x, state, **options)
    expected, expected_membrane = reference(x, state, **options)
    assert_same(spikes, expected)
    assert_same(membrane, expected_membrane)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("steps", [3, 4, 6])
def test_infinity_and_nan_go_where_the_reference_sends_them(kernel, reference, assert_same, dtype, steps):
    values = [math.inf, -math.inf, math.nan, 0.0, -0.0, 3.0, -3.0, 60000.0]
    grid = torch.tensor(values, dtype=dtype)
    x = torch.stack([grid.roll(t)[:, None] + grid.roll(3 * t) for t in range(steps)])
    state = torch.tensor(values).repeat(len(values), 1)
    for initial in (None, state):
        for result, expected in zip(kernel(x, initial), reference(x, initial), strict=True):
            assert_same(result, expected)


def test_half_precision_rounds_as_torch_does(kernel, assert_same):
    # Spikes are 0 and 1; what the membrane shows is the conversion of every float16 there is, and back in the gradient.
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    _, membrane = kernel(every[None], tau=1.0, v_threshold=math.inf)
    finite = every.isfinite()
    assert torch.equal(membrane[finite], every.float()[finite])
    for dtype in (torch.float16, torch.bfloat16):
        leaf = torch.zeros(1, 40000, dtype=dtype, requires_grad=True)
        grad = torch.logspace(-9, 5.2, 40000) * torch.tensor([1.0, -1.0]).repeat(20000)
        grad[:2] = torch.tensor([0x7F800001, 0x7FFFFFFF], dtype=torch.int32).view(torch.float32)  # two kinds of NaN
        _, membrane = kernel(leaf, tau=1.0, detach_reset=True, surrogate="piecewise-linear", alpha=1.0)
        membrane.backward(grad)
        assert_same(leaf.grad[0], grad.to(dtype))


def test_channels_last_stays_channels_last_and_is_not_copied(kernel, reference, monkeypatch):
    x = torch.randn(8, 5, 6, 7).to(memory_format=torch.channels_last)
    seen = []
    original = cpu.lif
    monkeypatch.setattr(
        cpu, "lif", lambda code, x, *rest, **tensors: (seen.append(x.data_ptr()), original(code, x, *rest, **tensors))
    )
    spikes = LIF(time_steps=4)(x)
    assert spikes.is_contiguous(memory_format=torch.channels_last)
    assert seen == [x.data_ptr()]
    assert torch.equal(spikes.unflatten(0, (4, 2)), reference(x.unflatten(0, (4, 2)))[0])


def test_a_window_of_a_longer_sequence_is_not_copied(kernel, monkeypatch):
    seen = []
    original = cpu.lif
    monkeypatch.setattr(
        cpu, "lif", lambda code, x, *rest, **tensors: (seen.append(x.data_ptr()), original(code, x, *rest, **tensors))
    )
    x = torch.randn(6, 9, 4)[:, 3:7]
    spikes, _ = kernel(x)
    assert seen == [x.data_ptr()]
    assert torch.equal(spikes, lif(x.contiguous())[0])


@pytest.mark.parametrize("shape", [(4, 0), (4, 3, 0, 2)])
def test_no_neurons(kernel, shape):
    x = torch.zeros(shape, requires_grad=True)
    spikes, membrane = kernel(x)
    (spikes.sum() + membrane.sum()).backward()
    assert spikes.shape == x.grad.shape == shape
    assert membrane.shape == shape[1:]
