"""Augmentation and the batches of an epoch."""

import pytest
import small_digits
import torch
from torch import Tensor

from spikeport.core import SpikeportError
from spikeport.core.data import ImageData, subset
from spikeport.core.data.augment import augment
from spikeport.core.data.batches import batches, in_batches, prefetched

MEAN = (0.2, 0.4, 0.6)


def pictures(count: int = 200, size: int = 16) -> Tensor:
    """Pixels between 1 and 255, so that black is always a border."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def changed(images: Tensor, *names: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return augment(images, names, generator, MEAN, slice(len(images)), len(images))


def test_a_flip_mirrors_about_half_of_the_images():
    images = pictures()
    flipped = changed(images, "flip")
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, images, strict=True)]
    assert all(m or torch.equal(a, b) for m, a, b in zip(mirrored, flipped, images, strict=True))
    assert 70 < sum(mirrored) < 130


def test_a_crop_moves_by_up_to_an_eighth_and_shows_black_beyond():
    images = pictures()
    cropped = changed(images, "crop")
    seen = set()
    for image, found in zip(images, cropped, strict=True):
        padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
        moves = [(y, x) for y in range(5) for x in range(5) if torch.equal(padded[:, y : y + 16, x : x + 16], found)]
        assert len(moves) == 1
        seen.add(moves[0])
    assert len(seen) == 25  # all of them occur among 200 images


def test_a_cutout_is_one_square_in_the_mean_colour():
    images = pictures()
    cut = changed(images, "cutout")
    full = 0
    for image, found in zip(images, cut, strict=True):
        hole = (found != image).any(0)
        rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        inside = found[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert inside.flatten(1).unique(dim=1).flatten().tolist() == [51, 102, 153]  # MEAN * 255
        assert min(inside.shape[1:]) >= 4
        assert max(inside.shape[1:]) <= 8  # half the side, or less at the border
        full += inside.shape[1:] == (8, 8)
    assert full > 40


@pytest.mark.parametrize("names", [("crop",), ("flip",), ("cutout",), ("crop", "flip", "cutout")])
def test_augmentation_follows_its_generator_alone(names):
    images = pictures(20)
    assert torch.equal(changed(images, *names), changed(images, *names))
    assert not torch.equal(changed(images, *names), changed(images, *names, seed=1))
    assert torch.equal(changed(images, *names), changed(images, *reversed(names)))
    assert torch.equal(images, pictures(20))  # in place it would spoil the data set


def test_an_image_is_changed_alike_however_its_batch_is_divided():
    images, names = pictures(11), ("crop", "flip", "cutout")
    parts = [
        augment(images[part], names, torch.Generator().manual_seed(0), MEAN, part, 11)
        for part in (slice(0, 4), slice(4, 4), slice(4, 11))
    ]
    assert torch.equal(torch.cat(parts), changed(images, *names))


def test_no_augmentation_leaves_the_images_alone():
    assert changed(pictures(3)).equal(pictures(3))


def test_batches_hold_the_images_in_order_and_their_labels():
    data = small_digits.load()
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    found = list(prefetched(batches(data, order, 50, (), torch.Generator())))
    assert [batch.total for batch in found] == [50, 50, 20]
    assert torch.equal(torch.cat([batch.images for batch in found]), data.train_images[order])
    assert torch.equal(torch.cat([batch.labels for batch in found]), data.train_labels[order])


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(8, 4, [4, 4]), (9, 4, [4, 5]), (10, 4, [4, 4, 2]), (3, 1, [1, 1, 1]), (1, 4, [1]), (3, 2, [3]), (5, 8, [5])],
)
def test_an_image_left_over_joins_those_before_it(count, size, sizes):
    order = torch.randperm(count)
    parts = in_batches(order, size)
    assert [len(part) for part in parts] == sizes
    assert torch.equal(torch.cat(parts), order)


def test_an_error_in_the_second_thread_reaches_the_first():
    def broken():
        yield 1
        raise SpikeportError("the disk is gone")

    items = prefetched(broken())
    assert next(items) == 1
    with pytest.raises(SpikeportError, match="the disk is gone"):
        next(items)


def test_a_subset_takes_the_first_of_every_class():
    images = torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1)
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 1])
    data = ImageData("toy", images, labels, images, labels, (0.0,), (1.0,), ("a", "b", "c"))
    small = subset(data, 7)
    assert small.train_images.flatten().tolist() == [0, 1, 2, 6, 7, 9, 10]
    assert small.train_labels.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert len(small.test_images) == 12
    assert subset(data, None) is data


@pytest.mark.parametrize("count", [0, 13])
def test_a_subset_that_is_too_small_or_too_large_is_refused(count):
    images, labels = torch.zeros(12, 1, 1, 1, dtype=torch.uint8), torch.zeros(12, dtype=torch.int64)
    data = ImageData("toy", images, labels, images, labels, (0.0,), (1.0,), ("a",))
    with pytest.raises(SpikeportError, match=f"train_images is {count}; toy offers 1 to 12"):
        subset(data, count)
