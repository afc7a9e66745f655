"""BatchNorm and LIF in one: BatchNorm2d followed by LIF."""

import copy
import itertools

import pytest
import torch
from in_one import InOne
from torch import nn

from spikeport.core import LIF, SpikeportError
from spikeport.core.kernels import Neuron, cpu, norm_ops
from spikeport.core.kernels.batch_norm_lif import batch_norm_lif
from spikeport.core.surrogates import SURROGATES

SHAPES = ((5, 9, 7), (16, 1, 3), (64, 8, 8), (3, 40, 40), (1030, 3, 1))  # channels, height, width


def pair(channels, steps, constant=False, dtype=torch.float32, norm=None, **options):
    """BatchNorm2d and LIF in one, and one after the other, with the same weights."""
    torch.manual_seed(channels)
    two = nn.Sequential(
        nn.BatchNorm2d(channels, **(norm or {})), LIF(time_steps=steps, constant_input=constant, **options)
    ).to(dtype)
    with torch.no_grad():
        for parameter in two.parameters():
            parameter.copy_(torch.rand(channels) + 0.5)
    return InOne(*copy.deepcopy(two)), two


def draw(shape, steps, constant, dtype=torch.float32, channels_last=False):
    torch.manual_seed(7)
    x = (torch.randn((1 if constant else steps) * 3, *shape) * 3 + 5).to(dtype)
    return x.to(memory_format=torch.channels_last) if channels_last else x


def run(module, x):
    """Spikes, and the gradients of x and of the parameters."""
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    spikes = module(leaf)
    cotangent = torch.cos(torch.arange(spikes.numel(), dtype=torch.float64)).view(spikes.shape).to(spikes.dtype)
    return spikes, torch.autograd.grad(spikes, [leaf, *module.parameters()], cotangent)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_equals_batch_norm_then_lif(kernel, distance, shape, training):
    for steps, constant, last, dtype in itertools.product(
        (1, 3, 4, 6, 8), (False, True), (False, True), (torch.float32, torch.float64)
    ):
        # In float64: torch's own float32 sums over channels-last tensors are wrong by 1e-5.
        fused, two = pair(shape[0], steps, constant, torch.float64)
        fused = fused.to(dtype)
        x = draw(shape, steps, constant, dtype, last)
        limit = 5e-6 if dtype == torch.float32 else 1e-12
        fused(x), two(x.double())  # running statistics that are not 0 and 1
        fused.train(training), two.train(training)
        spikes, gradients = run(fused, x)
        expected, expected_gradients = run(two, x.double())
        assert spikes.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        assert (spikes != expected).double().mean() <= (1e-4 if dtype == torch.float32 else 0)
        for result, reference in zip(gradients, expected_gradients, strict=True):
            assert distance(result.double(), reference) <= limit
        for name, buffer in two.named_buffers():
            assert distance(fused.get_buffer(name).double(), buffer.double()) <= limit


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("steps", [4, 5])
@pytest.mark.parametrize("constant", [False, True])
def test_every_surrogate_and_option(kernel, distance, surrogate, steps, constant):
    for level, detach in itertools.product((0, 1, 2), (False, True)):
        options = {"tau": 1.6, "v_threshold": 0.7, "v_reset": -0.2, "surrogate": surrogate, "detach_reset": detach}
        options["decay_input"] = detach
        fused, two = pair(6, steps, constant, **options)
        cpu.library().spikeport_use(level)
        x = draw((6, 5, 9), steps, constant)
        spikes, gradients = run(fused, x)
        expected, expected_gradients = run(two, x)
        assert torch.equal(spikes, expected)
        for result, reference in zip(gradients, expected_gradients, strict=True):
            assert distance(result, reference) <= 1e-5


@pytest.mark.parametrize(
    "norm", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}, {"eps": 0.1, "momentum": 0.3}]
)
@pytest.mark.parametrize("back_end", ["kernels", "reference"])
def test_options_of_batch_norm(kernel, distance, monkeypatch, norm, back_end):
    if back_end == "reference":
        monkeypatch.setenv("SPIKEPORT_KERNELS", "reference")
    fused, two = pair(4, 4, norm=norm)
    for number in range(3):
        x = draw((4, 5, 6), 4, False) + number
        assert torch.equal(fused(x), two(x))
    fused.eval(), two.eval()
    assert torch.equal(fused(x), two(x))
    for name, buffer in two.named_buffers():
        assert distance(fused.get_buffer(name).double(), buffer.double()) <= 1e-6


