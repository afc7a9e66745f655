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


def fan_out(size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1)) -> np.ndarray:
    """How many output positions each input position reaches, int64 [H, W]; taps on padding do not count."""
    outputs = output_size(size, kernel, stride, padding, dilation)
    axes = []
    for n, k, s, p, d, out in zip(size, kernel, stride, padding, dilation, outputs, strict=True):
        taps = np.arange(out)[:, None] * s + np.arange(k) * d - p
        axes.append(np.bincount(taps[(taps >= 0) & (taps < n)], minlength=n))
    return np.outer(*axes)
