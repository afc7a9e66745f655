"""One training a run folder at a time."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from spikeport.core.distributed import first_process
from spikeport.core.errors import SpikeportError
from spikeport.core.files import require_folder


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Holds the lock of a run folder. Raises SpikeportError where another process trains into it, or it cannot be."""
    if not first_process():
        yield
        return
    if not out.resolve().name:
        raise SpikeportError(f"{out} is the root of the file system, which is no run folder; name a folder in it")
    require_folder(out)
    missing = [folder for folder in out.absolute().parents if not folder.exists()]
    file = _lock_file(out.resolve())  # one lock, whatever links lead there
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise SpikeportError(f"{out}: another process trains into it ({file}); wait, or name another folder") from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps what is open
            file.unlink()
        lock.release()
        for folder in missing:
            with suppress(OSError):  # not empty: the run is there
                folder.rmdir()


def _lock_file(out: Path) -> Path:
    """Beside the run folder, which is made after the first epoch; in it where its parent is read-only."""
    beside = out.with_name(f".{out.name}.lock")
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        beside.touch()
    except OSError as error:
        if not out.is_dir():
            raise SpikeportError(f"{out} cannot be made ({error.strerror}); name another folder") from None
        return out / ".lock"
    return beside
