"""A file is replaced whole or not at all."""

import errno
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from spikeport.core import SpikeportError
from spikeport.core.files import read_json, reading_archive, refuse_existing, replacing, write_json, write_text


def test_a_file_is_written_with_the_folders_it_needs(tmp_path):
    write_text(tmp_path / "a/b/file.txt", "new")
    assert (tmp_path / "a/b/file.txt").read_text() == "new"
    assert [p.name for p in (tmp_path / "a/b").iterdir()] == ["file.txt"]


def test_a_new_file_has_the_permissions_of_any_other(tmp_path):
    write_text(tmp_path / "ours", "")
    (tmp_path / "theirs").write_text("")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


def test_a_device_or_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SpikeportError, match="pipe: a device or a pipe, so it is not replaced; name a file"):
        write_text(tmp_path / "pipe", "")
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    assert (tmp_path / "pipe").is_fifo()


def fail_while_writing(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        fail_while_writing(tmp_path / "file")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "old")]


def test_an_error_while_writing_leaves_no_new_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fail_while_writing(tmp_path / "a/b/file")
    assert not list(tmp_path.iterdir())


def test_the_temporary_file_keeps_the_suffix_that_writers_look_at(tmp_path):
    with replacing(tmp_path / "record.npz") as temporary:
        assert temporary.suffix == ".npz"


def test_json_survives_and_damaged_json_is_named(tmp_path):
    write_json(tmp_path / "value.json", {"name": "Grüße", "list": [1, None, 0.1]})
    assert read_json(tmp_path / "value.json") == {"name": "Grüße", "list": [1, None, 0.1]}
    (tmp_path / "value.json").write_text("{")
    with pytest.raises(SpikeportError, match="value.json: not readable as JSON"):
        read_json(tmp_path / "value.json")
    (tmp_path / "value.json").write_text("[" * 100_000)
    with pytest.raises(SpikeportError, match="value.json: not readable as JSON .nested too deeply"):
        read_json(tmp_path / "value.json")
    with pytest.raises(SpikeportError, match="none.json: no such file"):
        read_json(tmp_path / "none.json")


def read_array(path: Path) -> np.ndarray:
    with reading_archive(path, "a record", "simulate again") as archive:
        return np.asarray(archive["a"])


def test_any_damage_to_an_archive_is_one_error_that_names_it(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    whole = (tmp_path / "a.npz").read_bytes()
    for place in range(0, 8 * len(whole), 5):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        (tmp_path / "a.npz").write_bytes(changed)
        with suppress(SpikeportError):
            read_array(tmp_path / "a.npz")
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(SpikeportError, match=r"a\.npy: not a record \(no whole \.npz archive\); simulate again"):
        read_array(tmp_path / "a.npy")
    np.savez(tmp_path / "b.npz", b=np.zeros(3))
    with pytest.raises(SpikeportError, match=r"not a record \(a is missing\)"):
        read_array(tmp_path / "b.npz")


def test_existing_output_is_refused_unless_asked(tmp_path):
    with pytest.raises(SpikeportError, match="already exists; pass --overwrite"):
        refuse_existing(tmp_path, overwrite=False)
    refuse_existing(tmp_path, overwrite=True)
    refuse_existing(tmp_path / "new", overwrite=False)


@pytest.mark.parametrize("name", ["file/new", "file/new/deeper"])
def test_output_below_a_file_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpikeportError, match="cannot be made: .*/file is a file; name another folder"):
        refuse_existing(tmp_path / name, overwrite=True)


def fails() -> None:
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError as error:
        raise RuntimeError("file write failed") from error


def test_a_full_disk_is_told_whatever_a_library_says_of_it(tmp_path):
    with pytest.raises(OSError, match="No space left") as found, replacing(tmp_path / "new" / "a.bin"):
        fails()
    assert (found.value.errno, found.value.filename) == (errno.ENOSPC, str(tmp_path / "new" / "a.bin"))
    assert not list(tmp_path.iterdir())
