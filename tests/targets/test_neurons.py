"""A population's neurons, compiled and in torch's int64, against Loihi's step written in NumPy's int64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spikeport.targets.loihi import neurons
from spikeport.targets.loihi.program import Population

LIMIT = 1 << 23


def reference(current, steps, du, dv, vth, bias):
    """spikes [T, N, C, H, W], last v, wraps and saturations of int64 currents [T or 1, N, C, H, W]."""
    u = v = np.zeros(current.shape[1:], np.int64)
    wraps = saturations = 0
    spikes = []
    for t in range(steps):
        u = toward_zero(u, 4096 - (du + 1)) + (current[min(t, len(current) - 1)] << 6)
        over, under = u > LIMIT, u <= -LIMIT
        wraps += int(over.sum() + under.sum())
        u = u - over * 2 * LIMIT + under * 2 * LIMIT
        v = toward_zero(v, 4096 - dv) + u + bias
        saturations += int((np.abs(v) >= LIMIT - 1).sum())
        v = np.clip(v, 1 - LIMIT, LIMIT - 1)
        spikes.append(v > vth << 6)
        v = np.where(spikes[-1], 0, v)
    return np.array(spikes), v, wraps, saturations


def toward_zero(x, retained):
    product = x * retained
    return np.sign(product) * (np.abs(product) >> 12)


@st.composite
def cases(draw):
    """A population, its currents and its number of steps; constants differ between channels or do not."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps = draw(st.integers(1, 6))
    shape = draw(st.sampled_from([(1, 1, 1), (3, 2, 2), (16, 3, 1)]))
    decays = st.sampled_from([0, 1, 1365, 2048, 3072, 4095]) | st.integers(0, 4095)

    def constant(strategy):
        several = draw(st.lists(strategy, min_size=shape[0], max_size=shape[0])) if draw(st.booleans()) else None
        return np.array(several, np.int32) if several else draw(strategy)

    du, dv = constant(st.just(4095) | decays), constant(decays)
    size = draw(st.sampled_from([20, 3000, 30_000, 200_000]))
    vth = constant(st.integers(0, 131071).map(lambda v: min(v, 2 * size)))
    bias = rng.integers(-4095, 4096, draw(st.sampled_from([shape[:1], shape]))).astype(np.int32) * draw(st.booleans())
    population = Population("p", "", shape, du, dv, vth, bias, draw(st.integers(0, 7)), 1.0, 1)
    moving = draw(st.booleans())
    current = rng.integers(-size, size + 1, (steps if moving else 1, draw(st.integers(1, 3)), *shape))
    return population, current, steps


def run(population, current, steps, dtype=torch.float32):
    x = torch.from_numpy(current)
    maps = x.flatten(0, 1).to(dtype).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
    return neurons.run(population, maps, steps)


def assert_equal(found, population, current, steps):
    du, dv, vth = (np.reshape(x, (-1, 1, 1)).astype(np.int64) for x in (population.du, population.dv, population.vth))
    spikes, v, wraps, saturations = reference(current, steps, du, dv, vth, population.bias)
    np.testing.assert_array_equal(found.spikes.numpy(), spikes)
    np.testing.assert_array_equal(found.v.numpy(), v)
    assert (found.wraps, found.saturations) == (wraps, saturations)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # it holds for all of the examples
@given(case=cases())
def test_every_step_is_loihis(form, case):
    population, current, steps = case
    assert_equal(run(population, current, steps), population, current, steps)


@given(case=cases())
def test_currents_of_64_bits(case):
    population, current, steps = case
    assert_equal(run(population, current, steps, torch.float64), population, current, steps)


@given(case=cases())
def test_a_bias_for_every_neuron(case):
    """As a host writes it."""
    population, current, steps = case
    rng = np.random.default_rng(0)
    population = replace(population, bias_mant=rng.integers(-4095, 4096, current.shape[1:]).astype(np.int32))
    assert_equal(run(population, current, steps), population, current, steps)


@pytest.mark.parametrize("du", [4095, 1000])
def test_many_neurons_in_several_threads(du):
    population = Population("p", "", (130, 20, 20), du, 1365, 400, np.arange(130, dtype=np.int32), 2, 1.0, 1)
    current = np.random.default_rng(0).integers(-3000, 3001, (5, 3, 130, 20, 20))
    assert_equal(run(population, current, 5), population, current, 5)


@pytest.mark.parametrize("du", [4095, 2048, 0])
def test_the_largest_currents_wrap_and_saturate_as_they_should(form, du):
    """2^24 - 1, the end of float32's whole numbers, wraps once a step and goes on growing where u is remembered."""
    population = Population("p", "", (4, 1, 1), du, 0, 131071, np.array([4095, -4095, 0, 1], np.int32), 7, 1.0, 1)
    current = np.array([1, -1, 1, -1]).reshape(1, 1, 4, 1, 1) * ((1 << 24) - 1)
    found = run(population, current, 12)
    assert_equal(found, population, current, 12)
    assert found.wraps == 48
    assert found.saturations == 48


@pytest.mark.parametrize(
    ("current", "bias", "wraps", "saturations"),
    [
        (-131071, -62, 0, 0),  # the lowest voltage without a saturation
        (-131071, -63, 0, 1),
        (131071, 62, 0, 0),  # the highest
        (131071, 63, 0, 1),
        (131072, 0, 0, 1),  # u = 2^23 stands
        (-131072, 0, 1, 1),  # u = -2^23 wraps, to 2^23
    ],
)
def test_one_step_from_the_limits_of_24_bits(form, current, bias, wraps, saturations):
    population = Population("p", "", (1, 1, 1), 4095, 0, 131072, np.array([bias], np.int32), 0, 1.0, 1)
    currents = np.full((1, 1, 1, 1, 1), current)
    found = run(population, currents, 1)
    assert_equal(found, population, currents, 1)
    assert (found.wraps, found.saturations) == (wraps, saturations)
