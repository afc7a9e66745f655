"""The CUDA kernels on a GPU, against the reference on the CPU; skipped where torch sees none."""

import copy
import itertools
import math

import pytest
import torch
from in_one import InOne
from torch import nn
from torch.nn.functional import max_pool2d

from spikeport.core import LIF, kernels, lif
from spikeport.core.surrogates import SURROGATES

DEVICE = "cuda"
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(autouse=True)
def _kernels_run():
    torch.manual_seed(0)
    assert kernels.kernels_usable(DEVICE, torch.float32), "pip install 'spikeport[cuda]'"


def arranged(x, layout):
    """x [T, N, C, H, W] or [N, C, H, W] in another layout."""
    if layout == "channels-last":
        return x.movedim(-3, -1).contiguous().movedim(-1, -3)
    return torch.stack([x, x + 1], -1)[..., 0] if layout == "strided" else x


def both_orders(layer, inputs, cotangents, options):
    """Outputs, first gradients, and the gradients of a weighted sum of those, all on the CPU."""
    inputs, cotangents = ([t.detach().clone().requires_grad_() for t in tensors] for tensors in (inputs, cotangents))
    outputs = layer(*inputs, **options)
    first = torch.autograd.grad(outputs, inputs, cotangents, create_graph=True)
    weights = [torch.arange(g.numel(), dtype=torch.float64).cos().view(g.shape).to(g) for g in first]
    weighted = sum((g * w).sum() for g, w in zip(first, weights, strict=True))
    second = torch.autograd.grad(weighted, [*inputs, *cotangents])
    return [[t.detach().cpu() for t in tensors] for tensors in (outputs, first, second)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("steps", [1, 3, 4, 16, 20])
def test_spikes_and_membrane_are_the_references(reference, assert_same, dtype, steps):
    layouts = ("contiguous", "channels-last", "strided")
    for constant, stateful, layout, width in itertools.product((False, True), (False, True), layouts, (8, 7)):
        shape = (2, 3, 5, width)
        x = (torch.randn(shape if constant else (steps, *shape)) * 2 + 0.5).to(dtype)
        state = torch.randn(shape) if stateful else None
        options = {"tau": 1.7, "v_threshold": 0.9, "v_reset": -0.1, "time_steps": steps if constant else None}
        results = lif(arranged(x.to(DEVICE), layout), None if state is None else state.to(DEVICE), **options)
        for result, expected in zip(results, reference(x, state, **options), strict=True):
            assert_same(result.cpu(), expected)


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("steps", [1, 4, 16, 20])
def test_gradients_are_the_references(reference, distance, surrogate, steps):
    for constant, detach, (dtype, limit) in itertools.product(
        (False, True), (False, True), ((torch.float32, 3e-6), (torch.float64, 1e-12))
    ):
        shape = (3, 5, 71)
        given = [torch.randn(shape if constant else (steps, *shape), dtype=dtype) * 2, torch.randn(shape, dtype=dtype)]
        cotangents = [torch.randn(steps, *shape, dtype=dtype), torch.randn(shape, dtype=dtype)]
        options = {"tau": 1.7, "v_reset": -0.1, "surrogate": surrogate, "detach_reset": detach}
        options["time_steps"] = steps if constant else None
        there = [[t.to(DEVICE) for t in tensors] for tensors in (given, cotangents)]
        results = both_orders(lif, *there, options)
        expected = both_orders(reference, given, cotangents, options)
        for order, (own, theirs) in enumerate(zip(results, expected, strict=True)):
            for a, b in zip(own, theirs, strict=True):
                assert distance(a, b) <= (0, limit / 3, limit)[order]


def test_infinity_and_nan_go_where_the_reference_sends_them(reference, assert_same):
    values = torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0, 3.0, -3.0, 60000.0])
    x = torch.stack([values.roll(t)[:, None] + values.roll(3 * t) for t in range(4)])
    for result, expected in zip(lif(x.to(DEVICE)), reference(x), strict=True):
        assert_same(result.cpu(), expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("shape", [(5, 9, 7), (64, 8, 8)])
def test_batch_norm_and_lif_in_one(distance, shape, layout):
    for steps, constant, training in itertools.product((1, 4), (False, True), (True, False)):
        layers = nn.BatchNorm2d(shape[0]), LIF(time_steps=steps, constant_input=constant)
        fused, two = InOne(*layers).to(DEVICE), copy.deepcopy(nn.Sequential(*layers)).double().cpu()
        fused.train(training), two.train(training)
        x = torch.randn((1 if constant else steps) * 3, *shape) * 3 + (5 if training else 0)
        results = []
        for module, leaf in ((fused, arranged(x.to(DEVICE), layout)), (two, x.double())):
            leaf = leaf.detach().requires_grad_()
            spikes = module(leaf)
            cotangent = torch.arange(spikes.numel()).cos().view(spikes.shape).to(spikes)
            gradients = torch.autograd.grad(spikes, [leaf, *module.parameters()], cotangent)
            results.append([t.detach().cpu().double() for t in (spikes, *gradients)])
        (spikes, *gradients), (expected, *expected_gradients) = results
        assert (spikes != expected).double().mean() <= 1e-4
        for result, reference in zip(gradients, expected_gradients, strict=True):
            assert distance(result, reference) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooling_in_one_too(distance, dtype):
    for steps, constant, shape in itertools.product((1, 4, 16, 20), (False, True), ((64, 8, 8), (6, 4, 10), (1, 6, 4))):
        x = arranged(torch.randn((1 if constant else steps) * 3, *shape), "channels-last").to(DEVICE, dtype)
        norm, neurons = nn.BatchNorm2d(shape[0]).to(DEVICE), LIF(time_steps=steps, constant_input=constant)
        results = []
        for pooled in (True, False):
            leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
            spikes = neurons(leaf, norm, True) if pooled else max_pool2d(neurons(leaf, norm), 2)
            cotangent = torch.arange(spikes.numel()).cos().view(spikes.shape).to(spikes)
            results.append([spikes, *torch.autograd.grad(spikes, [leaf, *norm.parameters()], cotangent)])
        (spikes, *gradients), (expected, *expected_gradients) = results
        assert torch.equal(spikes, expected)
        for result, reference in zip(gradients, expected_gradients, strict=True):
            assert distance(result.double(), reference.double()) <= (1e-5 if dtype == torch.float32 else 0.02)


def test_runs_on_the_current_stream():
    x = torch.randn(4, 2**22)
    expected = lif(x)[0]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        current = x.to(DEVICE, non_blocking=True)
        for _ in range(20):  # work the kernel has to wait for
            current = current * 1.0
        spikes = lif(current)[0]
    stream.synchronize()
    assert torch.equal(spikes.cpu(), expected)


def test_compiles_into_one_graph_under_autocast():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), LIF(time_steps=4)).to(DEVICE)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x = torch.randn(8, 2, 6, 6, device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        spikes, expected = compiled(x), block(x)
    assert spikes.dtype == expected.dtype == torch.bfloat16
    assert (spikes != expected).float().mean() <= 0.02
    spikes.float().sum().backward()
    assert block[0].weight.grad.isfinite().all()


def test_keeps_one_tensor_of_the_inputs_size():
    x = torch.randn(4, 2**20, device=DEVICE, requires_grad=True)
    lif(x)[0].sum().backward()  # compiles, and warms the allocator
    x.grad = None
    before = torch.cuda.memory_allocated()
    spikes = lif(x)[0]
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before <= 1.3 * spikes.nbytes  # spikes and the last membrane, a quarter
