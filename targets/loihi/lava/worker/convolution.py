"""Exact integer convolution and fan-out in Lava's layout (width, height, channels)."""

from collections.abc import Callable

import numpy as np

Pair = tuple[int, int]


def exact_convolution(
    weight: np.ndarray, largest_input: int, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Makes a function from x (integers [W, H, C]) to the convolution with ``weight``, int64 [W', H', C'].

    Floating-point matrix products of integers are exact, in any order, while no sum can reach 2^24 (2^53 in
    double precision).

    Args:
        weight: Lava's order and orientation (a true convolution): int [out, kernel W, kernel H, in / groups].
        largest_input: bound of \\|x\\|.
    """
    flipped = weight[:, ::-1, ::-1]
    largest_sum = int(np.abs(flipped.astype(np.int64)).reshape(len(weight), -1).sum(1).max()) * largest_input
    kernel = flipped.astype(np.float32 if largest_sum < 1 << 24 else np.float64)
    depthwise = kernel.shape[3] == 1
    matrices = kernel.reshape(groups, len(kernel) // groups, -1).transpose(0, 2, 1).copy()

    def convolve(x: np.ndarray) -> np.ndarray:
        padded = np.pad(x.astype(kernel.dtype), [(padding[0],) * 2, (padding[1],) * 2, (0, 0)])
        patches = _patches(padded, kernel.shape[1:3], stride, dilation)
        if depthwise:
            products = _channel_by_channel(patches, kernel.reshape(groups, -1, *kernel.shape[1:3]))
        else:
            products = _group_by_group(patches, matrices)
        return products.astype(np.int64)

    return convolve


def _patches(padded: np.ndarray, kernel: Pair, stride: Pair, dilation: Pair) -> np.ndarray:
    """A view [W', H', C, kernel W, kernel H] of what each output position sees."""
    spans = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(0, 1))
    view: np.ndarray = windows[:: stride[0], :: stride[1], :, :: dilation[0], :: dilation[1]]
    return view


def _group_by_group(patches: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """One matrix product a group. matrices [groups, kernel W * kernel H * in / groups, out / groups]."""
    width, height, channels, *kernel = patches.shape
    groups, taps, _ = matrices.shape
    split = patches.reshape(width, height, groups, channels // groups, *kernel) if groups > 1 else patches[:, :, None]
    rows = split.transpose(2, 0, 1, 4, 5, 3).reshape(groups, width * height, taps)
    return (rows @ matrices).transpose(1, 0, 2).reshape(width, height, -1)


def _channel_by_channel(patches: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Depthwise: tap by tap, as matrix products of one column would be slow. kernel [C, multiplier, kW, kH]."""
    width, height, channels, *size = patches.shape
    out = np.zeros((width, height, channels, kernel.shape[1]), kernel.dtype)
    for i, j in np.ndindex(*size):
        out += patches[..., i, j, None] * kernel[..., i, j]
    return out.reshape(width, height, -1)


def fan_out(shape: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> np.ndarray:
    """Output positions that each input position reaches, padding excluded: int64 [W, H]."""
    width, height = (_reached(*axis) for axis in zip(shape, kernel, stride, padding, dilation, strict=True))
    return width[:, None] * height


def _reached(length: int, kernel: int, stride: int, padding: int, dilation: int) -> np.ndarray:
    reached = np.zeros(length + 2 * padding, np.int64)
    for start in range(0, length + 2 * padding - dilation * (kernel - 1), stride):
        reached[start : start + dilation * (kernel - 1) + 1 : dilation] += 1
    return reached[padding : padding + length]
