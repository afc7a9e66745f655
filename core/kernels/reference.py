"""The LIF neuron in plain PyTorch: the meaning of every kernel, which the tests hold them to.

Two products and one sum a step, each rounded once; float16 and bfloat16 input is widened to a float32 membrane.
"""

import torch
from torch import Tensor

from spikeport.core.kernels.parameters import Neuron, state_dtype
from spikeport.core.surrogates import step, surrogate_named


def lif_reference(x: Tensor, state: Tensor | None, neuron: Neuron, steps: int, constant: bool) -> tuple[Tensor, Tensor]:
    """Spikes [T, N, ...] and last membrane [N, ...], as ``spikeport.core.functional.lif``, without its checks."""
    derivative, _ = surrogate_named(neuron.surrogate)
    decay, gain, threshold, v_reset, alpha = neuron.constants
    dtype = state_dtype(x.dtype)
    current = (x.to(dtype) * gain).unsqueeze(0).expand(steps, *x.shape) if constant else x.to(dtype) * gain
    v = torch.zeros_like(current[0]) if state is None else state.to(dtype) - v_reset
    spikes = []
    for charge in current.unbind(0):
        h = v * decay + charge
        s = step(h - threshold, derivative, alpha)
        v = h * (1 - (s.detach() if neuron.detach_reset else s))
        spikes.append(s.to(x.dtype))
    return torch.stack(spikes), v + v_reset
