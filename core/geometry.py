"""Sizes and reach of convolutions and poolings."""

import numpy as np

Pair = tuple[int, int]


def pair(value: object) -> Pair:
    """(height, width) of an argument that may be one number for both."""
    height, width = np.broadcast_to(np.asarray(value, int), 2)
    return int(height), int(width)


def output_size(size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1)) -> Pair:
    """Height and width behind a convolution or pooling of a map of ``size`` (floor, as torch without ceil_mode)."""
    height, width = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    )
    return height, width


def ceil_adds(size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1)) -> bool:
    """Whether a pooling of a map of ``size`` has more outputs with ceil_mode: windows that reach beyond the padding.

    As torch has it, a window begins within the map or the padding before it.
    """
    outputs = output_size(size, kernel, stride, padding, dilation)
    axes = zip(size, kernel, stride, padding, dilation, outputs, strict=True)
    return any((out - 1) * s + d * (k - 1) + 1 < n + 2 * p and out * s < n + p for n, k, s, p, d, out in axes)


def taps(out: int, kernel: int, stride: int, padding: int, dilation: int) -> np.ndarray:
    """Along one axis: the input that each tap of each output meets, int64 [out, kernel]; outside the map on padding."""
    return np.arange(out)[:, None] * stride + np.arange(kernel) * dilation - padding


def fan_out(size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1)) -> np.ndarray:
    """How many output positions each input position reaches, int64 [H, W]; taps on padding do not count."""
    outputs = output_size(size, kernel, stride, padding, dilation)
    axes = []
    for n, out, *axis in zip(size, outputs, kernel, stride, padding, dilation, strict=True):
        met = taps(out, *axis)
        axes.append(np.bincount(met[(met >= 0) & (met < n)], minlength=n))
    return np.outer(*axes)
