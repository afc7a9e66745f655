"""Layers whose weights are computed at every call: exported, trained in integers, counted and drawn anew."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from spikeport import convert, to_nir, to_onnx
from spikeport.core import LIF, SpikeportError, TimeMean
from spikeport.core.computed_weights import make_plain
from spikeport.core.runs import DataInfo
from spikeport.core.tracing import copied
from spikeport.export.onnx_model import run_onnx
from spikeport.export.trace import deployed
from spikeport.profiling import count_operations
from spikeport.targets.loihi.qat import prepare_run

INFO = DataInfo("rgb", (3, 8, 8), (0.5,) * 3, (0.1,) * 3, ("a", "b", "c", "d"))
PARAMETRIZED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}
HOOKED = {
    "old weight_norm": weight_norm,
    "old spectral_norm": spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruned twice": lambda layer: prune.random_unstructured(prune.l1_unstructured(layer, "weight", 0.2), "weight", 0.2),
    "pruned bias": lambda layer: prune.random_unstructured(layer, "bias", 2),
}
KINDS = PARAMETRIZED | HOOKED


def head():
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)


def spiking(kind):
    torch.manual_seed(0)
    lif = LIF(v_threshold=0.3, time_steps=3, constant_input=True)
    return nn.Sequential(KINDS[kind](nn.Conv2d(3, 8, 3, padding=1)), lif, *head(), TimeMean(3)).eval()


def changed(model):
    """The same model with other weights, what they are computed from as an optimiser or a file would set it."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25).add_(0.05)
    return model


def plain(model):
    """The model with weights of its own, by torch's functions alone."""
    copy = nn.Sequential(*(nn.Conv2d(3, 8, 3, padding=1), *model[1:])).eval()
    with torch.no_grad():
        model(torch.zeros(1, 3, 8, 8))  # computes them
        copy[0].weight.copy_(model[0].weight)
        copy[0].bias.copy_(model[0].bias)
    return copy


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_has_what_is_computed_now_and_leaves_the_model_as_it_is(tmp_path, kind):
    x = torch.randn(4, 3, 8, 8)
    model = changed(spiking(kind))
    certificate = to_nir(model, tmp_path / "a" / "a.nir", x.numpy())
    assert certificate.witnesses[0].status == "agrees"
    assert torch.equal(model(x), plain(model)(x))
    assert torch.equal(changed(model)(x), plain(model)(x))
    assert to_nir(model, tmp_path / "b" / "b.nir", x.numpy()).witnesses[0].status == "agrees"
    cnn = nn.Sequential(model[0], nn.ReLU(), *head()).eval()
    expected = cnn(x)
    assert to_onnx(cnn, tmp_path / "c" / "c.onnx", x.numpy()).witnesses[0].status == "agrees"
    assert torch.equal(cnn(x), expected)


def sharing(first, second):
    """A CNN of two layers with one weight, computed anew in the first, and in the second too."""
    torch.manual_seed(0)
    a, b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    b.weight = a.weight
    KINDS[first](a)
    if second:
        KINDS[second](b)
    return nn.Sequential(a, nn.ReLU(), b, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)).eval()


@pytest.mark.parametrize("second", [None, *KINDS])
@pytest.mark.parametrize("first", ["weight_norm", "old spectral_norm", "pruned"])
def test_a_weight_that_two_layers_share_is_what_each_computes(first, second):
    model, x = sharing(first, second), torch.randn(4, 3, 8, 8)
    expected = model(x).detach()
    copy = deployed(model)
    assert torch.equal(copy(x), expected)
    assert {name for name, _ in copy.named_parameters()} == {
        f"{at}.{n}" for at in (0, 2, 6) for n in ("weight", "bias")
    }
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("second", [None, "old weight_norm"])
def test_a_weight_that_two_layers_share_is_exported_as_each_computes_it(tmp_path, second):
    model, x = sharing("weight_norm", second), torch.randn(4, 3, 8, 8)
    expected = model(x).detach()
    to_onnx(model, tmp_path / "model.onnx", x.numpy())
    assert (torch.from_numpy(run_onnx(tmp_path / "model.onnx", x.numpy())) - expected).abs().max() < 1e-6
    assert torch.equal(model(x), expected)


def test_a_part_of_a_computed_weight_may_be_pruned():
    layer = prune.l1_unstructured(weight_norm(nn.Conv2d(3, 8, 3)), "weight_v", 0.3)
    x = torch.randn(2, 3, 8, 8)
    layer(x), layer(x)  # torch computes the weight from what the call before had masked
    copy = make_plain(copied(nn.Sequential(layer)))
    assert torch.equal(copy(x), layer(x))
    assert set(dict(copy.named_parameters())) == {"0.weight", "0.bias"}
    assert count_operations(nn.Sequential(layer), x).layers["0"].parameters == 3 * 8 * 9 + 8


@pytest.mark.parametrize("kind", KINDS)
def test_training_in_integers_trains_what_weights_are_computed_from(kind):
    x = torch.randn(4, 3, 8, 8)
    model = changed(spiking(kind))
    given = prepare_run(model, INFO)(x)
    assert torch.equal(given, prepare_run(plain(model), INFO)(x))
    given.square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    before = prepare_run(model, INFO)(x)
    assert not torch.equal(prepare_run(changed(model), INFO)(x), before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_counted_and_not_what_they_are_computed_from(kind):
    model, x = spiking(kind), torch.randn(2, 3, 8, 8)
    counted = count_operations(model, x).layers
    expected = count_operations(plain(model), x).layers
    assert {n: (c.parameters, c.bytes, c.dense) for n, c in counted.items()} == {
        n: (c.parameters, c.bytes, c.dense) for n, c in expected.items()
    }
    assert counted["0"].parameters == 3 * 8 * 9 + 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_made_plain_has_parameters_alone(kind):
    model, x = changed(spiking(kind)), torch.randn(2, 3, 8, 8)
    model(x)  # weights computed with gradients
    copy = make_plain(copied(model))
    assert torch.equal(copy(x), plain(model)(x))
    assert set(dict(copy.named_parameters())) == set(dict(plain(model).named_parameters()))


@pytest.mark.parametrize("kind", PARAMETRIZED)
def test_new_weights_are_drawn_through_what_computes_them(kind):
    model = nn.Sequential(KINDS[kind](nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    twin = convert(model, weights=False)
    (layer,) = (module for module in twin.modules() if isinstance(module, nn.Conv2d))
    assert not torch.allclose(layer.weight, model[0].weight)
    twin(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize("kind", HOOKED)
def test_new_weights_that_cannot_be_drawn_are_refused(kind):
    model = nn.Sequential(KINDS[kind](nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    with pytest.raises(SpikeportError, match=r"0 \(Conv2d\): its weights are computed from others, .*permanent"):
        convert(model, weights=False)
    assert isinstance(convert(model), nn.Module)
