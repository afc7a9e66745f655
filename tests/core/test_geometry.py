"""Sizes of poolings, and what each place reaches, are torch's."""

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from spikeport.core.geometry import ceil_reach, fan_out, output_size


@settings(max_examples=300)
@given(st.data())
def test_sizes_of_poolings_are_torchs_with_and_without_ceil_mode(data):
    numbers = st.tuples(st.integers(1, 4), st.integers(1, 4))
    size = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    kernel, stride, dilation = (data.draw(numbers) for _ in range(3))
    padding = data.draw(st.tuples(*[st.integers(0, k // 2) for k in kernel]))
    floor = output_size(size, kernel, stride, padding, dilation)
    assume(min(floor) > 0)

    x = torch.rand(1, 1, *size)
    assert tuple(F.max_pool2d(x, kernel, stride, padding, dilation).shape[2:]) == floor
    ceil = F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode=True)
    reach = ceil_reach(size, kernel, stride, padding, dilation)
    assert any(reach) == (tuple(ceil.shape[2:]) != floor)
    around = (padding[1], padding[1] + reach[1], padding[0], padding[0] + reach[0])
    padded = F.max_pool2d(F.pad(x, around), kernel, stride, 0, dilation)
    assert torch.equal(padded, ceil.clamp(min=0))  # -inf: dilated windows that meet padding alone

    met = torch.zeros(size, dtype=torch.int64)
    for row, column in np.ndindex(size):
        x = torch.zeros(1, 1, *size)
        x[0, 0, row, column] = 1
        met[row, column] = int(F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode=True).clamp(min=0).sum())
    outputs = tuple(ceil.shape[2:])
    np.testing.assert_array_equal(fan_out(size, kernel, stride, padding, dilation, outputs), met)
