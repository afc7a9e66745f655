"""Closed forms equal torch's own derivatives and pass finite differences, twice."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from spikeport.core import TrainConfig
from spikeport.core.objective import Objective
from spikeport.core.second_derivatives import SecondDerivatives


def within(function):
    def run(*tensors):
        with SecondDerivatives():
            return function(*tensors)

    return run


def draw(*shape):
    return torch.randn(shape, dtype=torch.double, requires_grad=True)


def normalised(x, weight, bias):
    return functional.batch_norm(x, None, None, weight, bias, True)


@pytest.mark.parametrize(
    ("function", "shapes", "node"),
    [
        (normalised, [(3, 4, 2, 3), (4,), (4,)], "_BatchNorm"),
        (normalised, [(5, 4), (4,), (4,)], "_BatchNorm"),
        (nn.MaxPool2d(2), [(2, 3, 5, 4)], "_MaxPool"),
        (lambda x: functional.max_pool2d(x, (3, 2)), [(2, 3, 6, 4)], "_MaxPool"),
        (nn.MaxPool2d((3, 2), stride=(2, 1), padding=1), [(2, 3, 5, 4)], "_MaxPool"),
        (functional.conv2d, [(2, 3, 5, 4), (2, 3, 3, 2), (2,)], "_Convolution"),
        (
            lambda x, w: functional.conv2d(x, w, None, (1, 2), (2, 0), 2, 2),
            [(2, 4, 5, 5), (6, 2, 3, 2)],
            "_Convolution",
        ),
        (lambda a, b: torch.cat([a, b], 1), [(2, 3, 2, 2), (2, 1, 2, 2)], "_Concatenation"),
        (lambda a, b: torch.cat((a, b)), [(2, 3), (1, 3)], "_Concatenation"),
    ],
)
def test_first_and_second_derivatives(function, shapes, node):
    torch.manual_seed(0)
    tensors = tuple(draw(*shape) for shape in shapes)
    if node == "_BatchNorm":
        with torch.no_grad():
            tensors[1][0] = 0.0  # a channel switched off
    found = within(function)(*tensors)
    assert found.grad_fn.name() == f"{node}Backward"
    torch.testing.assert_close(found, function(*tensors), rtol=1e-12, atol=1e-12)
    assert gradcheck(within(function), tensors)
    assert gradgradcheck(within(function), tensors)


def network(layout=torch.contiguous_format):
    torch.manual_seed(1)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 1)]
    return nn.Sequential(*layers, nn.BatchNorm2d(3), nn.Flatten()).double().to(memory_format=layout)


def penalised(model, x, mode, half=False):
    """The gradients of a loss that holds the gradients of another."""
    with mode, torch.autocast("cpu", torch.bfloat16, enabled=half):
        y = model(x).to(x.dtype)
    gradients = torch.autograd.grad(y.pow(3).sum(), [p for p in model.parameters() if p.dim() > 1], create_graph=True)
    (y.pow(2).sum() + sum(g.norm() for g in gradients)).backward()
    return [p.grad for p in model.parameters()], list(model.buffers())


@given(st.integers(0, 999), st.sampled_from([torch.contiguous_format, torch.channels_last]))
def test_a_networks_second_derivatives_are_torchs(seed, layout):
    x = torch.randn(3, 2, 8, 7, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    x = x.contiguous(memory_format=layout)
    ours, buffers = penalised(network(layout), x, SecondDerivatives())
    theirs, expected = penalised(network(layout), x, torch.enable_grad())
    for a, b in zip([*ours, *buffers], [*theirs, *expected], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm2d(2, affine=False),
        nn.MaxPool2d(2, return_indices=True),
        nn.BatchNorm2d(2).eval(),
        nn.Conv2d(2, 1, 3, padding="same"),
        lambda x: functional.conv2d(x[0], torch.ones(1, 2, 3, 3)),
        lambda x: nn.MaxPool2d(2)(x[0]),
        lambda x: functional.batch_norm(x, None, None, torch.ones(2), None, True),
        lambda x: functional.batch_norm(x, None, None, None, torch.ones(2), True),
    ],
)
def test_other_layers_stay_torchs(module):
    torch.manual_seed(0)
    x = torch.randn(2, 2, 4, 4)
    assert torch.equal(within(lambda x: module(x)[0])(x), module(x)[0])


def test_under_autocast_they_are_as_exact_as_torchs():
    x = torch.randn(32, 2, 8, 8, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    exact, _ = penalised(network(), x, torch.enable_grad())
    theirs, _ = penalised(network().float(), x.float(), torch.enable_grad(), half=True)
    ours, _ = penalised(network().float(), x.float(), SecondDerivatives(), half=True)
    distance = [sum(float((a - b).norm()) for a, b in zip(found, exact, strict=True)) for found in (ours, theirs)]
    assert 0 < distance[0] < 1.2 * distance[1]  # above 0: the convolutions did run in half precision


def test_a_third_derivative_is_refused():
    x = draw(2, 2, 3, 3)
    y = within(nn.BatchNorm2d(2).double())(x)
    (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()


def test_the_gradient_aware_loss_runs_in_it():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
    x = torch.randn(2, 1, 3, 3)
    seen = []
    model[1].register_forward_hook(lambda module, args, y: seen.append(y.grad_fn.name()))
    for loss in ("gradient-aware", "cross-entropy"):
        Objective(TrainConfig(loss=loss), model).forward(model, x)
    assert seen == ["_BatchNormBackward", "NativeBatchNormBackward0"]
