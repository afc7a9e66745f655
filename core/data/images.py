"""A labelled set of images in memory."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeport.core.errors import SpikeportError


@dataclass(frozen=True)
class ImageData:
    """Images as uint8 [N, C, H, W] in 0..255, labels as int64 [N].

    ``mean`` and ``std`` are per channel, of the training images scaled to 0..1.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        for part, images, labels in (
            ("training", self.train_images, self.train_labels),
            ("test", self.test_images, self.test_labels),
        ):
            if images.dtype != torch.uint8 or images.dim() != 4:
                raise SpikeportError(f"{self.name}: {part} images are {images.dtype} {list(images.shape)}")
            if len(images) == 0:
                raise SpikeportError(f"{self.name}: the {part} part holds zero images")
            if len(images) != len(labels):
                raise SpikeportError(f"{self.name}: {len(images)} {part} images but {len(labels)} labels")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    def normalise(self, images: Tensor) -> Tensor:
        return normalise(images, self.mean, self.std)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 [N, C, H, W] to float32 with mean 0 and deviation 1 per channel."""
    return (images.float() / 255 - _per_channel(mean, images.device)) / _per_channel(std, images.device)


@functools.lru_cache(maxsize=64)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Float32 [1, C, 1, 1]; kept, for a GPU would wait for every copy of them."""
    return torch.tensor(values).view(1, -1, 1, 1).to(device)


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images scaled to 0..1."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in images.unbind(1):  # counted, so that a gigabyte of pixels never becomes eight
        counts = sum(part.flatten().bincount(minlength=256) for part in channel.split(4096))
        assert isinstance(counts, Tensor)
        total = counts.sum()
        mean = (counts * values).sum() / total
        means.append(float(mean))
        deviations.append(float(((counts * (values - mean) ** 2).sum() / (total - 1)).sqrt()))
    return tuple(means), tuple(deviations)


def labelled(
    name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], class_names: tuple[str, ...]
) -> ImageData:
    """A data set from its two parts, (images, labels) each, with the statistics of the training images."""
    mean, std = statistics(train[0])
    return ImageData(name, *train, *test, mean, std, class_names)