def test_a_mean_far_from_zero_costs_no_precision(kernel, distance):
    fused, two = pair(3, 4)
    x = torch.randn(400, 3, 8, 8) * 0.01 + 100
    x[0, :, 0, 0] = -100  # an outlier in front
    fused(x), two(x)
    exact = x.double().transpose(0, 1).flatten(1).var(1)
    assert distance((fused[0].running_var.double() - 0.9) * 10, exact) <= 1e-4
    assert distance(fused[0].running_mean, two[0].running_mean) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("steps", [4, 5])
@pytest.mark.parametrize("constant", [False, True])
def test_half_precision_keeps_the_normalised_current_in_float32(kernel, distance, dtype, steps, constant):
    fused, two = pair(6, steps, constant)
    x = draw((6, 7, 9), steps, constant, dtype)
    spikes, gradients = run(fused, x)
    expected, expected_gradients = run(two, x.float())
    assert spikes.dtype == gradients[0].dtype == dtype
    assert (spikes.float() != expected).float().mean() <= 1e-3
    # The cotangents are rounded to dtype, and so is the gradient.
    limit = 0.02 if dtype == torch.bfloat16 else 0.002
    for result, reference in zip(gradients, expected_gradients, strict=True):
        assert distance(result.float(), reference) <= limit


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_gradient_of_the_gradient(kernel, distance, constant, training):
    fused, two = pair(5, 3, constant, torch.float64)
    fused.train(training), two.train(training)
    seconds = []
    for module in (fused, two):
        leaf = draw((5, 4, 3), 3, constant, torch.float64).requires_grad_()
        cotangent = torch.ones(9, 5, 4, 3, dtype=torch.float64).mul_(0.3).requires_grad_()
        inputs = [leaf, *module.parameters()]
        first = torch.autograd.grad(module(leaf), inputs, cotangent, create_graph=True)
        weighted = sum((g * torch.arange(g.numel()).view_as(g).cos()).sum() for g in first)
        # The bias of a training BatchNorm moves the threshold alone, as does its weight.
        seconds.append(torch.autograd.grad(weighted, [*inputs, cotangent]))
    for result, reference in zip(*seconds, strict=True):
        assert distance(result, reference) <= 1e-10


def test_third_derivative_is_refused(kernel):
    fused, _ = pair(3, 2, dtype=torch.float64)
    x = draw((3, 4, 4), 2, False, torch.float64).requires_grad_()
    first = torch.autograd.grad(fused(x).square().sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum() + x.pow(4).sum(), x, create_graph=True)[0]
    with pytest.raises(SpikeportError, match="not a third"):
        torch.autograd.grad(second.sum(), x)


def test_no_samples_and_one_channel_give_no_spikes(kernel):
    factors = dict.fromkeys(("running_mean", "running_var", "weight", "bias", "time_steps"))
    x = torch.zeros(2, 0, 1, 4, 4)
    assert batch_norm_lif(x, training=False, momentum=0.1, eps=1e-5, neuron=Neuron(), **factors).shape == x.shape


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_steps_that_are_one_in_memory_have_gradients_of_their_own(kernel, distance, order):
    """A step of x of 0 elements stands for a constant input on a GPU: there such an x is copied first."""
    fused, _ = pair(3, 4)
    step = torch.randn(2, 3, 4, 5).add(torch.arange(3.0).view(3, 1, 1)).to(memory_format=order)
    results, spiking = [], []
    for x in (step.expand(4, *step.shape), step.repeat(4, 1, 1, 1, 1)):
        assert norm_ops._dense(x, False)[0].stride(0) > 0
        leaf = x.detach().requires_grad_()
        spikes = batch_norm_lif(
            leaf, None, None, fused[0].weight, fused[0].bias, True, 0.1, 1e-5, fused[1].neuron, None
        )
        results.append(torch.autograd.grad(spikes, leaf, torch.cos(torch.arange(480.0)).view(spikes.shape))[0])
        spiking.append(spikes)
    assert torch.equal(*spiking)
    assert distance(*results) <= 1e-6


