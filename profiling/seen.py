"""What is known of the tensors of a forward pass while it is counted: spikes, sums, and whose spikes they add up."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from spikeport.core.kernels import cpu

#: Names of torch's functions that add two maps, of those that keep every element, and of those that take a part.
ADDS = ("add", "add_", "__add__", "__iadd__", "__radd__")
KEEPS = ("channel_shuffle", "clone", "contiguous", "dropout", "flatten", "permute", "reshape", "transpose", "view")
CUTS = ("__getitem__", "chunk", "narrow", "split", "tensor_split")


class Added(NamedTuple):
    """Spikes that are in a tensor: the layer that fired them, in which of its steps, and which (all where None)."""

    layer: str
    steps: slice
    part: Tensor | None = None


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
        self._spikes, self._pixels, self._added = Kept(), Kept(), Kept()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        added = self._together(func, (*args, *(kwargs or {}).values()))  # before anything is written to
        out = func(*args, **(kwargs or {}))
        if func is torch.cat:
            self._joined(out, *args, **(kwargs or {}))
        if added:
            self._added[out] = added
        if func.__name__ in CUTS:
            self._cut(args[0], out if isinstance(out, (tuple, list)) else (out,))
        return out

    def _cut(self, whole: Any, parts: Sequence[Tensor]) -> None:
        added = self.added_up(whole)
        if len(added) == 1 and whole in self._spikes and self._spikes[whole].all():
            for part in parts:
                if len(part) == len(whole):
                    self.fires(part)
                    self._added[part] = [added[0]._replace(part=part)]

    def _together(self, func: Any, args: Any) -> list[Added]:
        """``added_up`` of what ``func`` will give."""
        if func is torch.cat:
            parts = next((given for given in args if isinstance(given, (list, tuple))), ())
        elif func.__name__ in ADDS and len(args) > 1 and args[0].shape == getattr(args[1], "shape", None):
            parts = args[:2]
        else:
            keeps = func.__name__ in KEEPS or (func.__name__ == "pad" and min(args[1]) >= 0)
            parts = args[:1] if keeps else ()
        return [of for part in parts for of in self.added_up(part)]

    def added_up(self, x: Any) -> list[Added]:
        """The spikes that are added up in ``x``, whatever else was added."""
        return self._added[x] if isinstance(x, Tensor) and x in self._added else []

    def fired_by(self, y: Tensor, name: str, steps: slice) -> None:
        """A layer fired ``y``, in these of its steps."""
        self._added[y] = [Added(name, steps)]

    def _joined(self, whole: Tensor, tensors: Sequence[Tensor], dim: int = 0, **_: Any) -> None:
        if dim == 1 and all(part in self._spikes and self._spikes[part].all() for part in tensors):
            self.fires(whole)
            self.running.append(("", True))  # what follows is our own work
            self._pixels[whole] = np.sum([self.pixels(part) for part in tensors], axis=0)
            self.running.pop()

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


def _spikes_only(x: Tensor, sums: bool) -> np.ndarray:
    """Whether each image of ``x`` holds only 0 and 1 (with ``sums``: only whole numbers from 0 on), bool [M]."""
    flat = x.flatten(1)
    # Only 0 and 1 are their own squares. Image by image, what is computed stays in the cache.
    binary = np.array([np.array_equal(image * image, image) for image in flat.numpy()])
    return ((flat == flat.trunc()) & (flat >= 0)).all(1).numpy() if sums and not binary.all() else binary


def over_channels(x: Tensor) -> np.ndarray:
    """Sums over the channels, float64 [M, H * W or 1]."""
    # As a product with ones: faster than a sum across the rows of a map.
    sums = x.new_ones(1, x.shape[1]) @ x.reshape(*x.shape[:2], -1)
    return sums[:, 0].double().numpy()
