"""The kernels as torch operators: compile, export, autocast, and what they save for the backward pass."""

import pytest
import torch
from torch import nn

from spikeport.core import LIF, SpikeportError, kernels, lif

SETTING = kernels.Neuron().setting(4, False)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.fire = LIF(time_steps=4)

    def forward(self, x):
        return self.fire(self.conv(x))


def run(module, x):
    x = x.clone().requires_grad_()
    output = module(x)
    output.backward(torch.ones_like(output) * 0.5)
    return output.detach(), x.grad


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 2, 3, 2, 2)])
def test_operators_keep_torchs_contract(kernel, with_state, shape):
    x = torch.randn(shape, requires_grad=True)
    state = torch.randn(shape[1:], requires_grad=True) if with_state else None
    torch.library.opcheck(torch.ops.spikeport.lif, (x, state, *SETTING, True))
    grads = (torch.randn(shape, requires_grad=True), torch.randn(shape[1:], requires_grad=True))
    torch.library.opcheck(torch.ops.spikeport.lif_backward, (x, state, *grads, *SETTING))
    last = (x, state, *grads, torch.randn(shape), torch.randn(shape[1:]) if with_state else None)
    last = tuple(None if tensor is None else tensor.detach() for tensor in last)
    torch.library.opcheck(torch.ops.spikeport.lif_double_backward, (*last, *SETTING))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_compiles_into_one_graph(kernel, backend, memory_format):
    torch.manual_seed(0)
    block = Block().to(memory_format=memory_format)
    x = torch.randn(8, 2, 6, 6).to(memory_format=memory_format)
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    for result, expected in zip(run(compiled, x), run(block, x), strict=True):
        torch.testing.assert_close(result, expected)


def test_compiles_with_a_dynamic_batch(kernel):
    layer = torch.compile(lambda x: lif(x)[0], fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (2, 3, 5):
        x = torch.randn(4, batch, 7)
        assert torch.equal(layer(x), lif(x)[0])


def test_exports_as_one_operator(kernel):
    block, x = Block(), torch.randn(8, 2, 6, 6)
    program = torch.export.export(block, (x,))
    operators = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.ops.spikeport.lif.default in operators
    assert torch.equal(program.module()(x), block(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_feeds_half_precision_and_keeps_the_membrane_float32(kernel, reference, dtype):
    conv, x = nn.Conv2d(2, 3, 3), torch.randn(8, 2, 6, 6)
    with torch.autocast("cpu", dtype):
        current = conv(x)
        spikes, membrane = lif(current.unflatten(0, (4, 2)))
    assert current.dtype == spikes.dtype == dtype
    assert membrane.dtype == torch.float32
    expected = reference(current.unflatten(0, (4, 2)))
    assert torch.equal(spikes, expected[0])
    assert torch.equal(membrane, expected[1])
    spikes.float().sum().backward()
    assert conv.weight.grad.dtype == torch.float32


def test_compiles_into_one_graph_under_autocast(kernel):
    torch.manual_seed(0)
    block, x = Block(), torch.randn(8, 2, 6, 6)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        results, expected = run(compiled, x), run(block, x)
    assert results[0].dtype == torch.bfloat16
    for result, other in zip(results, expected, strict=True):
        torch.testing.assert_close(result, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saves_one_tensor_of_the_inputs_size(kernel, dtype):
    x = torch.randn(4, 1000).to(dtype).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        lif(x, torch.zeros(1000))
    assert sum(t.nbytes for t in saved) == x.nbytes + 4000
    assert saved[0].data_ptr() == x.data_ptr()


def test_third_derivative_is_refused(kernel):
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    gradient = lif(x)[0].sum()
    for _ in range(2):
        (gradient,) = torch.autograd.grad(gradient, x, create_graph=True)
        gradient = (gradient * torch.rand_like(gradient)).sum()
    with pytest.raises(SpikeportError, match="not a third"):
        torch.autograd.grad(gradient, x)


def test_torch_func_sees_the_reference(kernel):
    x = torch.randn(3, 4, 5)
    mapped = torch.func.vmap(lambda x: lif(x)[0])(x)
    gradient = torch.func.grad(lambda x: lif(x)[0].sum())(x[0])
    leaf = x[0].clone().requires_grad_()
    lif(leaf)[0].sum().backward()
    assert torch.equal(mapped, torch.stack([lif(sample)[0] for sample in x]))
    torch.testing.assert_close(gradient, leaf.grad)
