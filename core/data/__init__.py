"""Data sets: images as they lie in their public archives, with the statistics a network needs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from spikeport.core.data.archives import Archive, fetch
from spikeport.core.data.cifar import CIFAR10, CIFAR100, load_cifar10, load_cifar100
from spikeport.core.data.digits import load_digits
from spikeport.core.data.images import ImageData
from spikeport.core.data.own import load_folder, load_npz
from spikeport.core.data.tiny_imagenet import TINY_IMAGENET, load_tiny_imagenet
from spikeport.core.errors import SpikeportError
from spikeport.core.progress import Progress, silent

__all__ = ["DATASETS", "ImageData", "download_dataset", "load_dataset", "split", "subset"]


@dataclass(frozen=True)
class Entry:
    """A data set by name: its loader (given the path of ``--data``), a line of help, its public archive."""

    load: Callable[[Path | None], ImageData]
    help: str
    archive: Archive | None = None


DATASETS: dict[str, Entry] = {
    "digits": Entry(load_digits, "1,797 handwritten digits (scikit-learn), 16x16, 1 channel; embedded"),
    "cifar10": Entry(load_cifar10, "60,000 colour images, 32x32, 10 classes", CIFAR10),
    "cifar100": Entry(load_cifar100, "60,000 colour images, 32x32, 100 classes", CIFAR100),
    "tiny-imagenet": Entry(
        load_tiny_imagenet,
        "110,000 colour images, 64x64, 200 classes; its validation set is the test set",
        TINY_IMAGENET,
    ),
    "npz": Entry(
        load_npz, "images of your own, --data FILE.npz: train_images, train_labels, test_images, test_labels (uint8)"
    ),
    "folder": Entry(load_folder, "images of your own, --data DIR with train/CLASS/*.png and test/CLASS/*.png"),
}


def load_dataset(name: str, folder: Path | str | None = None) -> ImageData:
    """The data set ``name``, from its ``folder`` (or file) where it is not embedded.

    What is behind a colon in the name tells one's own data sets apart: it comes of their path.

    Raises:
        SpikeportError: an unknown name, a missing folder or a damaged file.
    """
    return _entry(name).load(Path(folder) if folder else None)


def download_dataset(name: str, folder: Path | None, progress: Progress = silent) -> Path:
    """Fetches the archive of a data set into ``folder``; returns what ``--data`` takes (see ``archives.fetch``)."""
    archive = _entry(name).archive
    if archive is None:
        raise SpikeportError(f"{name} has no public archive; there is nothing to download")
    if folder is None:
        raise SpikeportError(f"--data DIR says where to unpack {name}")
    return fetch(archive, folder, progress)


def _entry(name: str) -> Entry:
    name = name.partition(":")[0]
    if name not in DATASETS:
        raise SpikeportError(f"unknown data set {name!r}; available: {', '.join(DATASETS)}")
    return DATASETS[name]


def subset(data: ImageData, count: int | None) -> ImageData:
    """``data`` with only ``count`` of its training images, the first ones of every class in equal numbers.

    The statistics stay those of the whole. Raises SpikeportError where there are not so many.
    """
    if count is None:
        return data
    if not 1 <= count <= len(data.train_images):
        raise SpikeportError(f"train_images is {count}; {data.name} offers 1 to {len(data.train_images)}")
    labels = data.train_labels
    in_class = torch.zeros_like(labels)
    for label in labels.unique():
        same = labels == label
        in_class[same] = torch.arange(int(same.sum()))
    chosen = in_class.argsort(stable=True)[:count].sort().values
    return replace(data, train_images=data.train_images[chosen], train_labels=labels[chosen])


def split(count: int, validation: float) -> tuple[Tensor, Tensor]:
    """Indices of the training and the validation part of ``count`` images.

    The same in every run, whatever its seed, as in the paper: a network that starts from another, or learns from it, is
    judged by images that neither was trained on. A smaller share is part of a larger one.

    Args:
        validation: the share of the images that is held out.

    Raises:
        SpikeportError: no image is left for one of the parts.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    held_out = round(count * validation)
    if not 0 < held_out < count:
        raise SpikeportError(f"validation {validation} of {count} images leaves {held_out} of them; take another share")
    return order[held_out:].sort().values, order[:held_out].sort().values
