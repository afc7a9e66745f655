"""The gradient of neurons run in integers, compiled and in torch, against autograd in float64."""

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spikeport.core.surrogates import SURROGATES
from spikeport.targets.loihi import neurons
from spikeport.targets.loihi.gradients import Slope, gradient
from spikeport.targets.loihi.program import Population


class Fire(torch.autograd.Function):
    """Gives the spikes it is told; backward by the slope."""

    @staticmethod
    def forward(ctx, h, spikes, slope):
        ctx.save_for_backward(h)
        ctx.slope = slope
        return spikes.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.slope(*ctx.saved_tensors), None, None


def reference(population, current, spikes, grad_spikes, grad_v, slope):
    """As ``gradient``, in float64."""
    shape = (population.shape[0], 1, 1)
    kept_u, kept_v = (
        torch.from_numpy(np.broadcast_to(1 - np.asarray(d) / 4096, shape[0]).copy()).view(shape)
        for d in (np.asarray(population.du) + 1, population.dv)
    )
    x = current.double().requires_grad_()
    bias = torch.from_numpy(population.bias_mant.astype(float) * (1 << population.bias_exp)).requires_grad_()
    u = v = torch.zeros_like(x[0])
    total = torch.zeros((), dtype=torch.float64)
    for t, fired in enumerate(spikes.double()):
        u = u * kept_u + x[min(t, len(x) - 1)] * 64
        h = v * kept_v + u + (bias if bias.ndim == 3 else bias.view(shape))
        s = fired if slope is None else Fire.apply(h, fired, slope)
        v = h * (1 - (s.detach() if slope is None or slope.detach_reset else s))
        if population.spiking and grad_spikes is not None:
            total = total + (s * grad_spikes[t]).sum()
    if grad_v is not None:
        total = total + (v * grad_v).sum()
    return torch.autograd.grad(total, [x, bias], allow_unused=True)


@st.composite
def cases(draw):
    """Arguments of ``gradient``; constants differ between channels or do not."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    steps, channels = draw(st.integers(1, 6)), draw(st.sampled_from([1, 3, 16, 70]))
    shape = (channels, *draw(st.sampled_from([(1, 1), (2, 3), (8, 5)])))
    several = draw(st.booleans())
    du = draw(st.sampled_from([4095, 1000]))
    dv = rng.integers(0, 4096, channels).astype(np.int32) if several else draw(st.sampled_from([0, 1365, 4095]))
    bias = rng.integers(-4095, 4096, draw(st.sampled_from([shape[:1], shape]))).astype(np.int32)
    spiking = draw(st.booleans())
    population = Population("p", "", shape, du, dv, 400 if spiking else 131072, bias, 2, 1.0, 1, spiking)
    samples = draw(st.integers(1, 3))
    held = draw(st.booleans())
    current = torch.from_numpy(rng.integers(-700, 701, (1 if held else steps, samples, *shape))).float()
    spikes = neurons.run(population, current, steps).spikes
    noise = lambda *size: torch.randn(size, generator=generator)  # noqa: E731
    grad_spikes = noise(steps, samples, *shape) if draw(st.booleans()) else None
    grad_v = noise(samples, *shape) if not spiking or grad_spikes is None else None
    slope = None
    if spiking:
        slope = Slope(draw(st.sampled_from(list(SURROGATES))), 64.0 * 300, 0.9, 1.7, detach_reset=draw(st.booleans()))
    return population, current, spikes, grad_spikes, grad_v, slope


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # it holds for all of the examples
@given(case=cases())
def test_it_is_autograds(form, case):
    current = case[1]
    for result, expected in zip(gradient(*case), reference(*case), strict=True):
        expected = torch.zeros_like(result) if expected is None else expected
        assert result.dtype == torch.float32
        largest = float(expected.abs().max())
        torch.testing.assert_close(result.double(), expected.double(), rtol=1e-4, atol=1e-5 * largest)
    assert gradient(*case)[0].shape == current.shape


def test_any_layout_and_any_number_of_threads_give_the_same_bits():
    population = Population("p", "", (70, 20, 20), 4095, 1365, 400, np.arange(70, dtype=np.int32), 2, 1.0, 1)
    current = torch.randint(-700, 701, (4, 8, 70, 20, 20)).float()
    spikes, slope = neurons.run(population, current, 4).spikes, Slope("atan", 64.0 * 300, 0.9, 2.0)
    grad = torch.randn(4, 8, 70, 20, 20)
    maps = lambda t: t.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (4, 8))  # noqa: E731
    before, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(gradient(population, current, spikes, grad, None, slope))
            results.append(gradient(population, maps(current), spikes, maps(grad), None, slope))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
