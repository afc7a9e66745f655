"""The digits, and CIFAR-10 from an archive that the tests write in the public layout."""

import contextlib
import io
import os
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spikeport.core import SpikeportError
from spikeport.core.data import load_dataset, split
from spikeport.core.data.cifar import CIFAR10, load_batch

FOLDER = CIFAR10.folder

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PER_BATCH = 20


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2's str, as the public archive has them."""

    dispatch: ClassVar[dict] = dict(pickle._Pickler.dispatch)

    def save_str(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)
        self.memoize(value)

    dispatch[bytes] = save_str


def public(value: Any) -> bytes:
    """As Python 2 and its numpy wrote the public archive."""
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def modern(value: Any) -> bytes:
    """As Python 3 and numpy 2 write the same dictionary in the same protocol."""
    return pickle.dumps(value, protocol=2)


def batch(seed: int) -> dict[bytes, Any]:
    rng = np.random.default_rng(seed)
    return {
        b"batch_label": b"training batch",
        b"labels": [int(label) for label in rng.integers(0, 10, PER_BATCH)],
        b"data": rng.integers(0, 256, (PER_BATCH, 3072), dtype=np.uint8),
        b"filenames": [b"image_%d.png" % k for k in range(PER_BATCH)],
    }


BATCHES = {f"data_batch_{k}": batch(k) for k in range(1, 6)} | {"test_batch": batch(6)}
META = {b"num_cases_per_batch": PER_BATCH, b"label_names": [name.encode() for name in NAMES], b"num_vis": 3072}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The folder that ``--data`` names; its files may be replaced by a test."""
    folder = tmp_path / FOLDER
    folder.mkdir()
    for name, value in (BATCHES | {"batches.meta": META}).items():
        (folder / name).write_bytes(public(value))
    return tmp_path


def test_digits_are_all_there_at_16x16():
    data = load_dataset("digits")
    assert len(data.train_images) + len(data.test_images) == 1797
    assert data.image_shape == (1, 16, 16)
    assert data.class_names == tuple("0123456789")


def test_digits_are_split_by_class():
    data = load_dataset("digits")
    train, test = torch.bincount(data.train_labels), torch.bincount(data.test_labels)
    assert len(data.test_images) == 360
    assert ((train + test) * 0.2 - test).abs().max() < 1


def test_digits_are_the_same_at_every_call():
    a, b = load_dataset("digits"), load_dataset("digits")
    assert torch.equal(a.train_images, b.train_images)
    assert torch.equal(a.test_labels, b.test_labels)


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    data = load_dataset("digits")
    images = torch.cat([data.train_images, data.test_images]).double()
    labels = torch.cat([data.train_labels, data.test_labels])
    bunch = load_digits()
    assert torch.equal(labels.bincount(), torch.from_numpy(bunch.target).bincount())
    # enlarging twofold keeps the mean of every 2x2 block but for rounding and the blending of neighbours
    assert float(images.mean() / 255) == pytest.approx(bunch.images.mean() / 16, rel=0.01)


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_normalised_training_images_have_mean_0_and_deviation_1(name, archive):
    data = load_dataset(name, None if name == "digits" else archive)
    x = data.normalise(data.train_images).transpose(0, 1).flatten(1).double()
    assert x.mean(1).abs().max() < 1e-5
    torch.testing.assert_close(x.std(1), torch.ones(len(x), dtype=torch.float64), rtol=1e-5, atol=0)


@given(count=st.integers(1, 500), share=st.floats(0.01, 0.99))
def test_split_parts_everything_by_the_share_or_says_that_it_cannot(count, share):
    if not 0 < round(share * count) < count:
        with pytest.raises(SpikeportError, match=rf"of {count} images leaves {round(share * count)} of them"):
            split(count, share)
        return
    training, validation = split(count, share)
    assert torch.cat([training, validation]).sort().values.tolist() == list(range(count))
    assert len(validation) == round(share * count)


def test_who_holds_out_less_is_still_judged_by_images_that_no_run_before_was_trained_on():
    assert set(split(100, 0.05)[1].tolist()) < set(split(100, 0.2)[1].tolist())


@pytest.mark.parametrize("write", [public, modern])
@pytest.mark.parametrize("inside", [True, False])
def test_cifar10_reads_the_public_layout(archive, write, inside):
    for name, value in (BATCHES | {"batches.meta": META}).items():
        (archive / FOLDER / name).write_bytes(write(value))
    data = load_dataset("cifar10", archive / FOLDER if inside else archive)
    assert data.train_images.shape == (5 * PER_BATCH, 3, 32, 32)
    assert data.test_images.shape == (PER_BATCH, 3, 32, 32)
    assert data.class_names == tuple(NAMES)
    expected = np.concatenate([BATCHES[f"data_batch_{k}"][b"data"] for k in range(1, 6)])
    assert np.array_equal(data.train_images.reshape(-1, 3072).numpy(), expected)
    assert data.test_labels.tolist() == BATCHES["test_batch"][b"labels"]


def test_both_module_names_of_numpy_occur_in_these_files():
    assert b"numpy.core.multiarray" in public(BATCHES["test_batch"])
    assert b"numpy._core.multiarray" in modern(BATCHES["test_batch"])


def test_cifar10_planes_are_red_green_blue_in_rows(archive):
    value = batch(0)
    value[b"data"][0] = 0
    value[b"data"][0, 1024 + 32 * 2 + 5] = 200  # green, row 2, column 5
    (archive / FOLDER / "test_batch").write_bytes(public(value))
    image = load_dataset("cifar10", archive).test_images[0]
    assert image.nonzero().tolist() == [[1, 2, 5]]


class Call:
    """Pickles as the call of a function, which an ordinary unpickler makes."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


