"""Images of the user's own: an .npz file, or folders of images by class."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spikeport.core.arrays import kind_of
from spikeport.core.data.images import ImageData, labelled
from spikeport.core.errors import SpikeportError, reason
from spikeport.core.files import reading_archive

NPZ = "numpy.savez(FILE, train_images=..., train_labels=..., test_images=..., test_labels=...) writes one"
LAYOUT = "--data DIR names the folder that holds train/CLASS/ and test/CLASS/"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


def load_npz(path: Path | None) -> ImageData:
    """An .npz file of ``train_images``, ``train_labels``, ``test_images``, ``test_labels``, perhaps ``class_names``.

    Images are uint8 [N, C, H, W] or [N, H, W], labels whole numbers [N] from 0. Nothing is unpickled.

    Raises:
        SpikeportError: a file that is none, or other arrays in it.
    """
    if path is None:
        raise SpikeportError(f"npz: --data FILE.npz names the file; {NPZ}")
    with reading_archive(path, "a data set", NPZ) as archive:
        count = len(archive["train_labels"])  # a class needs an image to learn from
        train, test = ((_images(archive, part), _labels(archive, part, count)) for part in ("train", "test"))
        classes = int(max(train[1].max(initial=-1), test[1].max(initial=-1))) + 1
        names = _names(archive["class_names"]) if "class_names" in archive.files else [str(k) for k in range(classes)]
        if len(names) < classes:
            raise SpikeportError(f"class_names has {len(names)} names, a label is {classes - 1}")
        if train[0].shape[1:] != test[0].shape[1:]:
            raise SpikeportError(f"train_images are {kind_of(train[0])}, test_images {kind_of(test[0])}")
    return _data(f"npz:{path.stem}", _tensors(*train), _tensors(*test), tuple(names), path)


def _images(archive: np.lib.npyio.NpzFile, part: str) -> np.ndarray:
    images: np.ndarray = archive[f"{part}_images"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise SpikeportError(
            f"{part}_images is {kind_of(images)}; expected uint8 [N, C, H, W] or [N, H, W], pixels from 0 to 255"
        )
    if not len(images):
        raise SpikeportError(f"{part}_images holds zero images")
    if images.ndim == 4 and images.shape[3] <= 4 < images.shape[1]:
        raise SpikeportError(f"{part}_images is {kind_of(images)}; channels come second: transpose(0, 3, 1, 2)")
    return images if images.ndim == 4 else images[:, None]


def _labels(archive: np.lib.npyio.NpzFile, part: str, count: int) -> np.ndarray:
    labels: np.ndarray = archive[f"{part}_labels"]
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or labels.min(initial=0) < 0:
        raise SpikeportError(f"{part}_labels is {kind_of(labels)}; expected whole numbers [N], none below 0")
    if labels.max(initial=0) >= max(count, 1):
        raise SpikeportError(
            f"{part}_labels holds {labels.max()}, and there are {count} training images; number the classes from 0 on"
        )
    return labels.astype(np.int64)


def _names(given: np.ndarray) -> list[str]:
    if given.ndim != 1 or given.dtype.kind not in "SU":
        raise SpikeportError(f"class_names is {kind_of(given)}; expected one text for each class")
    names = [name.decode() if isinstance(name, bytes) else str(name) for name in given.tolist()]
    if "" in names or len(set(names)) < len(names):
        raise SpikeportError(f"class_names is {names}; expected another name for each class")
    return names


def load_folder(path: Path | None) -> ImageData:
    """Images as ``train/CLASS/NAME.png`` and ``test/CLASS/NAME.png`` (also .jpg, .bmp), all of one size, 8 bits.

    The classes are the folders of ``train``, by name. One channel where the first image is grey, else three. A camera's
    note on how an image is turned is heeded. Names that begin with a dot are left out.

    Raises:
        SpikeportError: a folder without images, an image that is damaged, of another size or depth, or transparent, or
            what is no image.
    """
    if path is None:
        raise SpikeportError(f"folder: {LAYOUT}")
    classes = _folders(path / "train")
    unknown = [name for name in _folders(path / "test") if name not in classes]
    if unknown:
        raise SpikeportError(f"{path / 'test' / unknown[0]}: a class that {path / 'train'} does not have")
    files = {
        part: [(f, k) for k, name in enumerate(classes) for f in _files(path / part / name)]
        for part in ("train", "test")
    }
    for part, found in files.items():
        if not found:
            raise SpikeportError(f"{path / part}: no image ({', '.join(SUFFIXES)}) in its folders of classes")
    first = files["train"][0][0]
    like = _decoded(first, None, first)
    train, test = (
        _tensors(np.stack([_decoded(f, like, first) for f, _ in found]), np.array([k for _, k in found]))
        for found in files.values()
    )
    return _data(f"folder:{path.resolve().name}", train, test, tuple(classes), path)


def _folders(path: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise SpikeportError(f"{path}: not readable ({reason(error)}); {LAYOUT}") from None


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = sorted(f for f in folder.iterdir() if not f.name.startswith("."))
    for other in (f for f in files if f.suffix.lower() not in SUFFIXES):
        raise SpikeportError(f"{other}: not an image that is read here ({', '.join(SUFFIXES)}); convert or remove it")
    return files


def _decoded(file: Path, like: np.ndarray | None, first: Path) -> np.ndarray:
    """uint8 [C, H, W], of the shape of ``like``, the image ``first``, where that is known."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            deep = any(";16" in str(tile) for tile in opened.tile)  # Pillow keeps the upper 8 bits of each
            image = ImageOps.exif_transpose(opened)
            if deep or image.mode not in ("1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr"):
                depth = " in 16 bits" if deep and "16" not in image.mode else ""
                raise SpikeportError(f"{file}: pixels of the kind {image.mode}{depth}; images have 8 bits per channel")
            if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
                raise SpikeportError(f"{file}: transparent in places; put it on a background")
            grey = image.mode in ("1", "L", "LA")
            if like is not None and len(like) == 1 and not grey:
                raise SpikeportError(f"{file}: in colour, where {first} is grey; make all images alike")
            wanted = "L" if (grey if like is None else len(like) == 1) else "RGB"
            decoded = np.asarray(image.convert(wanted))
            pixels = decoded.reshape(*decoded.shape[:2], -1).transpose(2, 0, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SpikeportError(f"{file}: not a whole image ({reason(error)}); replace or remove it") from None
    if like is not None and pixels.shape != like.shape:
        found, wanted = ("x".join(map(str, shape[:0:-1])) for shape in (pixels.shape, like.shape))
        raise SpikeportError(f"{file}: {found} pixels, where {first} has {wanted}; make all of one size")
    return pixels


def _tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels)


def _data(
    name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], names: tuple[str, ...], path: Path
) -> ImageData:
    data = labelled(name, train, test, names)
    if len(names) < 2:
        raise SpikeportError(f"{path}: {len(names)} classes; a network needs at least 2 to tell apart")
    missing = [name for k, name in enumerate(names) if not (data.train_labels == k).any()]
    if missing:
        raise SpikeportError(f"{path}: no training image of class {missing[0]}")
    flat = [k for k, deviation in enumerate(data.std) if not deviation > 0]
    if flat:
        raise SpikeportError(f"{path}: channel {flat[0]} has one value in all training images; leave it out")
    return data
