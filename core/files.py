"""Writing files so that a reader never meets half of one."""

import csv
import errno
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np

from spikeport.core.errors import SpikeportError, reason


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; renamed to it on success.

    On any error it is removed, with the folders that were made for it.

    Raises:
        SpikeportError: ``path`` is a device or a pipe, which a file must not replace.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():  # the system refuses a folder
        raise SpikeportError(f"{path}: a device or a pipe, so it is not replaced; name a file")
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: np.savez and torch.onnx look at it.
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    except OSError as error:  # names the temporary file
        raise OSError(error.errno, error.strerror, str(path)) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException as error:
        full = isinstance(error, Exception) and _is_full(path.parent, error)
        temporary.unlink(missing_ok=True)
        for folder in missing:
            with suppress(OSError):  # not empty: another file went there meanwhile
                folder.rmdir()
        if full:  # of which each library has its own word
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def _is_full(folder: Path, error: BaseException | None) -> bool:
    """Whether an error comes of a full disk, or the disk is full."""
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return shutil.disk_usage(folder).free == 0


def leftovers(path: Path) -> list[Path]:
    """What ``replacing(path)`` left where its process was killed."""
    return list(path.parent.glob(f".{path.stem}-{'?' * 8}{path.suffix}"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path | str, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path | str, rows: Iterable[Sequence[Any]]) -> None:
    """Writes lines of values; None is an empty one."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def write_json(path: Path | str, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_record(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """A JSON object that has ``keys``. Raises SpikeportError where the file holds something else."""
    value = read_json(path)
    missing = [key for key in keys if key not in value] if isinstance(value, dict) else list(keys)
    if missing:
        raise SpikeportError(f"{path}: damaged (it has no {missing[0]!r}); make it again with --overwrite")
    return value


def read_json(path: Path | str) -> Any:
    """Raises SpikeportError where the file is missing or is not JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpikeportError(f"{path}: no such file; the command that writes it makes it again") from None
    except RecursionError:
        raise SpikeportError(f"{path}: not readable as JSON (nested too deeply); write it again") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SpikeportError(f"{path}: not readable as JSON ({error}); write it again") from None


def tuples(value: dict[str, Any]) -> dict[str, Any]:
    """A dictionary out of JSON with its lists as the tuples they were."""
    return {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}


def write_archive(path: Path | str, header: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Writes an .npz file with a header of JSON values, under just the name it is given."""
    with replacing(path) as temporary, temporary.open("wb") as file:  # given a name, NumPy may add a suffix
        np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)


@contextmanager
def reading_archive(path: Path | str, what: str, remedy: str) -> Iterator[Any]:
    """Yields the .npz file at ``path``; whatever is raised while it is open becomes a SpikeportError that names it.

    Args:
        what: what the file should be, as "a spike record".
        remedy: the command that writes it again.
    """
    try:
        with Path(path).open("rb") as file:
            if not is_zipfile(file):  # which NumPy would take for an array, or for a pickle
                raise SpikeportError("no whole .npz archive")
            with np.load(file, allow_pickle=False) as archive:
                yield archive
    except FileNotFoundError:
        raise SpikeportError(f"{path}: no such file; {remedy}") from None
    except Exception as error:  # a damaged archive can raise nearly anything
        raise SpikeportError(f"{path}: not {what} ({reason(error)}); {remedy}") from None


def refuse_existing(path: Path | str, overwrite: bool, remedy: str = "pass --overwrite to replace it") -> None:
    """Raises SpikeportError where ``path`` exists and the user did not ask to replace it, or lies below a file.

    Called before the work whose result ``path`` is to hold.
    """
    if Path(path).exists() and not overwrite:
        raise SpikeportError(f"{path} already exists; {remedy}")
    require_folder(Path(path).parent)


def require_folder(folder: Path) -> None:
    """Raises SpikeportError where ``folder``, or one above it, is a file."""
    nearest = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if nearest.exists() and not nearest.is_dir():
        raise SpikeportError(f"{folder} cannot be made: {nearest} is a file; name another folder")
