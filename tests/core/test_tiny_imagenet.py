"""Tiny ImageNet from an archive that the tests write in the public layout."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spikeport.core import SpikeportError
from spikeport.core.data import ImageData, load_dataset

#: WordNet numbers as wnids.txt has them, unsorted, with the grey level of their images.
CLASSES = {"n02124075": 200, "n01443537": 100, "n04067472": 20}
WORDS = {
    "n01443537": "goldfish, Carassius auratus",
    "n02124075": "Egyptian cat",
    "n04067472": "reel",
    "n00001740": "entity",
}


def jpeg(file: Path, level: int, size: tuple[int, int] = (64, 64), mode: str = "RGB") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (level, level, level) if mode == "RGB" else level).save(file, "JPEG")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "tiny-imagenet-200"
    for name, level in CLASSES.items():
        for k in range(3):
            jpeg(root / f"train/{name}/images/{name}_{k}.JPEG", level, mode="L" if k == 1 else "RGB")
        (root / f"train/{name}/{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t63\t63\n")
    lines = [f"val_{k}.JPEG\t{name}\t0\t0\t63\t63\n" for k, name in enumerate([*CLASSES, "n01443537"])]
    for k, name in enumerate([*CLASSES, "n01443537"]):
        jpeg(root / f"val/images/val_{k}.JPEG", CLASSES[name])
    (root / "val/val_annotations.txt").write_text("".join(lines))
    jpeg(root / "test/images/test_0.JPEG", 0)
    (root / "wnids.txt").write_text("\n".join(CLASSES) + "\n")
    (root / "words.txt").write_text("".join(f"{name}\t{words}\n" for name, words in WORDS.items()))
    return root


def load(root: Path) -> ImageData:
    return load_dataset("tiny-imagenet", root.parent)


def test_the_public_layout_is_read_with_the_validation_set_as_test_set(root):
    data = load(root)
    assert data.image_shape == (3, 64, 64)
    assert data.class_names == ("goldfish", "Egyptian cat", "reel")
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert data.test_labels.tolist() == [1, 0, 2, 0]
    assert [int(image.float().mean().round()) for image in data.train_images] == [100] * 3 + [200] * 3 + [20] * 3
    assert [int(image.float().mean().round()) for image in data.test_images] == [200, 100, 20, 100]


def test_the_pixels_are_decoded_once(root, monkeypatch):
    first = load(root)
    monkeypatch.setattr(Image, "open", None)
    again = load(root)
    assert again.train_images.equal(first.train_images)
    assert again.test_images.equal(first.test_images)


def test_a_folder_that_cannot_be_written_is_read_all_the_same(root, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(np, "save", refuse)
    assert len(load(root).train_images) == 9
    assert not list(root.glob("*.npy"))


def test_pixels_kept_of_other_files_or_damaged_are_not_used(root):
    load(root)
    (root / "val/images/val_3.JPEG").unlink()
    jpeg(root / "val/images/val_3.JPEG", 100, mode="L")  # of another size in bytes
    for kept in root.glob("*.npy"):
        kept.write_bytes(kept.read_bytes()[:-1000])
    assert [int(image.float().mean().round()) for image in load(root).test_images] == [200, 100, 20, 100]


def lines_of(file, change):
    file.write_text("\n".join(change(file.read_text().splitlines())) + "\n")


@pytest.mark.parametrize(
    ("message", "damage"),
    [
        ("wnids.txt: no such file; --data names", lambda root: (root / "wnids.txt").unlink()),
        ("words.txt: no such file", lambda root: (root / "words.txt").unlink()),
        ("wnids.txt: names no class", lambda root: (root / "wnids.txt").write_text("\n")),
        ("words.txt: not readable", lambda root: (root / "words.txt").write_bytes(b"\xff\xfe")),
        ("words.txt: does not say what n01443537 is", lambda root: (root / "words.txt").write_text("n1\tcat\n")),
        (
            "n04067472: 2 images, where other classes have 3; unpack the archive again",
            lambda root: (root / "train/n04067472/images/n04067472_1.JPEG").unlink(),
        ),
        (
            "n04067472: 0 images, where other classes have 3",
            lambda root: (root / "train/n04067472/images").rename(root / "elsewhere"),
        ),
        ("val_annotations.txt: no such file", lambda root: (root / "val/val_annotations.txt").unlink()),
        ("val_2.JPEG: no such file", lambda root: (root / "val/images/val_2.JPEG").unlink()),
        (
            "val_0.JPEG is of class 'n9'",
            lambda root: (root / "val/val_annotations.txt").write_text("val_0.JPEG\tn9\t0\n"),
        ),
        ("val_0.JPEG is of class ''", lambda root: (root / "val/val_annotations.txt").write_text("val_0.JPEG\n")),
        (
            "val_annotations.txt: has a line for 3 of 4 images; unpack the archive again",
            lambda root: lines_of(root / "val/val_annotations.txt", lambda lines: lines[:-1]),
        ),
        (
            "val_annotations.txt: names val_0.JPEG twice",
            lambda root: lines_of(root / "val/val_annotations.txt", lambda lines: lines + lines[:1]),
        ),
        ("wnids.txt: names n.* twice", lambda root: lines_of(root / "wnids.txt", lambda lines: lines * 2)),
        ("the test part holds zero images", lambda root: (root / "val/val_annotations.txt").write_text("")),
        ("val_1.JPEG: 32x64 pixels; .* are 64x64", lambda root: jpeg(root / "val/images/val_1.JPEG", 0, (32, 64))),
        ("val_1.JPEG: not a whole JPEG", lambda root: (root / "val/images/val_1.JPEG").write_bytes(b"\xff\xd8text")),
    ],
)
def test_a_missing_or_partial_archive_is_refused_by_name(root, message, damage):
    damage(root)
    with pytest.raises(SpikeportError, match=message):
        load(root)
