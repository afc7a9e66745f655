"""Whether a kernel can run, or the PyTorch reference has to."""

import functools
import os
import warnings

import torch

from spikeport.core.errors import SpikeportError
from spikeport.core.kernels import cpu, cuda
from spikeport.core.kernels.parameters import DTYPE_CODES

VARIABLE = "SPIKEPORT_KERNELS"


def kernels_usable(device_type: str, dtype: torch.dtype) -> bool:
    """Whether the kernels take tensors of ``dtype`` on this type of device; warns once where a part is missing.

    Raises:
        SpikeportError: ``SPIKEPORT_KERNELS`` is neither "auto" nor "reference".
    """
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in ("auto", "reference"):
        raise SpikeportError(f"{VARIABLE} is {choice!r}; it may be auto or reference")
    if choice == "reference" or dtype not in DTYPE_CODES or device_type not in ("cpu", "cuda"):
        return False
    # torch.func (vmap, grad) sees through the reference only.
    if torch._C._are_functorch_transforms_active():
        return False
    missing = _missing(device_type)
    if missing:
        _warn(missing)
    return not missing


# A compiled graph keeps the answer of the moment it was traced. This is the mark torch.compiler.assume_constant_result
# sets, which imports the compiler first: two seconds at the start of every command.
kernels_usable._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _missing(device_type: str) -> str:
    """What keeps the kernels of a device from running; empty where nothing does."""
    if device_type == "cuda":
        return cuda.missing()
    return "" if cpu.library() else cpu.MISSING


@functools.cache
def _warn(missing: str) -> None:
    warnings.warn(f"LIF runs on the slower PyTorch reference: {missing}", RuntimeWarning, stacklevel=4)