def test_saves_one_tensor_of_the_inputs_size(kernel):
    fused, _ = pair(8, 4)
    x = draw((8, 16, 16), 4, False).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        fused(x)
    assert sum(t.nbytes for t in saved) == x.nbytes + 4 * 8 * 4


def test_compiles_into_one_graph(kernel):
    fused, _ = pair(4, 4)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    x = draw((4, 5, 6), 4, False)
    for result, expected in zip(run(compiled, x)[1], run(fused, x)[1], strict=True):
        torch.testing.assert_close(result, expected)


def test_exports_as_one_operator(kernel):
    fused, _ = pair(4, 4)
    fused.eval()
    x = draw((4, 5, 6), 4, False)
    program = torch.export.export(fused, (x,))
    assert torch.ops.spikeport.batch_norm_lif.default in [node.target for node in program.graph.nodes]
    assert torch.equal(program.module()(x), fused(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_trains_under_autocast(kernel, dtype):
    torch.manual_seed(0)
    conv, (fused, _) = nn.Conv2d(2, 4, 3), pair(4, 4)
    with torch.autocast("cpu", dtype):
        spikes = fused(conv(torch.randn(8, 2, 6, 6)))
    assert spikes.dtype == dtype
    spikes.float().square().sum().backward()
    assert fused[0].running_mean.dtype == conv.weight.grad.dtype == fused[0].weight.grad.dtype == torch.float32
    assert float(conv.weight.grad.abs().sum()) > 0


def test_operators_keep_torchs_contract(kernel):
    x = torch.randn(4, 2, 3, 2, 2, requires_grad=True)
    factors = [torch.rand(3).add(0.5).requires_grad_(i < 2) for i in range(4)]
    numbers = (1e-5, True, False, 4, False, [0.5, 0.5, 1.0, 0.0, 2.0], 0, False, False)
    torch.library.opcheck(torch.ops.spikeport.channel_moments, (x.detach(), False))
    torch.library.opcheck(torch.ops.spikeport.batch_norm_lif, (x, *factors, *numbers))


def test_without_the_kernels_the_two_layers_run(monkeypatch, distance):
    monkeypatch.setenv("SPIKEPORT_KERNELS", "reference")
    fused, two = pair(4, 4)
    monkeypatch.setattr(cpu, "norm", lambda *a, **k: pytest.fail("a kernel ran"))
    (spikes, gradients), (expected, expected_gradients) = (run(m, draw((4, 5, 6), 4, False)) for m in (fused, two))
    assert torch.equal(spikes, expected)
    for result, reference in zip(gradients, expected_gradients, strict=True):
        assert distance(result, reference) <= 1e-6


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(4, 3), {}, r"expected \[T, N, C"),
        (torch.zeros(4, 2, 3, 2), {"weight": torch.ones(4)}, r"weight is \[4\].*asks for \[3\]"),
        (torch.zeros(4, 2, 3, 2), {"running_mean": torch.zeros(3, device="meta")}, "running_mean is .* on meta"),
        (torch.zeros(1, 1, 3, 1), {"training": True}, "no two values per channel"),
        (torch.zeros(4, 0, 3, 2), {"training": True}, "no two values per channel"),
        (torch.zeros(4, 2, 3, 2, dtype=torch.int32), {}, "floating point"),
        (torch.zeros(4, 2, 3, 2), {"neuron": Neuron(tau=0.9)}, "tau is 0.9"),
        (torch.zeros(4, 2, 4, 4), {"pooled": True}, r"only images are pooled; .* not \[T, N, C, H, W\]"),
    ],
)
def test_bad_input_is_refused(x, options, message):
    arguments = dict.fromkeys(("running_mean", "running_var", "weight", "bias", "time_steps")) | options
    training = arguments.pop("training", False)
    neuron = arguments.pop("neuron", Neuron())
    with pytest.raises(SpikeportError, match=message):
        batch_norm_lif(x, training=training, momentum=0.1, eps=1e-5, neuron=neuron, **arguments)
