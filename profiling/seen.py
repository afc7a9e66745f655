"""What is known of the tensors of a forward pass while it is counted: spikes, sums, and whose spikes they add up."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from spikeport.core.kernels import cpu

#: Names of torch's functions that join maps, that add two, that keep every element, and that take a part.
JOINS = ("cat", "concat", "concatenate")
ADDS = ("__add__", "__iadd__", "__isub__", "__radd__", "__rsub__", "__sub__", "add", "add_", "sub", "sub_", "subtract")
KEEPS = (
    *("channel_shuffle", "clone", "contiguous", "detach", "dropout", "flatten", "flip", "moveaxis", "movedim"),
    *("permute", "reshape", "reshape_as", "roll", "squeeze", "swapaxes", "swapdims", "transpose", "unflatten"),
    *("unsqueeze", "view", "view_as"),
)
CUTS = ("__getitem__", "chunk", "index_select", "narrow", "select", "split", "tensor_split", "unbind")


class Added(NamedTuple):
    """Spikes that are in a tensor: the layer that fired them, and how many in each image, float64 [M]."""

    layer: str
    fired: np.ndarray


class Kept:
    """A value for every tensor, as long as nothing is written to it."""

    def __init__(self) -> None:
        self._values = WeakIdKeyDictionary()

    def __contains__(self, x: Tensor) -> bool:
        return x in self._values and self._values[x][0] == x._version

    def __getitem__(self, x: Tensor) -> Any:
        return self._values[x][1]

    def __setitem__(self, x: Tensor, value: Any) -> None:
        self._values[x] = (x._version, value)

    def items(self) -> list[tuple[Tensor, Any]]:
        """What is left of them, in the order they came."""
        return [(x, value) for x, (version, value) in self._values.items() if x._version == version]


class Seen(TorchFunctionMode):
    """What is known of the tensors of a forward pass, each looked at once however many layers take it.

    Concatenations are followed: what is known of their parts need not be looked for again. So are additions: spikes
    that reach neurons through nothing else are synaptic operations. Parts are followed that are cut out of the spikes
    of one layer, not those of concatenations and sums.
    """

    def __init__(self, spiking: bool) -> None:
        super().__init__()
        self.spiking = spiking
        self.fired = False  # whether a LIF layer ran before
        self.running: list[tuple[str, bool]] = []  # the modules that run now, innermost last; whether each is counted
        self.given = Kept()  # what synaptic layers gave, and concatenations of it -> the layers' names
        self._spikes, self._pixels, self._added = Kept(), Kept(), Kept()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        added = self._together(func, (*args, *(kwargs or {}).values()))  # before anything is written to
        out = func(*args, **(kwargs or {}))
        if func.__name__ in JOINS:
            self._joined(out, *args, **(kwargs or {}))
        if added:
            self._added[out] = added
        if func.__name__ in CUTS:
            self._cut(args[0], out if isinstance(out, (tuple, list)) else (out,))
        return out

    def _cut(self, whole: Any, parts: Sequence[Tensor]) -> None:
        added = self.added_up(whole)
        if len(added) == 1 and len(whole) and self.ours(self.spikes, whole).all():
            for part in parts:
                if len(part) == len(whole):
                    self.fires(part)
                    self._added[part] = [Added(added[0].layer, self.ours(self.pixels, part).sum(1))]

    def _together(self, func: Any, args: Any) -> list[Added]:
        """``added_up`` of what ``func`` will give."""
        if func.__name__ in JOINS:
            parts = next((given for given in args if isinstance(given, (list, tuple))), ())
        elif func.__name__ in ADDS and len(args) > 1 and _summable(*args[:2]):
            parts = args[:2]
        else:
            keeps = func.__name__ in KEEPS or (func.__name__ == "pad" and min(args[1]) >= 0)
            parts = args[:1] if keeps else ()
        return [of for part in parts for of in self.added_up(part)]

    def added_up(self, x: Any) -> list[Added]:
        """The spikes that are added up in ``x``, whatever else was added."""
        return self._added[x] if isinstance(x, Tensor) and x in self._added else []

    def given_by(self, x: Tensor) -> tuple[str, ...]:
        """The synaptic layers whose outputs, side by side, are ``x``; none where it is something else."""
        if x in self.given:
            return tuple(self.given[x])
        place = (x.data_ptr(), x.shape, x.stride())  # what a function that copies nothing gave is another tensor
        same = (names for y, names in self.given.items() if (y.data_ptr(), y.shape, y.stride()) == place)
        return next(same, ())

    def fired_by(self, y: Tensor, name: str) -> None:
        """A layer fired ``y``."""
        self._added[y] = [Added(name, self.pixels(y).sum(1))]

    def _joined(self, whole: Tensor, tensors: Sequence[Tensor], dim: int = 0, **_: Any) -> None:
        if dim == 1 and all(part in self.given for part in tensors):
            self.given[whole] = sum((self.given[part] for part in tensors), ())
        if dim == 1 and all(part in self._spikes and self._spikes[part].all() for part in tensors):
            self.fires(whole)
            self._pixels[whole] = np.sum([self.ours(self.pixels, part) for part in tensors], axis=0)

    def ours(self, look: Callable[[Tensor], np.ndarray], x: Tensor) -> np.ndarray:
        """What ``look`` finds in ``x``, where the model's own functions run: this is no work of the model."""
        self.running.append(("", True))
        found = look(x)
        self.running.pop()
        return found

    def spikes(self, x: Tensor) -> np.ndarray:
        """Whether each image of ``x`` is spikes, bool [M]. In a CNN none is: it multiplies whatever its maps hold."""
        if x not in self._spikes:
            self._spikes[x] = _spikes_only(x, self.fired) if self.spiking else np.zeros(len(x), bool)
        return self._spikes[x]

    def pixels(self, x: Tensor) -> np.ndarray:
        """Sums over the channels, float64 [M, H * W or 1]; exact for whole numbers, whose sums stay far below 2^24."""
        if x not in self._pixels:
            self._pixels[x] = over_channels(x)
        return self._pixels[x]

    def neurons(self, y: Tensor) -> np.ndarray:
        """Sums over the images, int64 [C * H * W]; those over the channels are kept for the next who asks."""
        if not cpu.library() or y.dtype != torch.float32:
            return (y.new_ones(len(y)) @ y.flatten(1)).long().numpy()
        pixels, over_images = cpu.sums(y.reshape(*y.shape[:2], -1).contiguous())
        self._pixels[y] = pixels.double().numpy()
        return over_images.long().numpy()

    def fires(self, y: Tensor) -> None:
        """Neurons gave ``y``: spikes by construction."""
        self._spikes[y] = np.ones(len(y), bool)


def _summable(a: Any, b: Any) -> bool:
    """Maps of one shape; or maps and 0, where Python's sum() starts."""
    zero = any(isinstance(x, int) and x == 0 for x in (a, b))
    return zero or getattr(a, "shape", None) == getattr(b, "shape", None)


def _spikes_only(x: Tensor, sums: bool) -> np.ndarray:
    """Whether each image of ``x`` holds only 0 and 1 (with ``sums``: only whole numbers from 0 on), bool [M]."""
    flat = x.flatten(1)
    # Only 0 and 1 are their own squares. Image by image, what is computed stays in the cache.
    binary = np.array([np.array_equal(image * image, image) for image in flat.numpy()])
    return ((flat == flat.trunc()) & (flat >= 0)).all(1).numpy() if sums and not binary.all() else binary


def over_channels(x: Tensor) -> np.ndarray:
    """Sums over the channels, float64 [M, H * W or 1]."""
    # As a product with ones: faster than a sum across the rows of a map.
    sums = x.new_ones(1, x.shape[1]) @ x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
    return sums[:, 0].double().numpy()
