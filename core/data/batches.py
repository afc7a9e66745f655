"""The batches of an epoch, made ready beside the training."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from spikeport.core.data.augment import augment
from spikeport.core.data.images import ImageData

Item = TypeVar("Item")


@dataclass(frozen=True)
class Batch:
    """This process's part of a batch of ``total`` images: uint8 [N, C, H, W] and int64 [N]."""

    images: Tensor
    labels: Tensor
    total: int


def in_batches(order: Tensor, size: int) -> list[Tensor]:
    """``size`` at a time; one left over goes with those before it, for BatchNorm cannot normalise a single value."""
    parts = list(order.split(size))
    if size > 1 and len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def batches(
    data: ImageData,
    order: Tensor,
    size: int,
    names: tuple[str, ...],
    generator: torch.Generator,
    share: Callable[[int], slice] = slice,
    pinned: bool = False,
) -> Iterator[Batch]:
    """The training images in ``order``, ``size`` at a time, augmented; the same for the same generator.

    Args:
        share: which of so many images are this process's; by default all of them.
        pinned: in memory that a GPU can fetch by itself.
    """
    for chosen in in_batches(order, size):
        part = share(len(chosen))
        own = chosen[part]
        images = augment(data.train_images[own], names, generator, data.mean, part, len(chosen))
        labels = data.train_labels[own]
        if pinned:
            images, labels = images.pin_memory(), labels.pin_memory()
        yield Batch(images, labels, len(chosen))


def prefetched(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each made by a second thread while the one before is worked on."""
    source, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, source, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, source, end)
            yield item  # type: ignore[misc]