def pointers() -> Call:
    """An array of object pointers that numpy would build from raw bytes."""
    dtype = Call(np.dtype, "O", False, True, state=(3, "|", None, None, None, 8, 8, 0))
    return Call(np.ndarray, (4,), dtype, b"A" * 32)


HOSTILE = {
    "os.system": lambda touched: Call(os.system, f"touch {touched}"),
    "eval": lambda touched: Call(eval, f"open({str(touched)!r}, 'w')"),
    "exec": lambda touched: Call(exec, f"open({str(touched)!r}, 'w')"),
    "nested": lambda touched: {b"labels": [[Call(os.system, f"touch {touched}")]]},
    "load inside": lambda touched: Call(pickle.loads, pickle.dumps(Call(os.system, f"touch {touched}"))),
    "getattr": lambda touched: Call(getattr, Path(touched), "touch"),
    "pointers": lambda touched: {b"data": pointers()},
}


def test_a_memo_index_of_4_billion_takes_no_memory(tmp_path):
    file = tmp_path / "greedy"
    file.write_bytes(b"\x80\x02}r\xff\xff\xff\xff.")
    assert load_batch(file) == {}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_and_never_runs(archive, tmp_path, name, protocol):
    touched = tmp_path / "touched"
    file = archive / FOLDER / "data_batch_3"
    file.write_bytes(pickle.dumps(HOSTILE[name](touched), protocol=protocol))
    with pytest.raises(SpikeportError, match="data_batch_3: the pickle (asks for|holds)"):
        load_dataset("cifar10", archive)
    assert not touched.exists()


def test_the_hostile_pickles_would_run_elsewhere(tmp_path):
    touched = tmp_path / "touched"
    pickle.loads(pickle.dumps(HOSTILE["os.system"](touched)))
    assert touched.exists()


@given(data=st.data())
def test_a_truncated_file_is_refused(tmp_path_factory, data):
    whole = public(BATCHES["test_batch"])
    file = tmp_path_factory.getbasetemp() / "truncated"
    file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    # cut within a name, a pickle asks for half of it
    with pytest.raises(SpikeportError, match=r"truncated: (damaged or truncated \(.+\)|the pickle asks for)"):
        load_batch(file)


@given(data=st.data())
def test_a_changed_byte_ends_in_no_other_error(tmp_path_factory, data):
    whole = bytearray(public(BATCHES["test_batch"] | {b"data": np.zeros((2, 3072), np.uint8)}))
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "flipped"
    file.write_bytes(whole)
    with contextlib.suppress(SpikeportError):
        assert set(map(type, load_batch(file))) <= {bytes}


@pytest.mark.parametrize("name", [*BATCHES, "batches.meta"])
def test_a_missing_file_is_named(archive, name):
    (archive / FOLDER / name).unlink()
    with pytest.raises(SpikeportError, match=f"{name}: no such file; --data names the folder"):
        load_dataset("cifar10", archive)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("'f4'.*CIFAR images are 'u1'", {b"data": np.zeros((PER_BATCH, 3072), np.float32)}),
        (r"not uint8 \[N, 3072\]", {b"data": np.zeros((PER_BATCH, 3000), np.uint8)}),
        (r"not uint8 \[N, 3072\]", {b"data": np.zeros((PER_BATCH, 3, 32, 32), np.uint8)}),
        (r"not uint8 \[N, 3072\]", {b"data": [1, 2, 3]}),
        ("one class per image", {b"labels": [0] * (PER_BATCH - 1)}),
        ("one class per image", {b"labels": 3}),
        ("outside 0..9", {b"labels": [10] + [0] * (PER_BATCH - 1)}),
        ("outside 0..9", {b"labels": [-1] + [0] * (PER_BATCH - 1)}),
        ("outside 0..9", {b"labels": [b"cat"] * PER_BATCH}),
    ],
)
def test_a_batch_with_other_content_is_refused(archive, message, change):
    (archive / FOLDER / "data_batch_2").write_bytes(public(BATCHES["data_batch_2"] | change))
    with pytest.raises(SpikeportError, match=f"data_batch_2: .*{message}"):
        load_dataset("cifar10", archive)


