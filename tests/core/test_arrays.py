"""Numbers a user hands in."""

import numpy as np
import pytest
import torch

from spikeport.core import SpikeportError
from spikeport.core.arrays import as_array

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize(
    "values",
    [
        VALUES[::-1],
        VALUES[:, ::-2],
        np.asfortranarray(VALUES),
        VALUES.astype(">f4"),
        VALUES.astype(">i8"),
        VALUES.astype(np.longdouble),
        VALUES.tolist(),
        torch.from_numpy(VALUES).bfloat16().T,
    ],
)
def test_torch_takes_what_comes_out(values):
    array = as_array(values, "x")
    expected = np.array(values.float()) if isinstance(values, torch.Tensor) else np.array(values, np.float64)
    np.testing.assert_array_equal(torch.from_numpy(array).numpy(), expected)
    assert array.flags.c_contiguous


def test_what_is_as_it_should_be_is_not_copied():
    assert np.shares_memory(as_array(VALUES, "x"), VALUES)


def test_a_single_number_stays_one():
    assert as_array(np.longdouble(3), "x").shape == ()


def test_what_is_no_number_is_named():
    with pytest.raises(SpikeportError, match="labels: an array of <U1"):
        as_array(["a"], "labels")
