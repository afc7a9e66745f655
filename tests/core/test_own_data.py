"""Images of the user's own: read as they are, or refused by name."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from spikeport import load_run, report, simulate, train
from spikeport.core import SpikeportError
from spikeport.core.config import TrainConfig
from spikeport.core.data import load_dataset
from spikeport.targets import compile

RNG = np.random.default_rng(0)


def arrays(count=12, shape=(3, 16, 16), classes=3):
    found = {}
    for part in ("train", "test"):
        found[f"{part}_images"] = RNG.integers(0, 256, (count, *shape), dtype=np.uint8)
        found[f"{part}_labels"] = np.arange(count) % classes
    return found


def npz(folder, **replaced):
    path = folder / "mine.npz"
    np.savez(path, **{k: v for k, v in (arrays() | replaced).items() if v is not None})
    return path


def pictures(folder, shape=(16, 16, 3), suffix="png"):
    """[(file, pixels, class)] of a folder with 2 classes, 4 images in each part."""
    found = []
    for part in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            for k in range(2):
                file = folder / part / name / f"{k}.{suffix}"
                file.parent.mkdir(parents=True, exist_ok=True)
                pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(file)
                found.append((part, pixels, number))
    return found


def test_an_npz_is_what_it_holds(tmp_path):
    given = arrays()
    path = npz(tmp_path, **given, class_names=np.array(["a", "b", "c", "never"])[:3])
    data = load_dataset("npz", path)
    for part in ("train", "test"):
        np.testing.assert_array_equal(getattr(data, f"{part}_images"), given[f"{part}_images"])
        np.testing.assert_array_equal(getattr(data, f"{part}_labels"), given[f"{part}_labels"])
    scaled = given["train_images"] / 255
    assert data.mean == pytest.approx(scaled.mean((0, 2, 3)))
    assert data.std == pytest.approx(scaled.std((0, 2, 3), ddof=1), rel=1e-3)
    assert (data.name, data.class_names) == ("npz:mine", ("a", "b", "c"))
    grey = {f"{part}_images": given[f"{part}_images"][:, 0] for part in ("train", "test")}
    assert load_dataset("npz", npz(tmp_path, **grey)).image_shape == (1, 16, 16)


@pytest.mark.parametrize(("shape", "suffix"), [((16, 16, 3), "png"), ((16, 16), "png"), ((8, 24, 3), "bmp")])
def test_a_folder_is_its_images(tmp_path, shape, suffix):
    given = pictures(tmp_path / "pets", shape, suffix)
    data = load_dataset("folder", tmp_path / "pets")
    assert (data.name, data.class_names) == ("folder:pets", ("cat", "dog"))
    for part, images, labels in (
        ("train", data.train_images, data.train_labels),
        ("test", data.test_images, data.test_labels),
    ):
        expected = [(np.atleast_3d(pixels).transpose(2, 0, 1), k) for p, pixels, k in given if p == part]
        np.testing.assert_array_equal(images, np.stack([pixels for pixels, _ in expected]))
        assert labels.tolist() == [k for _, k in expected]


def test_grey_and_opaque_images_go_among_coloured_ones(tmp_path):
    pictures(tmp_path)
    grey = RNG.integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "test/cat/0.png")
    opaque = np.concatenate([RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8), np.full((16, 16, 1), 255, np.uint8)], 2)
    Image.fromarray(opaque).save(tmp_path / "test/cat/1.png")
    images = load_dataset("folder", tmp_path).test_images
    np.testing.assert_array_equal(images[0], np.broadcast_to(grey, (3, 16, 16)))
    np.testing.assert_array_equal(images[1], opaque[..., :3].transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"train_labels": None}, "train_labels is missing"),
        ({"train_images": np.zeros((12, 3, 16, 16))}, r"train_images is float64 \[12, 3, 16, 16\]; expected uint8"),
        ({"train_images": np.zeros((12, 16, 16, 3), np.uint8)}, r"channels come second: transpose\(0, 3, 1, 2\)"),
        ({"test_images": np.zeros((12, 1, 16, 16), np.uint8)}, "test_images uint8"),
        ({"test_labels": np.full(12, 0.5)}, "test_labels is float64"),
        ({"test_labels": np.full(12, -1)}, "none below 0"),
        ({"test_labels": np.zeros(11, np.int64)}, "12 test images but 11 labels"),
        ({"test_labels": np.full(12, 7)}, "no training image of class 3"),
        (
            {"test_labels": np.full(12, 20_000_000)},
            "20000000, and there are 12 training images; number the classes",
        ),
        ({"train_labels": np.full(12, 2**64 - 1, np.uint64)}, "number the classes from 0 on"),
        ({"class_names": np.array([["a", "b", "c"]])}, "expected one text for each class"),
        ({"class_names": np.array(["a", "b", "a"])}, "expected another name for each class"),
        ({"train_images": np.zeros((12, 16, 16, 4), np.uint8)}, "channels come second"),
        ({"class_names": np.array(["a", "b"])}, "class_names has 2 names, a label is 2"),
        ({"class_names": np.array([None, 1, 2], object)}, "Object arrays cannot be loaded"),
        ({"train_images": np.zeros((12, 3, 16, 16), np.uint8)}, "channel 0 has one value in all training images"),
        ({"train_images": np.zeros((0, 3, 16, 16), np.uint8), "train_labels": np.zeros(0, int)}, "zero images"),
    ],
)
def test_other_arrays_are_refused(tmp_path, replaced, message):
    with pytest.raises(SpikeportError, match=message):
        load_dataset("npz", npz(tmp_path, **replaced))


def test_one_class_a_file_that_is_none_and_no_path_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    for match, name, path in (
        ("1 classes; a network needs at least 2", "npz", npz(tmp_path, **arrays(classes=1))),
        ("not a data set", "npz", tmp_path / "text.npz"),
        ("no such file; numpy.savez", "npz", tmp_path / "none.npz"),
        ("--data FILE.npz names the file", "npz", None),
        ("--data DIR names the folder", "folder", None),
        ("train: not readable .*--data DIR names the folder", "folder", tmp_path),
    ):
        with pytest.raises(SpikeportError, match=match):
            load_dataset(name, path)


def spoil(kind, folder):
    file = folder / "train/dog/1.png"
    if kind == "damaged":
        file.write_bytes(file.read_bytes()[:200])
    elif kind == "size":
        Image.fromarray(np.zeros((16, 17, 3), np.uint8)).save(file)
    elif kind == "deep":
        Image.fromarray(np.zeros((16, 16), np.uint16)).save(file)
    elif kind == "deep colour":
        file.write_bytes(deep_png(RNG.integers(0, 2**16, (16, 16, 3))))
    elif kind == "other":
        (folder / "train/dog/1.webp").write_bytes(b"")
    elif kind == "transparent":
        Image.fromarray(np.zeros((16, 16, 4), np.uint8)).save(file)
    elif kind == "colour":
        Image.fromarray(np.zeros((16, 16), np.uint8)).save(folder / "train/cat/0.png")
    elif kind == "empty":
        for part in ("cat", "dog"):
            for picture in (folder / "test" / part).iterdir():
                picture.unlink()
    else:
        (folder / "test/cow").mkdir()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("damaged", "1.png: not a whole image"),
        ("size", "1.png: 17x16 pixels, where .*0.png has 16x16"),
        ("deep", "1.png: pixels of the kind I;16; images have 8 bits"),
        ("deep colour", "1.png: pixels of the kind RGB in 16 bits; images have 8 bits"),
        ("other", "1.webp: not an image that is read here"),
        ("transparent", "1.png: transparent in places"),
        ("colour", "1.png: in colour, where .*0.png is grey"),
        ("empty", r"test: no image \(.png, .jpg"),
        ("unknown", "cow: a class that .*train does not have"),
    ],
)
def test_images_that_are_not_alike_are_named(tmp_path, kind, message):
    pictures(tmp_path)
    spoil(kind, tmp_path)
    with pytest.raises(SpikeportError, match=message):
        load_dataset("folder", tmp_path)


def test_names_may_be_bytes(tmp_path):
    assert load_dataset("npz", npz(tmp_path, class_names=np.array([b"a", b"b", b"c"]))).class_names == ("a", "b", "c")


def test_turned_and_hidden_images(tmp_path):
    pictures(tmp_path)
    for hidden in (".checkpoints/0.png", "cat/._0.png"):
        (tmp_path / "train" / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / hidden).write_bytes(b"")
    image = Image.fromarray(RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    image.save(tmp_path / "test/cat/0.png", exif=exif)
    data = load_dataset("folder", tmp_path)
    assert data.class_names == ("cat", "dog")
    turned = np.rot90(np.asarray(image), -1).transpose(2, 0, 1)
    np.testing.assert_array_equal(data.test_images[0], turned)


def test_images_too_small_for_the_network_are_refused_before_training(tmp_path):
    data = npz(tmp_path, **arrays(40, (3, 2, 16)))
    with pytest.raises(SpikeportError, match=r"squeezenet-p does not take images of \(3, 2, 16\)"):
        train(TrainConfig(dataset="npz", data=str(data), epochs=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_files_of_one_name_are_two_data_sets(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        data = npz(tmp_path / name, **arrays(40))
        config = TrainConfig(dataset="npz", data=str(data), epochs=1, width=0.125, kind="snn" if name == "a" else "cnn")
        train(config, tmp_path / "runs" / name)
    compile(tmp_path / "runs/a")
    simulate(tmp_path / "runs/a", samples=3)
    with pytest.raises(SpikeportError, match="the mean of its data is .*train the twins on the same data"):
        report(tmp_path / "runs/a", tmp_path / "runs/b")


def deep_png(pixels):
    """A PNG of 16 bits in colour, which Pillow reads but does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_network_of_ones_own_images_goes_the_whole_way(tmp_path):
    """Training, a run that finds its images again, Loihi, the report."""
    data = npz(tmp_path, **arrays(40))
    config = TrainConfig(dataset="npz", data=str(data), epochs=1, width=0.125, v_threshold=0.3)
    run = train(config, tmp_path / "run")
    x, labels = load_run(tmp_path / "run").samples(5)
    np.testing.assert_array_equal(labels, np.arange(5) % 3)
    expected = load_dataset("npz", data)
    np.testing.assert_array_equal(x, expected.normalise(expected.test_images[:5]))
    compile(run.path)
    simulate(run.path, samples=4)
    assert report(run.path).content["network"]["dataset"] == "npz:mine"
    other = arrays(40, (3, 8, 8))
    npz(tmp_path, **other)
    with pytest.raises(SpikeportError, match="trained with image_shape"):
        load_run(tmp_path / "run").samples(1)
