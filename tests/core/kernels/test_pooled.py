"""BatchNorm, LIF and max-pooling in one: BatchNorm and LIF in one, followed by max_pool2d."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import max_pool2d

from spikeport.core import LIF, SpikeportError
from spikeport.core.kernels import cpu
from spikeport.core.surrogates import SURROGATES

LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.002}


def layers(channels, training=True, **options):
    torch.manual_seed(channels)
    norm, neurons = nn.BatchNorm2d(channels), LIF(tau=1.5, v_threshold=0.4, **options)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(channels) + 0.5)
        norm.bias.copy_(torch.rand(channels))
    return norm.train(training), neurons


def draw(shape, dtype=torch.float32, memory_format=torch.channels_last):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(memory_format=memory_format)


def run(norm, neurons, x, pooled):
    """Pooled spikes, and the gradients of x, weight and bias."""
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    spikes = neurons(leaf, norm, True) if pooled else max_pool2d(neurons(leaf, norm), 2)
    cotangent = torch.cos(torch.arange(spikes.numel(), dtype=torch.float64)).view(spikes.shape).to(spikes.dtype)
    return spikes, torch.autograd.grad(spikes, [leaf, norm.weight, norm.bias], cotangent)


def watch_pairs(monkeypatch):
    """The ``pair`` of every call of the compiled layer."""
    pairs, norm = [], cpu.norm
    monkeypatch.setattr(cpu, "norm", lambda *a, **tensors: pairs.append(a[-1].pair) or norm(*a, **tensors))
    return pairs


@given(
    st.integers(1, 3),
    st.sampled_from([1, 2, 5, 16, 37, 300]),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.sampled_from([1, 3, 4, 6, 8, 9]),
    st.booleans(),
    st.sampled_from(list(LIMITS)),
    st.booleans(),
    st.sampled_from(list(SURROGATES)),
    st.booleans(),
    st.integers(0, 2),
)
def test_equals_the_neurons_followed_by_the_pooling(
    kernel, distance, samples, channels, size, steps, constant, dtype, training, surrogate, detach, level
):
    cpu.library().spikeport_use(level)
    x = draw((samples * (1 if constant else steps), channels, 2 * size[0], 2 * size[1]), dtype)
    options = {"time_steps": steps, "constant_input": constant, "surrogate": surrogate, "detach_reset": detach}
    results = []
    for pooled in (True, False):
        norm, neurons = layers(channels, training, **options)
        norm = norm.double() if dtype == torch.float64 else norm
        results.append((*run(norm, neurons, x, pooled), dict(norm.named_buffers())))
    (spikes, gradients, statistics), (expected, expected_gradients, expected_statistics) = results
    assert torch.equal(spikes, expected)
    assert spikes.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(statistics[name], value) for name, value in expected_statistics.items())
    if training and samples * size[0] * size[1] < 8:
        return  # over so few values the gradient of BatchNorm all but cancels out
    for result, reference in zip(gradients, expected_gradients, strict=True):
        assert distance(result, reference) <= LIMITS[dtype]


def test_it_is_the_compiled_layer_that_pools(kernel, monkeypatch):
    pairs = watch_pairs(monkeypatch)
    run(*layers(6, time_steps=4), draw((8, 6, 4, 10)), True)
    assert pairs == [2 * 10 * 6] * 2


@pytest.mark.parametrize(
    ("shape", "memory_format"), [((8, 6, 4, 4), torch.contiguous_format), ((8, 6, 5, 4), torch.channels_last)]
)
def test_another_layout_and_odd_sizes_are_pooled_by_torch(kernel, monkeypatch, shape, memory_format):
    pairs = watch_pairs(monkeypatch)
    x = draw(shape, memory_format=memory_format)
    spikes, gradients = run(*layers(6, time_steps=4), x, True)
    expected, expected_gradients = run(*layers(6, time_steps=4), x, False)
    assert torch.equal(spikes, expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected_gradients, strict=True))
    assert set(pairs) == {0}


def test_without_the_kernels_the_three_layers_run(monkeypatch):
    monkeypatch.setenv("SPIKEPORT_KERNELS", "reference")
    monkeypatch.setattr(cpu, "norm", lambda *a, **k: pytest.fail("a kernel ran"))
    x = draw((8, 6, 4, 4))
    spikes, gradients = run(*layers(6, time_steps=4), x, True)
    expected, expected_gradients = run(*layers(6, time_steps=4), x, False)
    assert torch.equal(spikes, expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected_gradients, strict=True))


def test_the_operator_refuses_what_it_cannot_pool(kernel):
    factors = [torch.ones(6) for _ in range(4)]
    numbers = (1e-5, True, True, 2, False, [0.5, 0.5, 1.0, 0.0, 2.0], 0, False, False)
    with pytest.raises(SpikeportError, match=r"channels-last images of even height and width; got \[2, 3, 6, 5, 4\]"):
        torch.ops.spikeport.batch_norm_lif(torch.zeros(2, 3, 6, 5, 4), *factors, *numbers)


@pytest.mark.parametrize("constant", [False, True])
def test_gradient_of_the_gradient(kernel, distance, constant):
    seconds = []
    for pooled in (True, False):
        norm, neurons = layers(5, time_steps=3, constant_input=constant)
        leaf = draw((3 if constant else 9, 5, 4, 6), torch.float64).requires_grad_()
        cotangent = torch.full((9, 5, 2, 3), 0.3, dtype=torch.float64, requires_grad=True)
        inputs = [leaf, *norm.double().parameters()]
        spikes = neurons(leaf, norm, True) if pooled else max_pool2d(neurons(leaf, norm), 2)
        first = torch.autograd.grad(spikes, inputs, cotangent, create_graph=True)
        weighted = sum((g * torch.arange(g.numel()).view_as(g).cos()).sum() for g in first)
        seconds.append(torch.autograd.grad(weighted, [*inputs, cotangent]))
    for result, reference in zip(*seconds, strict=True):
        assert distance(result, reference) <= 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_does_not_change_a_bit(kernel, dtype):
    before, results = torch.get_num_threads(), []
    x = draw((24, 16, 32, 34), dtype)
    try:
        for number in (1, 2, 3, 7):
            torch.set_num_threads(number)
            results.append(run(*layers(16, time_steps=4), x, True))
    finally:
        torch.set_num_threads(before)
    for spikes, gradients in results[1:]:
        assert torch.equal(spikes, results[0][0])
        assert all(torch.equal(a, b) for a, b in zip(gradients, results[0][1], strict=True))


def test_saves_one_tensor_of_the_inputs_size(kernel):
    norm, neurons = layers(8, time_steps=4)
    x, saved = draw((12, 8, 16, 16)).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        neurons(x, norm, True)
    assert sum(t.nbytes for t in saved) == x.nbytes + 4 * 8 * 4


def test_operators_keep_torchs_contract(kernel):
    x = draw((8, 3, 4, 2)).unflatten(0, (4, 2)).requires_grad_()
    factors = [torch.rand(3).add(0.5).requires_grad_(i < 2) for i in range(4)]
    numbers = (1e-5, True, True, 4, False, [0.5, 0.5, 1.0, 0.0, 2.0], 0, False, False)
    torch.library.opcheck(torch.ops.spikeport.batch_norm_lif, (x, *factors, *numbers))


def test_no_images_give_no_spikes(kernel):
    norm, neurons = layers(3, training=False, time_steps=4)
    assert neurons(torch.zeros(0, 3, 4, 6), norm, True).shape == (0, 3, 2, 3)


def test_compiles_into_one_graph(kernel):
    norm, neurons = layers(4, time_steps=4)
    step = lambda x: neurons(x, norm, True)  # noqa: E731
    x = draw((8, 4, 4, 6))
    torch.testing.assert_close(torch.compile(step, fullgraph=True, backend="aot_eager")(x), step(x))
