"""SqueezeNet and SqueezeNet-P: the paper's sizes, and two twins of one definition."""

import json
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import max_pool2d

from spikeport.core import LIF, ModelSpec, SpikeportError, Twin
from spikeport.core.hooks import watched
from spikeport.core.models import FORMS, KINDS, MODELS
from spikeport.core.models.layers import ConvNorm, fuse
from spikeport.core.models.squeezenet import FIRES
from spikeport.core.rates import spiking_layers
from spikeport.core.surrogates import SURROGATES

CNN, SNN = Twin("cnn"), Twin("snn")
TUNED = ("time_steps", "tau", "v_threshold", "surrogate", "alpha")


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("twin", [CNN, SNN], ids=KINDS)
@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("squeezenet", 10, 736_458),
        ("squeezenet", 100, 782_628),
        ("squeezenet", 200, 833_928),
        ("squeezenet-p", 10, 549_114),
    ],
)
def test_parameters_are_the_papers(twin, name, classes, expected):
    assert parameters(ModelSpec(name, twin, num_classes=classes).build()) == expected


@pytest.mark.parametrize("name", MODELS)
def test_twins_share_names_and_weights(name):
    cnn, snn = (ModelSpec(name, twin, width=0.125).build(seed=3).state_dict() for twin in (CNN, SNN))
    assert list(cnn) == list(snn)
    assert all(torch.equal(cnn[key], snn[key]) for key in cnn)


