"""Augmentation of whole batches, as tensor operations."""

import torch
from torch import Tensor
from torch.nn.functional import pad

#: crop: moved by up to an eighth of the side, black beyond the border (K. He et al., 2016: 4 pixels of 32);
#: flip: mirrored left to right, half of them; cutout: a square of half the side, cut at the border, in the mean
#: colour (T. DeVries, G. Taylor, 2017: 16 pixels of 32).
AUGMENTATIONS = ("crop", "flip", "cutout")


def augment(
    images: Tensor, names: tuple[str, ...], generator: torch.Generator, mean: tuple[float, ...], part: slice, total: int
) -> Tensor:
    """Changes each image in its own way, drawn from ``generator``.

    Args:
        images: uint8 [N, C, H, W]: the ``part`` of a batch of ``total``. Numbers are drawn for the whole batch, so that
            an image is changed alike however the batch is divided.
        names: some of ``AUGMENTATIONS``; their order does not matter.
        mean: mean colour of the data set, pixels in 0..1.
    """

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(high, (total, *shape), generator=generator)[part]

    height, width = images.shape[-2:]
    rows, columns = torch.arange(height).expand(len(images), -1), torch.arange(width).expand(len(images), -1)
    if "flip" in names:
        mirrored = draw(2, 1).bool()
        columns = torch.where(mirrored, columns.flip(1), columns)
    if "crop" in names:
        reach = max(1, height // 8)
        shift = draw(2 * reach + 1, 2)
        rows, columns = rows + shift[:, :1], columns + shift[:, 1:]
        images = pad(images, (reach,) * 4)
    if "crop" in names or "flip" in names:
        sample = torch.arange(len(images)).view(-1, 1, 1)
        images = images.permute(0, 2, 3, 1)[sample, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)
    if "cutout" in names:
        centre = draw(height, 1), draw(width, 1)
        side = height // 2
        beside = [torch.arange(n) - c + side // 2 for n, c in zip((height, width), centre, strict=True)]
        inside = [(place >= 0) & (place < side) for place in beside]
        hole = (inside[0].unsqueeze(2) & inside[1].unsqueeze(1)).unsqueeze(1)
        colour = (torch.tensor(mean) * 255).round().to(torch.uint8).view(1, -1, 1, 1)
        images = torch.where(hole, colour, images)
    return images
