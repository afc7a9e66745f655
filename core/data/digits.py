"""The handwritten digits that scikit-learn ships: real, and no download."""

from pathlib import Path

import torch
from torch.nn.functional import interpolate

from spikeport.core.data.images import ImageData, labelled
from spikeport.core.errors import SpikeportError

SIZE = 16
TEST_SHARE = 0.2


def load_digits(folder: Path | None = None) -> ImageData:
    """1,797 digits, 8x8 in 17 grey levels, enlarged to 16x16 (bilinear); a fixed fifth per class is the test set.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998, as packaged by
    scikit-learn.

    Raises:
        SpikeportError: a folder is given.
    """
    if folder is not None:
        raise SpikeportError(f"digits is embedded, so {folder} is not read; leave out --data, or name another data set")
    from sklearn.datasets import load_digits as read
    from sklearn.model_selection import train_test_split

    bunch = read()
    small = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    images = (interpolate(small, SIZE, mode="bilinear", align_corners=False) * 255).round().to(torch.uint8)
    labels = torch.from_numpy(bunch.target).long()
    train, test = train_test_split(range(len(labels)), test_size=TEST_SHARE, random_state=0, stratify=bunch.target)
    names = tuple(str(d) for d in range(10))
    return labelled("digits", (images[train], labels[train]), (images[test], labels[test]), names)
