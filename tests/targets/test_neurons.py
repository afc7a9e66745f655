"""A population's neurons, in whichever type is fast and exact, against Loihi's step written in NumPy's int64."""

import numpy as np
import pytest
import torch
from hypothesis import given
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
    bias = rng.integers(-4095, 4096, shape[0]).astype(np.int32) * draw(st.booleans())
    population = Population("p", "", shape, du, dv, vth, bias, draw(st.integers(0, 7)), 1.0, 1)
    moving = draw(st.booleans())
    current = rng.integers(-size, size + 1, (steps if moving else 1, draw(st.integers(1, 3)), *shape))
    return population, current, steps


def run(population, current, steps, peak, dtype=torch.float32):
    x = torch.from_numpy(current)
    maps = x.flatten(0, 1).to(dtype).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
    return neurons.run(population, maps, peak, steps)


def assert_equal(found, population, current, steps):
    du, dv, vth = (np.reshape(x, (-1, 1, 1)).astype(np.int64) for x in (population.du, population.dv, population.vth))
    spikes, v, wraps, saturations = reference(current, steps, du, dv, vth, population.bias)
    np.testing.assert_array_equal(found.spikes.numpy(), spikes)
    np.testing.assert_array_equal(found.v.numpy(), v)
    assert (found.wraps, found.saturations) == (wraps, saturations)


@given(cases(), st.sampled_from([1, 50]), st.sampled_from([torch.float32, torch.float64]))
def test_every_step_is_loihis(case, slack, dtype):
    """With the tightest bound on the currents and with a loose one."""
    population, current, steps = case
    found = run(population, current, steps, slack * int(np.abs(current).max()), dtype)
    assert_equal(found, population, current, steps)


@pytest.mark.parametrize(
    ("largest", "dv", "dtype"),
    [
        # v * 2048 keeps 24 bits, v * 1365 does not; 4 * 40,000 * 64 leaves them.
        (30_000, 2048, torch.float32),
        (30_000, 4096 - 1365, torch.float64),
        (40_000, 0, torch.int64),
    ],
)
def test_each_type_is_taken_where_it_is_exact(largest, dv, dtype):
    population = Population("p", "", (2, 3, 3), 4095, dv, 100_000, np.array([7, -9], np.int32), 0, 1.0, 1)
    current = np.random.default_rng(0).choice([-largest, largest, largest - 1, 3], (4, 2, 2, 3, 3))
    current[:, 0, 0, 0, 0] = -largest  # never fires, and goes as far as it can
    assert neurons.neurons(population, largest, 4, torch.float32).dtype == dtype
    found = run(population, current, 4, largest)
    assert_equal(found, population, current, 4)
    assert (found.saturations > 0) == (dtype == torch.int64)


def test_one_step_from_the_limit_of_24_bits():
    """The largest state without a saturation runs in float32, one more is counted."""
    for bias, counted in ((-62, 0), (-63, 1)):
        population = Population("p", "", (1, 1, 1), 4095, 0, 1, np.array([bias], np.int32), 0, 1.0, 1)
        current = np.full((1, 1, 1, 1, 1), -131071)  # * 64 is 64 short of -2^23
        found = run(population, current, 1, 131071)
        assert_equal(found, population, current, 1)
        assert found.saturations == counted
