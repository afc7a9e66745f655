"""Sizes of poolings are torch's."""

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from spikeport.core.geometry import ceil_adds, output_size


@settings(max_examples=300)
@given(st.data())
def test_sizes_of_poolings_are_torchs_with_and_without_ceil_mode(data):
    numbers = st.tuples(st.integers(1, 4), st.integers(1, 4))
    size = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    kernel, stride, dilation = (data.draw(numbers) for _ in range(3))
    padding = data.draw(st.tuples(*[st.integers(0, k // 2) for k in kernel]))
    floor = output_size(size, kernel, stride, padding, dilation)
    assume(min(floor) > 0)

    x = torch.zeros(1, 1, *size)
    assert tuple(F.max_pool2d(x, kernel, stride, padding, dilation).shape[2:]) == floor
    ceil = tuple(F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode=True).shape[2:])
    assert ceil_adds(size, kernel, stride, padding, dilation) == (ceil != floor)
