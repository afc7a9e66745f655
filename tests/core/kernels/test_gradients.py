"""Gradients of the CPU kernels, first and second, against autograd through the reference."""

import itertools

import pytest
import torch

from spikeport.core import kernels
from spikeport.core.kernels import cpu
from spikeport.core.surrogates import SURROGATES

SHAPE = (3, 5, 71)  # more than a block of 1024 neurons, not a multiple of a vector
CASES = list(itertools.product((False, True), (False, True), (False, True)))


def draw(steps, constant, with_state, dtype=torch.float32):
    torch.manual_seed(steps)
    x = (torch.randn(SHAPE if constant else (steps, *SHAPE)) * 2 + 0.5).to(dtype)
    state = torch.randn(SHAPE, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    return [x, state] if with_state else [x]


def leaves(tensors):
    return [tensor.clone().requires_grad_() for tensor in tensors]


def both_orders(layer, tensors, options):
    """First gradients of spikes and membrane, and the gradients of a weighted sum of those."""
    inputs = leaves(tensors)
    outputs = layer(*inputs, **options)
    torch.manual_seed(99)
    cotangents = leaves([torch.randn_like(output) for output in outputs])
    first = torch.autograd.grad(outputs, inputs, cotangents, create_graph=True)
    weighted = sum((grad * torch.randn_like(grad)).sum() for grad in first)
    second = torch.autograd.grad(weighted, [*inputs, *cotangents], allow_unused=True)
    return first, [torch.zeros_like(x) if s is None else s for s, x in zip(second, [*inputs, *cotangents], strict=True)]


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("steps", [1, 3, 4, 7, 8, 16])
def test_gradients_are_the_references(kernel, reference, distance, surrogate, steps):
    for constant, with_state, detach in CASES:
        options = {"tau": 1.7, "v_threshold": 0.9, "v_reset": -0.1, "surrogate": surrogate, "detach_reset": detach}
        options["time_steps"] = steps if constant else None
        for dtype, first_limit, second_limit in ((torch.float32, 1e-6, 3e-6), (torch.float64, 1e-13, 1e-12)):
            tensors = draw(steps, constant, with_state, dtype)
            first, second = both_orders(kernel, tensors, options)
            expected_first, expected_second = both_orders(reference, tensors, options)
            for result, expected in zip(first, expected_first, strict=True):
                assert distance(result, expected) <= first_limit
            for result, expected in zip(second, expected_second, strict=True):
                assert distance(result, expected) <= second_limit


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("steps", [3, 4])
def test_half_precision_gradients_are_rounded_once(kernel, reference, dtype, steps):
    # Arc tangent: the gradient is the reference's to the last bit before it is rounded, hence after it.
    first, _ = both_orders(kernel, draw(steps, False, True, dtype), {})
    expected, _ = both_orders(reference, draw(steps, False, True, dtype), {})
    assert torch.equal(first[0], expected[0])
    assert torch.equal(first[1], expected[1])


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_every_instruction_set_gives_the_same_gradient(kernel, level, surrogate):
    tensors = draw(6, False, True)
    cpu.library().spikeport_use(0)
    expected, expected_second = both_orders(kernel, tensors, {"surrogate": surrogate})
    cpu.library().spikeport_use(level)
    first, second = both_orders(kernel, tensors, {"surrogate": surrogate})
    for a, b in zip((*first, *second), (*expected, *expected_second), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("used", ["spikes", "membrane"])
@pytest.mark.parametrize("steps", [4, 6])
def test_one_output_alone(kernel, reference, distance, used, steps):
    gradients = []
    for layer in (kernel, reference):
        inputs = leaves(draw(steps, False, True))
        output = layer(*inputs)[used == "membrane"]
        gradients.append(torch.autograd.grad(output, inputs, torch.cos(torch.arange(output.numel())).view_as(output)))
    for result, expected in zip(*gradients, strict=True):
        assert distance(result, expected) <= 1e-6


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("steps", [4, 8, 12, 16])
def test_spikes_alone_from_rest(kernel, reference, distance, steps, level):
    # As layers call it; 4 and 8 steps have loops of their own.
    cpu.library().spikeport_use(level)
    x, *_ = draw(steps, False, False)
    for surrogate, detach in itertools.product(SURROGATES, (False, True)):
        for dtype, limit in ((torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)):
            gradients = []
            for layer in (kernel, reference):
                (leaf,) = leaves([x.to(dtype)])
                spikes = layer(leaf, surrogate=surrogate, detach_reset=detach)[0]
                cotangent = torch.cos(torch.arange(spikes.numel())).view_as(spikes).to(dtype)
                gradients.append(torch.autograd.grad(spikes, leaf, cotangent)[0])
            assert distance(*gradients) <= limit


def test_an_infinite_current_sends_the_references_gradient(kernel, reference, assert_same):
    x = torch.randn(4, 16)
    x[3, :4] = torch.inf
    x[1, 2:6] = -torch.inf
    gradients = []
    for layer in (kernel, reference):
        (leaf,) = leaves([x])
        gradients.append(torch.autograd.grad(layer(leaf)[0].sum(), leaf)[0])
    assert_same(*gradients)


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("steps", [3, 4, 8])
def test_infinity_and_nan_send_the_references_gradient(kernel, reference, assert_same, surrogate, steps):
    x = torch.randn(steps, 16)
    x[2, :4] = torch.inf
    x[1, 2:6] = -torch.inf
    x[1, 6:9] = torch.nan
    cotangent = torch.ones(steps, 16)
    cotangent[2, 8:11] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    gradients = []
    for layer in (kernel, reference):
        (leaf,) = leaves([x])
        gradient = torch.autograd.grad(layer(leaf, surrogate=surrogate)[0], leaf, cotangent)[0]
        assert gradient.isnan().any()
        gradients.append(gradient)
    own, expected = gradients
    assert_same(own.isnan(), expected.isnan())
    torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("shape", [(4, 0), (4, 3, 0, 2)])
def test_no_neurons_have_a_second_gradient(kernel, shape):
    inputs = leaves([torch.zeros(shape), torch.zeros(shape[1:])])
    outputs = kernel(*inputs)
    first = torch.autograd.grad(outputs, inputs, [torch.ones_like(o) for o in outputs], create_graph=True)
    second = torch.autograd.grad(sum(grad.sum() for grad in first), inputs)
    assert [grad.shape for grad in second] == [tensor.shape for tensor in inputs]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 2, 1), (3, 1, 2, 0)])
