"""Tiny ImageNet from its public archive: 200 classes of ImageNet at 64x64.

Source and layout: the Stanford course CS231n, http://cs231n.stanford.edu/tiny-imagenet-200.zip; the MD5 sum is the
one under which the archive is generally known, its publisher gives none.
"""

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spikeport.core.data.archives import Archive, root_of
from spikeport.core.data.images import ImageData, labelled
from spikeport.core.errors import SpikeportError
from spikeport.core.files import replacing

TINY_IMAGENET = Archive(
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de", "tiny-imagenet-200"
)
SIZE = 64
AGAIN = "unpack the archive again"


def load_tiny_imagenet(folder: Path | None) -> ImageData:
    """100,000 training images; the 10,000 validation images are the test set, for the published one has no labels.

    Classes are numbered by their WordNet number. The decoded pixels are kept in a file beside the images (1.4 GB),
    where that folder can be written, and read from there, as needed, the next time.

    Args:
        folder: the folder ``tiny-imagenet-200`` or the one that holds it.
    """
    root = root_of(TINY_IMAGENET, "tiny-imagenet", folder)
    classes = sorted(_lines(root / "wnids.txt"))
    number = {name: k for k, name in enumerate(classes)}
    _require_once(classes, root / "wnids.txt")
    if not classes:
        raise SpikeportError(f"{root / 'wnids.txt'}: names no class; {AGAIN}")
    words = dict(line.split("\t", 1) for line in _lines(root / "words.txt") if "\t" in line)
    unnamed = [name for name in classes if name not in words]
    if unnamed:
        raise SpikeportError(f"{root / 'words.txt'}: does not say what {unnamed[0]} is; {AGAIN}")

    per_class = {name: sorted((root / "train" / name / "images").glob("*.JPEG")) for name in classes}
    counts = {name: len(files) for name, files in per_class.items()}
    most = max(counts.values())
    short = [name for name in classes if counts[name] < most or most == 0]
    if short:
        raise SpikeportError(
            f"{root / 'train' / short[0]}: {counts[short[0]]} images, where other classes have {most}; {AGAIN}"
        )
    train = [(file, number[name]) for name in classes for file in per_class[name]]

    annotations = root / "val" / "val_annotations.txt"
    test = []
    for line in _lines(annotations):
        image, name, *_ = [*line.split("\t"), ""]
        if name not in number:
            raise SpikeportError(f"{annotations}: {image} is of class {name!r}, which wnids.txt does not name; {AGAIN}")
        test.append((root / "val" / "images" / image, number[name]))
    _require_once([str(image.name) for image, _ in test], annotations)
    there = sum(1 for _ in (root / "val" / "images").glob("*.JPEG"))
    if test and there > len(test):
        raise SpikeportError(f"{annotations}: has a line for {len(test)} of {there} images; {AGAIN}")
    names = tuple(words[name].split(",")[0].strip() for name in classes)
    return labelled("tiny-imagenet", _part(train, root), _part(test, root), names)


def _require_once(names: list[str], file: Path) -> None:
    """Raises SpikeportError where a file names something twice."""
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        raise SpikeportError(f"{file}: names {twice} twice; {AGAIN}")


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise SpikeportError(
            f"{file}: no such file; --data names the folder of the unpacked archive (`spikeport datasets --help`)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpikeportError(f"{file}: not readable ({error}); {AGAIN}") from None


def _part(files: list[tuple[Path, int]], root: Path) -> tuple[Tensor, Tensor]:
    """uint8 images [N, 3, 64, 64] and their classes, from the pixels kept for exactly these files if any are."""
    labels = torch.tensor([label for _, label in files], dtype=torch.int64)
    listing = hashlib.sha256()
    for file, _ in files:
        try:
            listing.update(f"{file.relative_to(root)} {file.stat().st_size}\n".encode())
        except FileNotFoundError:
            raise SpikeportError(f"{file}: no such file; {AGAIN}") from None
    kept = root / f"spikeport-{listing.hexdigest()[:16]}.npy"
    shape = (len(files), 3, SIZE, SIZE)
    with suppress(OSError, ValueError, EOFError):  # not there, or not whole: decoded again
        pixels = np.load(kept, mmap_mode="c", allow_pickle=False)
        if pixels.shape == shape and pixels.dtype == np.uint8:
            return torch.from_numpy(pixels), labels
    pixels = np.empty(shape, np.uint8)
    with ThreadPoolExecutor() as threads:
        for k, image in enumerate(threads.map(_decoded, [file for file, _ in files])):
            pixels[k] = image
    with suppress(OSError), replacing(kept) as temporary:  # the folder may be read-only
        np.save(temporary, pixels)
    return torch.from_numpy(pixels), labels


def _decoded(file: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.size == (SIZE, SIZE):
                return np.asarray(image.convert("RGB")).transpose(2, 0, 1)  # some are grey
            found = "x".join(map(str, image.size))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SpikeportError(f"{file}: not a whole JPEG ({error}); {AGAIN}") from None
    raise SpikeportError(f"{file}: {found} pixels; the images of Tiny ImageNet are {SIZE}x{SIZE}")
