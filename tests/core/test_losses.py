"""Every term of the loss on a case solved by hand."""

import copy
import math

import pytest
import small_digits
import torch
from torch import Tensor, nn

from spikeport.core import LIF, SpikeportError, TrainConfig
from spikeport.core.functional import lif
from spikeport.core.hooks import watched
from spikeport.core.learner import learner_for
from spikeport.core.losses import distillation, grad_cam, grad_cam_overlap, gradient_aware, rate_penalty
from spikeport.core.objective import Objective
from spikeport.core.rates import Rates, spiking_layers

DOUBLE = torch.float64


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE, requires_grad=True)


def test_the_gradient_aware_term_of_one_weight_and_its_derivative():
    """Logits (w x, 0), true class 0: L = log(1 + exp(-w x)), |g| = x p with p = 1 / (1 + exp(w x))."""
    w, x, eps = leaf(0.7), 3.0, 0.5
    logits = torch.cat([w * x, w.new_zeros(1)]).unsqueeze(0)
    term = gradient_aware(nn.functional.cross_entropy(logits, torch.tensor([0])), [w], eps)
    p = 1 / (1 + math.exp(0.7 * x))
    size = x * p
    assert term.item() == pytest.approx(1 - size / (size + eps), rel=1e-12)
    term.backward()
    # d|g|/dw = -x^2 p (1 - p)
    assert w.grad.item() == pytest.approx(eps / (size + eps) ** 2 * x**2 * p * (1 - p), rel=1e-12)


def test_the_gradient_aware_term_adds_up_over_layers():
    """L = 3 a + 4 b has the gradient (3, 4): of length 5 as one layer, of lengths 3 and 4 as two."""
    both, a, b = leaf(1, 1), leaf(1), leaf(1)
    assert gradient_aware((both * leaf(3, 4)).sum(), [both], 1.0).item() == pytest.approx(1 / 6)
    assert gradient_aware((3 * a + 4 * b).sum(), [a, b], 1.0).item() == pytest.approx(1 / 4 + 1 / 5)


def test_the_gradient_aware_term_does_not_cancel_in_float32():
    w = torch.tensor([2.0], requires_grad=True)
    assert gradient_aware((3 * w).sum(), [w], 1e-8).item() == pytest.approx(1e-8 / 3, rel=1e-6)


def test_the_gradient_aware_term_differentiates_the_surrogate():
    """One neuron, one step, tau = 1: s = H(w x - 1), whose derivatives are ATan's: with u = w x - 1 and alpha = 2,
    s' = 1 / (1 + (pi u)^2) and s'' = -2 pi^2 u / (1 + (pi u)^2)^2. L = c s, so g = c x s' and dg/dw = c x^2 s''."""
    w, x, c, eps = leaf(0.9), 1.3, 2.0, 0.1
    spikes, _ = lif((w * x).view(1, 1, 1), tau=1.0)
    term = gradient_aware(c * spikes.sum(), [w], eps)
    u = 0.9 * x - 1
    first, second = 1 / (1 + (math.pi * u) ** 2), -2 * math.pi**2 * u / (1 + (math.pi * u) ** 2) ** 2
    size = c * x * first
    assert term.item() == pytest.approx(eps / (size + eps), rel=1e-9)
    term.backward()
    assert w.grad.item() == pytest.approx(-eps / (size + eps) ** 2 * c * x**2 * second, rel=1e-9)


def test_a_layer_without_gradient_costs_one_and_stays_finite():
    w = leaf(1.0)
    term = gradient_aware((0 * w.square()).sum(), [w], 1e-8)
    term.backward()
    assert term.item() == pytest.approx(1)
    assert torch.isfinite(w.grad).all()