@pytest.mark.parametrize("twin", [CNN, SNN], ids=KINDS)
def test_seed_draws_the_weights_and_leaves_the_global_generator_alone(twin):
    spec = ModelSpec(twin=twin, width=0.125)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a, b, c = (spec.build(seed).stem.conv.weight for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


def batches_seen(model: nn.Module, x: torch.Tensor) -> dict[str, list[int]]:
    seen: dict[str, list[int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda m, args, output, name=name: seen.setdefault(name, []).append(len(args[0]))
            )
    with torch.no_grad():
        model.eval()(x)
    return seen


@pytest.mark.parametrize("time_steps", [1, 4, 7])
def test_first_convolution_runs_once_and_every_other_t_times(time_steps):
    model = ModelSpec(twin=Twin(time_steps=time_steps), width=0.125).build()
    seen = batches_seen(model, torch.randn(3, 3, 32, 32))
    assert seen.pop("stem.conv") == [3]
    assert len(seen) == 4 * 3 + 1  # three convolutions per Fire module, and the classifier
    assert all(batches == [3 * time_steps] for batches in seen.values())


def test_cnn_runs_every_convolution_once():
    seen = batches_seen(ModelSpec(twin=CNN, width=0.125).build(), torch.randn(3, 3, 32, 32))
    assert all(batches == [3] for batches in seen.values())


@pytest.mark.parametrize("twin", [CNN, SNN], ids=KINDS)
@pytest.mark.parametrize(("channels", "size"), [(1, 16), (3, 32), (3, 64)])
def test_takes_images_of_any_size_and_gives_logits(twin, channels, size):
    model = ModelSpec(twin=twin, num_classes=7, in_channels=channels, image_size=size, width=0.0625).build()
    assert model(torch.randn(2, channels, size, size)).shape == (2, 7)


def test_the_cnn_holds_relu_where_the_snn_holds_lif():
    cnn, snn = (dict(ModelSpec(twin=twin, width=0.125).build().named_modules()) for twin in (CNN, SNN))
    relus = [name for name, module in cnn.items() if isinstance(module, nn.ReLU)]
    assert relus == [name for name, module in snn.items() if isinstance(module, LIF)]
    assert [name for name in relus if snn[name].constant_input] == ["stem.act"]
    assert len(relus) == 1 + 4 * 3


@given(keep=st.sets(st.sampled_from(list(FIRES)), min_size=1))
def test_keep_chooses_the_fire_modules_and_leaves_the_pools(keep):
    model = ModelSpec(twin=CNN, keep=tuple(sorted(keep)), width=0.0625).build()
    names = [name for name, _ in model.features.named_children()]
    assert [name for name in names if name.startswith("fire")] == [f"fire{k}" for k in sorted(keep)]
    assert [name for name in names if name.startswith("pool")] == ["pool1", "pool4", "pool8"]


def test_squeezenet_p_is_squeezenet_with_four_fire_modules():
    assert parameters(ModelSpec("squeezenet", CNN, keep=(4, 6, 8, 9)).build()) == 549_114


def test_width_scales_every_channel_but_the_classes():
    model = ModelSpec(twin=CNN, width=0.25, num_classes=10).build()
    assert model.stem.conv.out_channels == 32
    assert model.features.fire4.squeeze.conv.out_channels == 8
    assert model.features.fire4.expand3.conv.out_channels == 32
    assert model.classifier.conv.out_channels == 10


@pytest.mark.parametrize(
    ("message", "spec"),
    [
        ("unknown model 'resnet'; available: squeezenet, squeezenet-p", {"name": "resnet"}),
        (r"keep=\[1, 4\]: SqueezeNet has the Fire modules", {"keep": (1, 4)}),
        (r"keep=\[\]", {"keep": ()}),
        ("width is 0", {"width": 0}),
        ("width is nan", {"width": float("nan")}),
        ("width is inf", {"width": float("inf")}),
        ("num_classes is 0", {"num_classes": 0}),
        ("in_channels is '3'", {"in_channels": "3"}),
    ],
)
def test_a_bad_specification_is_refused(message, spec):
    with pytest.raises(SpikeportError, match=message):
        ModelSpec(**spec).build()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("huge", [{"width": 1e3}, {"width": 1e6}, {"width": 1e300}, {"num_classes": 10**12}])
def test_a_model_beyond_memory_is_refused_before_it_is_built(name, huge):
    with pytest.raises(SpikeportError, match=f"^{name} of width .* parameters; .* are the most: make it smaller$"):
        ModelSpec(name, **huge).build()


@pytest.mark.parametrize(
    ("message", "twin"),
    [
        ("'rnn' is not one of cnn, snn", {"kind": "rnn"}),
        ("'all' is not one of activations, every-layer", {"spiking": "all"}),
        ("time_steps is 0", {"time_steps": 0}),
        ("time_steps is 2.5; expected a whole number", {"time_steps": 2.5}),
        ("tau is 0.5", {"tau": 0.5}),
        ("v_threshold is 0", {"v_threshold": 0}),
        ("unknown surrogate 'relu'", {"surrogate": "relu"}),
        ("alpha is 0", {"alpha": 0}),
        ("alpha is nan", {"alpha": float("nan")}),
    ],
)
def test_a_bad_twin_is_refused_before_anything_is_built(message, twin):
    with pytest.raises(SpikeportError, match=message):
        Twin(**twin)


@pytest.mark.parametrize("form", FORMS)
def test_every_neuron_of_a_twin_is_the_one_asked_for(form):
    asked = Twin("snn", form, time_steps=3, tau=1.5, v_threshold=0.3, surrogate="sigmoid", alpha=7.0)
    neurons = [m for m in ModelSpec(twin=asked, width=0.25).build().modules() if isinstance(m, LIF)]
    assert neurons
    for neuron in neurons:
        assert {name: getattr(neuron, name) for name in TUNED} == {name: getattr(asked, name) for name in TUNED}


specs = st.builds(
    ModelSpec,
    name=st.sampled_from(list(MODELS)),
    twin=st.builds(
        Twin,
        kind=st.sampled_from(KINDS),
        spiking=st.sampled_from(FORMS),
        time_steps=st.integers(1, 32),
        tau=st.floats(1, 100),
        v_threshold=st.floats(0.01, 10),
        surrogate=st.sampled_from(list(SURROGATES)),
        alpha=st.none() | st.floats(0.1, 100),
    ),
    num_classes=st.integers(1, 1000),
    width=st.floats(0.01, 4),
    keep=st.none() | st.lists(st.sampled_from(list(FIRES)), min_size=1, unique=True).map(tuple),
)


@given(specs)
def test_a_specification_survives_json(spec):
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize("value", [{}, {"twin": {"kind": "snn", "colour": 1}}, {"twin": {}, "depth": 3}, {"twin": 3}])
def test_a_dictionary_that_is_no_specification_is_refused(value):
    with pytest.raises(SpikeportError, match="not a model description"):
        ModelSpec.from_dict(value)


def _training_step(model):
    """Logits, the spikes of every LIF, gradients and statistics of one step."""
    seen = {}
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with watched(spiking_layers(model), lambda name, spikes: seen.update({name: spikes.detach()})):
        logits = model(images)
    logits.square().sum().backward()
    return logits.detach(), seen, {n: p.grad for n, p in model.named_parameters()}, dict(model.named_buffers())


# Alone: BatchNorms with no LIF behind them, and those of mixed depthwise convolutions.
@pytest.mark.parametrize(("name", "alone"), [("squeezenet-p", 0), ("mixnet", 26)])
@pytest.mark.parametrize("pooling", [False, True])
def test_a_fused_network_trains_as_the_layers_do(name, alone, pooling):
    spec = ModelSpec(name, Twin("snn", tau=1.25, v_threshold=0.25), width=0.25)
    one, two = spec.build(seed=1), spec.build(seed=1)
    fuse(one, pooling)
    ran = []
    for module in one.modules():
        if isinstance(module, nn.BatchNorm2d | nn.MaxPool2d):
            module.register_forward_hook(lambda module, *_: ran.append(type(module)))
    fused, plain = list(_training_step(one)), list(_training_step(two))
    assert ran.count(nn.BatchNorm2d) == alone
    if name == "squeezenet-p":
        assert ran.count(nn.MaxPool2d) == (0 if pooling else 3)
        if pooling:  # the neurons before a pooling show pooled spikes
            fire4, fire8 = ("features.fire4.expand", "features.fire8.expand")
            for layer in ("stem.act", *(f"{fire}{k}.act" for fire in (fire4, fire8) for k in (1, 3))):
                plain[1][layer] = max_pool2d(plain[1][layer], 2)
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert list(one.state_dict()) == list(two.state_dict())
    images = torch.randn(2, 3, 32, 32)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.eval()(images), two.eval()(images))


def test_a_batch_norm_that_keeps_its_statistics_is_followed_by_the_pooling():
    spec = ModelSpec(twin=Twin("snn", tau=1.25, v_threshold=0.25), width=0.125)
    one, two = spec.build(seed=1), spec.build(seed=1)
    fuse(one)
    for network in (one, two):
        network.train()
        network.stem.bn.eval()
        network.features.fire4.expand3.bn.eval()
    (logits, seen, *rest), (expected, expected_seen, *expected_rest) = _training_step(one), _training_step(two)
    torch.testing.assert_close([logits, *rest], [expected, *expected_rest], rtol=1e-3, atol=1e-4)
    pooled = {name for name, spikes in seen.items() if spikes.shape != expected_seen[name].shape}
    assert pooled == {"features.fire8.expand1.act", "features.fire8.expand3.act"}


def test_hooks_run_where_nothing_is_in_one():
    model = ModelSpec(twin=Twin("snn"), width=0.125).build(seed=0)
    ran = []
    for name in ("features", "features.pool1", "stem.bn"):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    images = torch.randn(1, 3, 32, 32)
    model(images.repeat(2, 1, 1, 1))  # training, not fused
    fuse(model)
    model.eval()(images)
    assert ran == ["stem.bn", "features.pool1", "features"] * 2


def test_a_neuron_of_ones_own_is_not_fused():
    class Own(LIF):
        def forward(self, x):
            return super().forward(x)

    block = ConvNorm(OrderedDict(conv=nn.Conv2d(1, 2, 1), bn=nn.BatchNorm2d(2), act=Own(time_steps=2)))
    fuse(block)
    assert block(torch.randn(4, 1, 2, 2)).shape == (4, 2, 2, 2)
    assert block(torch.randn(4, 1, 2, 2), pooled=True).shape == (4, 2, 1, 1)


def test_what_is_no_lif_after_a_batch_norm_is_not_fused():
    spec = ModelSpec(twin=Twin("cnn"))
    cnn = spec.build(seed=0)
    fuse(cnn)
    snn = ModelSpec(twin=Twin("snn")).build(seed=0)
    snn.stem.bn.__class__ = type("Another", (nn.BatchNorm2d,), {})
    fuse(snn)
    assert not any(module.fused for module in cnn.modules() if isinstance(module, ConvNorm))
    assert [n for n, m in snn.named_modules() if isinstance(m, ConvNorm) and not m.fused] == ["stem"]
