"""Data sets: images as they lie in their public archives, with the statistics a network needs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spikeport.core.data.cifar import load_cifar10
from spikeport.core.data.digits import load_digits
from spikeport.core.data.images import ImageData
from spikeport.core.errors import SpikeportError

__all__ = ["DATASETS", "ImageData", "load_dataset", "split"]


@dataclass(frozen=True)
class Entry:
    """A data set by name: its loader (given the folder of ``--data``), and a line of help."""

    load: Callable[[Path | None], ImageData]
    help: str


DATASETS: dict[str, Entry] = {
    "digits": Entry(load_digits, "1,797 handwritten digits (scikit-learn), 16x16, 1 channel; embedded"),
    "cifar10": Entry(load_cifar10, "60,000 colour images, 32x32; --data names the folder of cifar-10-batches-py"),
}


def load_dataset(name: str, folder: Path | None = None) -> ImageData:
    """Raises SpikeportError for an unknown name, a missing folder or a damaged file."""
    if name not in DATASETS:
        raise SpikeportError(f"unknown data set {name!r}; available: {', '.join(DATASETS)}")
    return DATASETS[name].load(folder)


def split(count: int, seed: int, validation: float = 0.2) -> tuple[Tensor, Tensor]:
    """Indices of the training and the validation part of ``count`` images, drawn by ``seed``."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held_out = round(count * validation)
    return order[held_out:].sort().values, order[:held_out].sort().values
