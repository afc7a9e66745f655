"""CIFAR-10 and CIFAR-100 from their public python archives, without letting a pickle run anything.

Source and layout: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; the archives and their
MD5 sums: https://www.cs.toronto.edu/~kriz/cifar.html
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from spikeport.core.data.archives import Archive, root_of
from spikeport.core.data.images import ImageData, labelled
from spikeport.core.errors import SpikeportError, reason

CIFAR10 = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py"
)
CIFAR100 = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", "cifar-100-python"
)


class _Dtype:
    """Stands in for numpy.dtype: the only one a CIFAR batch holds is uint8."""

    def __init__(self, name: bytes | str, *flags: object) -> None:
        if name not in (b"u1", "u1"):
            raise SpikeportError(f"the pickle holds an array of {name!r}; CIFAR images are 'u1' (uint8)")

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment of a uint8: nothing to set."""


class _Array:
    """Stands in for numpy.ndarray, whose own unpickling lets a hostile file make arrays of pointers."""

    def __init__(self, *arguments: object) -> None:
        self.value = np.zeros(0, np.uint8)

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, bytes]) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype):
            raise ValueError("an array without dtype")
        self.value = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


def _encode(text: str, encoding: str) -> bytes:
    """Stands in for _codecs.encode, as which Python 3 writes bytes in protocol 2."""
    if encoding not in ("latin1", "latin-1"):
        raise SpikeportError(f"the pickle asks for the encoding {encoding!r}, which no CIFAR batch holds")
    return text.encode("latin-1")


class _BatchUnpickler(pickle._Unpickler):
    """Admits only what a CIFAR batch holds: containers, numbers, bytes, and arrays of uint8.

    The unpickler written in Python: the one in C lets one damaged index ask for 64 GB of memory.
    """

    allowed: ClassVar[dict[tuple[str, str], Callable[..., Any]]] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in self.allowed:
            raise SpikeportError(f"the pickle asks for {module}.{name}, which no CIFAR batch holds; it was not run")
        return self.allowed[module, name]


def load_batch(path: Path) -> dict[bytes, Any]:
    """The dictionary of one pickled file. Raises SpikeportError where it is missing, damaged or hostile."""
    try:
        with path.open("rb") as file:
            value = _BatchUnpickler(file, encoding="bytes").load()
    except SpikeportError as error:
        raise SpikeportError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise SpikeportError(
            f"{path}: no such file; --data names the folder of the unpacked archive (`spikeport datasets --help`)"
        ) from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise SpikeportError(f"{path}: damaged or truncated ({reason(error)}); unpack the archive again") from None
    if not isinstance(value, dict):
        raise SpikeportError(f"{path}: holds a {type(value).__name__}, not a CIFAR dictionary")
    return {key: item.value if isinstance(item, _Array) else item for key, item in value.items()}


def _images(path: Path, key: bytes, classes: int) -> tuple[Tensor, Tensor]:
    batch = load_batch(path)
    data, labels = batch.get(b"data"), batch.get(key)
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072:
        raise SpikeportError(f"{path}: b'data' is not uint8 [N, 3072], images of 3x32x32; unpack the archive again")
    if not isinstance(labels, list) or len(labels) != len(data):
        raise SpikeportError(f"{path}: {key!r} does not name one class per image")
    if any(not isinstance(label, int) or not 0 <= label < classes for label in labels):
        raise SpikeportError(f"{path}: a label lies outside 0..{classes - 1}")
    return torch.from_numpy(data.copy()).view(-1, 3, 32, 32), torch.tensor(labels)


def _names(path: Path, key: bytes, classes: int) -> tuple[str, ...]:
    names = load_batch(path).get(key)
    if not isinstance(names, list) or len(names) != classes or not all(isinstance(name, bytes) for name in names):
        raise SpikeportError(f"{path}: {key!r} does not name {classes} classes")
    return tuple(name.decode(errors="replace") for name in names)


def load_cifar10(folder: Path | None) -> ImageData:
    """50,000 training and 10,000 test images, 3x32x32, 10 classes.

    Args:
        folder: the folder ``cifar-10-batches-py`` or the one that holds it.
    """
    root = root_of(CIFAR10, "cifar10", folder)
    parts = [_images(root / f"data_batch_{k}", b"labels", 10) for k in range(1, 6)]
    sizes = [len(labels) for _, labels in parts]
    if len(set(sizes)) > 1:
        raise SpikeportError(f"{root}: data_batch_1..5 hold {sizes} images, not equally many; unpack the archive again")
    train_images, train_labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    test = _images(root / "test_batch", b"labels", 10)
    names = _names(root / "batches.meta", b"label_names", 10)
    return labelled("cifar10", (train_images, train_labels), test, names)


def load_cifar100(folder: Path | None) -> ImageData:
    """50,000 training and 10,000 test images, 3x32x32, the 100 fine classes.

    Args:
        folder: the folder ``cifar-100-python`` or the one that holds it.
    """
    root = root_of(CIFAR100, "cifar100", folder)
    train, test = (_images(root / part, b"fine_labels", 100) for part in ("train", "test"))
    return labelled("cifar100", train, test, _names(root / "meta", b"fine_label_names", 100))
