"""LIF kernels: C++ on the CPU, CUDA C++ on the GPU, one arithmetic (lif_step.h), and the PyTorch reference.

Set ``SPIKEPORT_KERNELS=reference`` to run everything on the reference.
"""

from spikeport.core.kernels.dispatch import kernels_usable
from spikeport.core.kernels.ops import lif
from spikeport.core.kernels.parameters import DTYPE_CODES, SURROGATE_CODES, Neuron, Setting, state_dtype
from spikeport.core.kernels.reference import lif_reference

__all__ = [
    "DTYPE_CODES",
    "SURROGATE_CODES",
    "Neuron",
    "Setting",
    "kernels_usable",
    "lif",
    "lif_reference",
    "state_dtype",
]
