"""The public archives of data sets: fetched with their checksum, unpacked without leaving their folder."""

import hashlib
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from spikeport.core.errors import SpikeportError
from spikeport.core.progress import Progress, silent

CHUNK = 1 << 20
TIMEOUT_S = 60


@dataclass(frozen=True)
class Archive:
    """Where an archive lies, the MD5 sum its publisher gives, and the folder it unpacks to."""

    url: str
    md5: str
    folder: str

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


def root_of(archive: Archive, data_set: str, folder: Path | None) -> Path:
    """The unpacked folder: ``folder``, or what it holds. Raises SpikeportError where no folder is named."""
    if folder is None:
        raise SpikeportError(
            f"{data_set} is not embedded; --data DIR (in a study --dataset {data_set}=DIR) names the folder that holds "
            f"{archive.folder}, and "
            f"`spikeport datasets --download {data_set} --data DIR` puts it there"
        )
    return folder / archive.folder if (folder / archive.folder).is_dir() else folder


def fetch(archive: Archive, into: Path, progress: Progress = silent) -> Path:
    """Downloads (if it is not there), checks and unpacks an archive; returns the unpacked folder.

    A download that broke off is gone on with. ``progress`` is told (bytes done, bytes in all).

    Raises:
        SpikeportError: no network, an interrupted download, a wrong checksum, or an archive that is damaged or would
            write outside its folder.
    """
    target, file = into / archive.folder, into / archive.name
    if target.is_dir():
        return target
    into.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        _download(archive.url, file, progress)
    found = _md5(file)
    if found != archive.md5:
        raise SpikeportError(f"{file}: its MD5 sum is {found}, its publisher's {archive.md5}; delete it and try again")
    _unpack(file, archive.folder, into)
    return target


def _download(url: str, file: Path, progress: Progress) -> None:
    part = file.with_name(file.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    elsewhere = f"or put the file, from wherever it can be had, at {file}"
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            if answer.status != 206:  # the server sends all of it
                have = 0
            total = have + int(answer.headers.get("Content-Length") or 0)
            with part.open("ab" if have else "wb") as out:
                while chunk := answer.read(CHUNK):
                    out.write(chunk)
                    have += len(chunk)
                    progress(have, max(have, total))
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to send: what is there is not its beginning
            part.unlink()
        raise SpikeportError(f"{url}: the server answers {error.code} {error.reason}; try again, {elsewhere}") from None
    except (urllib.error.URLError, HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise SpikeportError(f"{url} cannot be reached ({reason}); run this with a network, {elsewhere}") from None
    if have < total:
        raise SpikeportError(f"{url}: the connection broke after {have} of {total} bytes; run this again to go on")
    part.replace(file)


def _md5(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _unpack(file: Path, folder: str, into: Path) -> None:
    """Unpacks into a folder beside, and moves that into place once it is whole."""
    if not hasattr(tarfile, "data_filter"):
        raise SpikeportError(f"{file}: unpacking it safely needs Python 3.11.4 or newer; unpack it into {into} by hand")
    with tempfile.TemporaryDirectory(dir=into, prefix=".unpacking-") as name:
        beside = Path(name).resolve()
        try:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    outside = [n for n in archive.namelist() if not (beside / n).resolve().is_relative_to(beside)]
                    if outside:
                        raise SpikeportError(f"{file}: its member {outside[0]!r} lies outside its folder; not unpacked")
                    archive.extractall(beside)
            else:
                with tarfile.open(file) as opened:
                    opened.extractall(beside, filter="data")  # refuses what leaves the folder, links too
        except tarfile.FilterError as error:
            raise SpikeportError(f"{file}: {error}; not unpacked") from None
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise SpikeportError(f"{file}: damaged ({error}); delete it and fetch it again") from None
        if not (beside / folder).is_dir():
            raise SpikeportError(f"{file}: holds no folder {folder}; fetch it again")
        (beside / folder).rename(into / folder)