@pytest.mark.parametrize("names", [[b"cat"], [1] * 10, "text", None])
def test_class_names_that_are_none_are_refused(archive, names):
    (archive / FOLDER / "batches.meta").write_bytes(public(META | {b"label_names": names}))
    with pytest.raises(SpikeportError, match="does not name 10 classes"):
        load_dataset("cifar10", archive)


def test_a_pickle_that_is_no_dictionary_is_refused(archive):
    (archive / FOLDER / "test_batch").write_bytes(public([1, 2]))
    with pytest.raises(SpikeportError, match="holds a list, not a CIFAR dictionary"):
        load_dataset("cifar10", archive)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny-imagenet"])
def test_a_data_set_without_a_folder_asks_for_it(name):
    with pytest.raises(SpikeportError, match=f"--data DIR .*`spikeport datasets --download {name} --data DIR`"):
        load_dataset(name)


def test_training_batches_of_unequal_size_are_refused(archive):
    short = {b"labels": [0] * 3, b"data": np.zeros((3, 3072), np.uint8)}
    (archive / FOLDER / "data_batch_4").write_bytes(public(BATCHES["data_batch_4"] | short))
    with pytest.raises(SpikeportError, match=r"hold \[20, 20, 20, 3, 20\] images, not equally many"):
        load_dataset("cifar10", archive)


FINE = [f"fine {k}" for k in range(100)]


@pytest.fixture
def archive100(tmp_path: Path) -> Path:
    """CIFAR-100 in the public layout."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, count in (("train", 50), ("test", 20)):
        value = {
            b"filenames": [b"image.png"] * count,
            b"batch_label": b"batch 1 of 1",
            b"fine_labels": [99 - k for k in range(count)],
            b"coarse_labels": [k % 20 for k in range(count)],
            b"data": np.full((count, 3072), count, np.uint8),
        }
        (folder / name).write_bytes(public(value))
    meta = {b"fine_label_names": [n.encode() for n in FINE], b"coarse_label_names": [b"coarse"] * 20}
    (folder / "meta").write_bytes(public(meta))
    return tmp_path


@pytest.mark.parametrize("inside", [True, False])
def test_cifar100_reads_the_public_layout(archive100, inside):
    data = load_dataset("cifar100", archive100 / "cifar-100-python" if inside else archive100)
    assert data.train_images.shape == (50, 3, 32, 32)
    assert data.test_images.unique().tolist() == [20]
    assert data.test_labels.tolist() == [99 - k for k in range(20)]
    assert data.class_names == tuple(FINE)


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_missing_or_hostile_file_of_cifar100_is_named(archive100, tmp_path, name):
    file = archive100 / "cifar-100-python" / name
    file.write_bytes(pickle.dumps(Call(os.system, f"touch {tmp_path / 'touched'}"), protocol=2))
    with pytest.raises(SpikeportError, match=f"{name}: the pickle asks for"):
        load_dataset("cifar100", archive100)
    file.unlink()
    with pytest.raises(SpikeportError, match=f"{name}: no such file"):
        load_dataset("cifar100", archive100)
    assert not (tmp_path / "touched").exists()


def test_a_label_of_cifar100_beyond_its_classes_is_refused(archive100):
    value = {b"fine_labels": [100], b"data": np.zeros((1, 3072), np.uint8)}
    (archive100 / "cifar-100-python" / "test").write_bytes(public(value))
    with pytest.raises(SpikeportError, match=r"test: a label lies outside 0..99"):
        load_dataset("cifar100", archive100)


def test_an_unknown_data_set_is_refused_with_the_known_ones():
    with pytest.raises(SpikeportError, match="unknown data set 'mnist'; available: digits, cifar10"):
        load_dataset("mnist")


def test_zero_images_are_refused(archive):
    empty = {b"data": np.zeros((0, 3072), np.uint8), b"labels": []}
    (archive / FOLDER / "test_batch").write_bytes(public(BATCHES["test_batch"] | empty))
    with pytest.raises(SpikeportError, match="the test part holds zero images"):
        load_dataset("cifar10", archive)