#: Two maps of 2x2 for one image; class logits are 1 * mean(A_0) - 2 * mean(A_1) and 3 * mean(A_1).
MAPS = [[[[4.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [0.0, 0.0]]]]
HEAD = [[1.0, -2.0], [0.0, 3.0]]


def seen(maps: Tensor) -> Tensor:
    return maps.mean((-2, -1)) @ torch.tensor(HEAD, dtype=DOUBLE).T


def test_grad_cam_of_two_maps():
    """The gradient of mean(A_k) by a pixel is 1/4, so a = (1, -2) / 4 for class 0 and (0, 3) / 4 for class 1."""
    maps = torch.tensor(MAPS, dtype=DOUBLE, requires_grad=True)
    first = grad_cam(seen(maps), maps, torch.tensor([0]))
    assert first.tolist() == [[[(4 - 2) / 4, 0.0], [0.0, 2 / 4]]]  # (0 - 2) / 4 is cut at 0
    second = grad_cam(seen(maps), maps, torch.tensor([1]))
    assert second.tolist() == [[[0.75, 0.75], [0.0, 0.0]]]


def test_the_overlap_of_two_classes():
    """min of the maps above: 0.5 at one pixel; they sum to 1 and 1.5."""
    maps = torch.tensor(MAPS, dtype=DOUBLE, requires_grad=True)
    logits = seen(maps)
    overlap = grad_cam_overlap(logits, torch.tensor([0]), maps)
    assert overlap.item() == pytest.approx(2 * 0.5 / 2.5, rel=1e-6)
    assert grad_cam_overlap(logits, torch.tensor([1]), maps).item() == pytest.approx(2 * 0.5 / 2.5, rel=1e-6)
    (gradient,) = torch.autograd.grad(overlap, maps)
    assert gradient.abs().sum() > 0


def test_grad_cam_over_time_is_that_of_the_mean_map():
    """A linear head: the map of T steps is the map of their mean."""
    maps = torch.rand(2, 3, 2, 4, 4, dtype=DOUBLE, requires_grad=True)  # T, N, C, H, W
    folded = maps.flatten(0, 1)
    over_time = grad_cam(seen(folded).unflatten(0, (2, 3)).mean(0), folded, torch.tensor([0, 1, 0]))
    mean = maps.mean(0)
    torch.testing.assert_close(over_time, grad_cam(seen(mean), mean, torch.tensor([0, 1, 0])))


def test_the_rate_penalty_by_hand():
    rates = {"a": torch.tensor(0.5), "b": torch.tensor(0.2)}
    assert rate_penalty(rates, 0.3).item() == pytest.approx((0.2**2 + 0.1**2) / 2)


def test_rates_are_spikes_per_neuron_step_and_sample():
    """Currents of 2 and 0 with tau = 2: the first neuron reaches 1 in every step, the second never; then all fire."""
    model = nn.Sequential(LIF(time_steps=2), LIF(time_steps=2, tau=1.0, v_threshold=0.1))
    rates = Rates()
    with watched(spiking_layers(model), rates.see):
        model(torch.tensor([[2.0, 0.0], [2.0, 0.0]]))
        model(torch.tensor([[2.0, 2.0], [2.0, 2.0]]))
    model(torch.zeros(2, 2))  # no longer watched
    assert rates.per_layer() == {"0": 0.75, "1": 0.75, "network": 0.75}


def test_the_rate_of_a_network_is_that_of_its_neurons_not_of_its_layers():
    rates = Rates()
    rates.see("large", torch.zeros(2, 6))
    rates.see("small", torch.ones(2, 2))
    assert rates.per_layer() == {"large": 0.0, "small": 1.0, "network": 0.25}


def test_distillation_by_hand():
    """Two classes: the softened teacher is (3/4, 1/4), the student (1/2, 1/2)."""
    for temperature in (0.5, 2.0, 5.0):
        teacher, student = torch.tensor([[temperature * math.log(3), 0.0]]), torch.zeros(1, 2)
        expected = temperature**2 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
        assert distillation(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-6)
        assert distillation(teacher, teacher, temperature).item() == pytest.approx(0, abs=1e-6)


LOGITS = [[1.0, 0.0], [0.0, 2.0]]
CE = [math.log(1 + math.exp(-1.0)), math.log(1 + math.exp(2.0))]  # both of class 0


def loss(config: TrainConfig, model: nn.Module | None = None, teacher: object = None) -> float:
    objective = Objective(config, model or nn.Identity(), teacher)
    labels = torch.tensor([0, 0])
    return objective(torch.tensor(LOGITS), labels, torch.zeros(2, 1, 1, 1, dtype=torch.uint8), 2).item()


def test_the_plain_objective_is_the_mean_cross_entropy():
    assert loss(TrainConfig()) == pytest.approx(sum(CE) / 2, rel=1e-6)


def test_label_smoothing_by_hand():
    """A target of (0.9 + 0.05, 0.05): the other class costs what the right one costs, plus the logits' distance."""
    other = [CE[0] + 1.0, CE[1] - 2.0]
    expected = sum(0.95 * right + 0.05 * wrong for right, wrong in zip(CE, other, strict=True)) / 2
    assert loss(TrainConfig(label_smoothing=0.1)) == pytest.approx(expected, rel=1e-6)


def test_the_teacher_takes_its_share():
    config = TrainConfig(teacher="a run", distill_weight=0.25, temperature=2.0)
    answers = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    learned = distillation(torch.tensor(LOGITS), answers, 2.0).mean().item()
    assert loss(config, teacher=lambda images: answers) == pytest.approx(0.75 * sum(CE) / 2 + 0.25 * learned, rel=1e-6)


def test_firing_rates_off_the_goal_are_charged():
    config = TrainConfig(rate_weight=10.0, rate_goal=0.25)
    model = nn.Sequential(LIF(time_steps=2))
    objective = Objective(config, model)
    logits = model(torch.tensor([[2.0, 0.0], [2.0, 2.0], [2.0, 0.0], [2.0, 2.0]]))[:2]  # 6 spikes of 8
    value = objective(logits, torch.tensor([0, 0]), torch.zeros(2, 1, 1, 1), 2).item()
    plain = nn.functional.cross_entropy(logits, torch.tensor([0, 0])).item()
    assert value == pytest.approx(plain + 10 * (0.75 - 0.25) ** 2, rel=1e-6)


def test_rates_are_those_before_a_pooling():
    config = TrainConfig(rate_weight=1.0, width=0.25, tau=1.25, v_threshold=0.25)
    model, rates = config.spec(10, (3, 32, 32)).build(seed=0), Rates()
    learner = learner_for(config, small_digits.load(), copy.deepcopy(model), None)
    images = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with watched(spiking_layers(model), rates.see):
        model(images)
    learner.objective.forward(learner.forward, images)
    expected = rates.per_layer()
    assert {name: rate.item() for name, rate in learner.objective.rates.items()} == {
        name: pytest.approx(expected[name], abs=1e-3) for name in learner.objective.rates
    }


@pytest.mark.parametrize("share", [None, 0.3])
def test_the_temporal_loss_judges_every_step(share):
    config = TrainConfig(
        loss="temporal", width=0.125, v_threshold=0.2, label_smoothing=0.1, distill_weight=share or 0.5
    )
    model = config.spec(10, (1, 16, 16)).build(seed=0)
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(5, 1, 16, 16, generator=generator), torch.tensor([0, 3, 9, 3, 1])
    answer = torch.randn(5, 10, generator=generator)
    seen = []
    model.readout.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    objective = Objective(config, model, (lambda images: answer) if share else None)
    logits = objective.forward(model, x)
    loss = objective(logits, labels, x, total=5)
    steps = seen[0].unflatten(0, (4, 5))
    torch.testing.assert_close(steps.mean(0), logits.detach())
    expected = torch.stack([nn.functional.cross_entropy(s, labels, label_smoothing=0.1) for s in steps]).mean()
    if share:
        learned = torch.stack([distillation(s, answer, config.temperature).mean() for s in steps]).mean()
        expected = (1 - share) * expected + share * learned
    torch.testing.assert_close(loss, expected)
    assert loss.item() != pytest.approx(nn.functional.cross_entropy(logits, labels, label_smoothing=0.1).item())
    loss.backward()
    assert model.stem.conv.weight.grad.abs().sum() > 0


def test_a_term_without_its_place_in_the_model_is_refused():
    with pytest.raises(SpikeportError, match="a prediction at every step, and a CNN has one; take --kind snn"):
        loss(TrainConfig(loss="temporal"))
    with pytest.raises(SpikeportError, match="firing rates, and a CNN has none"):
        loss(TrainConfig(rate_weight=1.0))
    with pytest.raises(SpikeportError, match="global pooling; this model has none"):
        loss(TrainConfig(loss="grad-cam"))
