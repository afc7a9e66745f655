"""CIFAR-10 from its public python archive, without letting a pickle run anything.

Source and layout: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikeport.core.data.images import ImageData, statistics
from spikeport.core.errors import SpikeportError

FOLDER = "cifar-10-batches-py"
CLASSES = 10


class _BatchUnpickler(pickle.Unpickler):
    """Admits only what a CIFAR batch holds: containers, numbers, bytes, and numpy arrays."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)  # type: ignore[no-any-return]
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.ndarray.__reduce__(np.empty(0))[0]  # type: ignore[return-value]
        raise SpikeportError(f"the pickle asks for {module}.{name}, which no CIFAR batch holds; it was not run")


def load_batch(path: Path) -> dict[bytes, Any]:
    """The dictionary of one pickled file. Raises SpikeportError where it is missing, damaged or hostile."""
    try:
        with path.open("rb") as file:
            value = _BatchUnpickler(file, encoding="bytes").load()
    except SpikeportError as error:
        raise SpikeportError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise SpikeportError(f"{path}: no such file; --data names the folder that holds {FOLDER}") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise SpikeportError(f"{path}: damaged or truncated ({error}); unpack the archive again") from None
    if not isinstance(value, dict):
        raise SpikeportError(f"{path}: holds a {type(value).__name__}, not a CIFAR dictionary")
    return value


def _images(path: Path) -> tuple[Tensor, Tensor]:
    batch = load_batch(path)
    data, labels = batch.get(b"data"), batch.get(b"labels")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise SpikeportError(f"{path}: b'data' is not uint8 [N, 3072]; unpack the archive again")
    if not isinstance(labels, list) or len(labels) != len(data):
        raise SpikeportError(f"{path}: b'labels' does not name one class per image")
    if any(not isinstance(label, int) or not 0 <= label < CLASSES for label in labels):
        raise SpikeportError(f"{path}: a label lies outside 0..{CLASSES - 1}")
    return torch.from_numpy(data.copy()).view(-1, 3, 32, 32), torch.tensor(labels)


def load_cifar10(folder: Path | None) -> ImageData:
    """50,000 training and 10,000 test images, 3x32x32.

    Args:
        folder: the folder ``cifar-10-batches-py`` or the one that holds it.
    """
    if folder is None:
        raise SpikeportError(f"cifar10 is not embedded; --data DIR names the folder that holds {FOLDER}")
    root = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    parts = [_images(root / f"data_batch_{k}") for k in range(1, 6)]
    train_images, train_labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    test_images, test_labels = _images(root / "test_batch")
    names = load_batch(root / "batches.meta").get(b"label_names")
    if not isinstance(names, list) or len(names) != CLASSES:
        raise SpikeportError(f"{root / 'batches.meta'}: b'label_names' does not name {CLASSES} classes")
    mean, std = statistics(train_images)
    return ImageData(
        name="cifar10",
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        mean=mean,
        std=std,
        class_names=tuple(name.decode() for name in names),
    )
