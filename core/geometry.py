"""Sizes and reach of convolutions and poolings."""

import numpy as np

Pair = tuple[int, int]
#: Channels, height, width.
Shape = tuple[int, int, int]


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


def conv_padding(padding: object, kernel: Pair, dilation: Pair) -> tuple[Pair, Pair]:
    """Zeros before and behind a map: of what torch calls "same", an odd one lies behind."""
    if padding != "same":
        before = (0, 0) if padding == "valid" else pair(padding)
        return before, before
    height, width = (d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
    return (height // 2, width // 2), (height - height // 2, width - width // 2)


def ceil_reach(size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1)) -> Pair:
    """How far the windows that ceil_mode adds to a pooling reach beyond the padding, down and right; 0: none are added.

    As torch has it, one is added where the last one leaves something over, if it begins within the map or the padding
    before it.
    """
    outputs = output_size(size, kernel, stride, padding, dilation)
    reach = []
    for n, k, s, p, d, out in zip(size, kernel, stride, padding, dilation, outputs, strict=True):
        window, whole = d * (k - 1) + 1, n + 2 * p
        added = (out - 1) * s + window < whole and out * s < n + p
        reach.append(out * s + window - whole if added else 0)
    return reach[0], reach[1]


def taps(out: int, kernel: int, stride: int, padding: int, dilation: int) -> np.ndarray:
    """Along one axis: the input that each tap of each output meets, int64 [out, kernel]; outside the map on padding."""
    return np.arange(out)[:, None] * stride + np.arange(kernel) * dilation - padding


def fan_out(
    size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1), outputs: Pair | None = None
) -> np.ndarray:
    """How many output positions each input position reaches, int64 [H, W]; taps on padding do not count.

    ``outputs``: how many there are, where some at the end reach beyond the padding (ceil_mode, "same").
    """
    outputs = outputs or output_size(size, kernel, stride, padding, dilation)
    axes = []
    for n, out, *axis in zip(size, outputs, kernel, stride, padding, dilation, strict=True):
        met = taps(out, *axis)
        axes.append(np.bincount(met[(met >= 0) & (met < n)], minlength=n))
    return np.outer(*axes)
