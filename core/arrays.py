"""Numbers a user hands in, in whatever form."""

from typing import Any

import numpy as np
import torch

from spikeport.core.errors import SpikeportError


def as_array(values: Any, what: str) -> np.ndarray:
    """An array, a tensor or lists of real numbers as an array that torch takes: in C order and this machine's bytes.

    Raises SpikeportError for anything else.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SpikeportError(f"{what}: no array of real numbers ({error})") from None
    if array.dtype.kind not in "biuf":
        raise SpikeportError(f"{what}: an array of {array.dtype}; give real numbers")
    known = np.dtype(np.float64) if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
    return np.asarray(array, known, order="C")


def kind_of(array: np.ndarray) -> str:
    """Its type and shape, for an error to name."""
    return f"{array.dtype} {list(array.shape)}"
