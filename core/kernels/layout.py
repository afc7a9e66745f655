"""Memory layouts the kernels can walk: the neurons of one time step without gaps, in any order.

Neurons do not interact, so contiguous and channels-last tensors are the same to a kernel, and nothing is copied
unless the neurons of a step are scattered.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """Shape and strides of a tensor."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def over(self, steps: int) -> "Layout":
        """``steps`` tensors of this layout, one after the other: [T, N, ...]."""
        return Layout((steps, *self.shape), (math.prod(self.shape), *self.strides))

    def new(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Uninitialised."""
        return torch.empty_strided(self.shape, self.strides, dtype=dtype, device=device)

    def holds(self, tensor: Tensor) -> bool:
        """Whether ``tensor``, of this shape, lies in memory like this."""
        strides = zip(tensor.stride(), self.strides, self.shape, strict=True)
        return all(size == 1 or a == b for a, b, size in strides)

    def arrange(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """``tensor`` in this layout and dtype; itself where it is so already."""
        if tensor.dtype == dtype and self.holds(tensor):
            return tensor
        return self.new(dtype, tensor.device).copy_(tensor)


def with_dense_steps(x: Tensor, constant: bool) -> tuple[Tensor, Layout]:
    """x, copied where the neurons of a step are scattered, and the layout of one step.

    Args:
        x: [N, ...] if ``constant``, else [T, N, ...].
    """
    first = 0 if constant else 1
    if not _is_dense(x.shape[first:], x.stride()[first:]):
        x = x.contiguous()
    return x, Layout(tuple(x.shape[first:]), tuple(x.stride()[first:]))


def _is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True