def test_gradients_in_any_layout(kernel, reference, distance, order):
    x = torch.randn(4, 3, 5, 6).permute(order).contiguous().permute([order.index(i) for i in range(4)])
    grad = torch.randn(4, 3, 5, 6)
    results = []
    for layer, cotangent in ((kernel, grad.transpose(1, 3).contiguous().transpose(1, 3)), (reference, grad)):
        leaf = x.detach().requires_grad_()
        results.append(torch.autograd.grad(layer(leaf)[0], leaf, cotangent)[0])
    assert distance(*results) <= 1e-6


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("constant", [False, True])
def test_finite_differences_of_a_smoothed_step(surrogate, constant):
    """The kernels with a step of finite slope whose derivative is the surrogate: gradients by definition."""
    torch.manual_seed(0)
    steps, neurons = 5, 4
    setting = kernels.Neuron(1.6, 0.8, -0.1, surrogate).setting(steps, constant)._replace(smooth=True)
    x = torch.randn(*(() if constant else (steps,)), neurons, dtype=torch.float64, requires_grad=True)
    state = torch.randn(neurons, dtype=torch.float64, requires_grad=True)
    layer = lambda x, state: kernels.lif(x, state, setting, True)  # noqa: E731
    assert torch.autograd.gradcheck(layer, (x, state))
    assert torch.autograd.gradgradcheck(layer, (x, state))
