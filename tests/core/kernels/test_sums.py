"""Sums of spikes over channels and images in one pass over memory."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spikeport.core.kernels import cpu

pytestmark = pytest.mark.skipif(cpu.library() is None, reason=cpu.MISSING)
SIZES = st.tuples(st.integers(0, 40), st.integers(1, 40), st.integers(1, 70))


@given(SIZES, st.integers(0, 99))
def test_both_sums_equal_torchs(size, seed):
    y = torch.randint(9, size, generator=torch.Generator().manual_seed(seed)).float()
    over_channels, over_images = cpu.sums(y)
    assert torch.equal(over_channels, y.sum(1))
    assert torch.equal(over_images, y.sum(0).flatten())


def test_many_threads_share_the_images():
    y = (torch.rand(37, 64, 100) < 0.3).float()
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        over_channels, over_images = cpu.sums(y)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(over_channels, y.sum(1))
    assert torch.equal(over_images, y.sum(0).flatten())
