"""Fetching archives from a server, whole and broken, and unpacking good and hostile ones."""

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from spikeport.core import SpikeportError
from spikeport.core.data import download_dataset
from spikeport.core.data.archives import Archive, fetch

FILES = {"images/a.bin": bytes(range(256)) * 40, "names.txt": b"a"}


def tar(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return buffer.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def inside(folder: str) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in FILES.items()}


class Server(ThreadingHTTPServer):
    """Serves one file; breaks off after ``limit`` bytes; ``ranges`` is what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.limit, self.resumes = b"", 10**9, True
        self.ranges: list[str | None] = []

    def archive(self, content: bytes, name: str = "set.tar.gz") -> Archive:
        self.content = content
        return Archive(f"http://127.0.0.1:{self.server_port}/{name}", hashlib.md5(content).hexdigest(), "set")


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.resumes else 0
        if start >= len(self.server.content):
            self.send_error(416 if start else 404)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.server.content) - start))
        self.end_headers()
        self.wfile.write(self.server.content[start : min(len(self.server.content), self.server.limit)])

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield running
        running.shutdown()


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(("pack", "name"), [(tar, "set.tar.gz"), (zipped, "set.zip")])
def test_an_archive_is_fetched_checked_and_unpacked(server, tmp_path, pack, name):
    seen: list[tuple[int, int]] = []
    archive = server.archive(pack(inside("set")), name)
    root = fetch(archive, tmp_path / "data", lambda *p: seen.append(p))
    assert root == tmp_path / "data" / "set"
    assert content(root) == FILES
    assert seen[-1] == (len(server.content), len(server.content))
    assert sorted(p.name for p in root.parent.iterdir()) == sorted(["set", name])
    assert fetch(archive, tmp_path / "data") == root  # and not again
    assert server.ranges == [None]


@pytest.mark.parametrize("resumes", [True, False])
def test_a_broken_download_is_gone_on_with(server, tmp_path, resumes):
    archive = server.archive(tar(inside("set")))
    server.limit, server.resumes = 100, resumes
    with pytest.raises(SpikeportError, match=f"broke after 100 of {len(server.content)} bytes; run this again"):
        fetch(archive, tmp_path)
    assert not (tmp_path / "set").exists()
    server.limit = 10**9
    assert content(fetch(archive, tmp_path)) == FILES
    assert server.ranges == [None, "bytes=100-"]


def test_a_wrong_checksum_is_refused_and_nothing_unpacked(server, tmp_path):
    archive = server.archive(tar(inside("set")))
    server.content = tar({"set/other": b""})
    with pytest.raises(SpikeportError, match=f"its MD5 sum is .*, its publisher's {archive.md5}; delete it"):
        fetch(archive, tmp_path)
    assert not (tmp_path / "set").exists()


def test_a_python_that_cannot_unpack_safely_does_not(server, tmp_path, monkeypatch):
    archive = server.archive(tar(inside("set")))
    monkeypatch.delattr("tarfile.data_filter")
    with pytest.raises(SpikeportError, match=r"needs Python 3.11.4 or newer; unpack it into .* by hand"):
        fetch(archive, tmp_path)
    assert not (tmp_path / "set").exists()


def test_an_archive_put_there_by_hand_needs_no_network(server, tmp_path):
    archive = server.archive(tar(inside("set")))
    (tmp_path / "set.tar.gz").write_bytes(server.content)
    assert content(fetch(archive, tmp_path)) == FILES
    assert server.ranges == []


def test_without_a_network_the_way_around_is_told(tmp_path):
    archive = Archive("http://127.0.0.1:9/set.tar.gz", "0" * 32, "set")  # the discard port: nobody listens
    with pytest.raises(
        SpikeportError, match=r"cannot be reached \(.*\); run this with a network, or put the file, .*set.tar.gz"
    ):
        fetch(archive, tmp_path)


def test_a_file_that_is_gone_is_told_with_the_server_s_answer(server, tmp_path):
    with pytest.raises(SpikeportError, match="the server answers 404 .*or put the file"):
        fetch(server.archive(b""), tmp_path)


@pytest.mark.parametrize(
    ("message", "packed"),
    [
        ("outside the destination", tar({"../escaped": b"x"})),
        ("holds no folder set", tar({"/tmp/spikeport-escaped": b"x"})),  # its slash is taken away
        ("link to", tar(inside("set"), {"set/link": "../../escaped"})),
        ("'../escaped' lies outside its folder", zipped({"../escaped": b"x"} | inside("set"))),
        ("'/tmp/spikeport-escaped' lies outside", zipped({"/tmp/spikeport-escaped": b"x"})),
        ("holds no folder set", tar(inside("other"))),
        ("damaged", tar(inside("set"))[:200]),
        ("damaged", zipped(inside("set"))[:-40]),
        ("damaged", b"no archive"),
    ],
)
def test_a_bad_archive_leaves_nothing_behind(server, tmp_path, message, packed):
    archive = server.archive(packed)
    into = tmp_path / "deep" / "data"
    into.mkdir(parents=True)
    (into / "set.tar.gz").write_bytes(packed)
    with pytest.raises(SpikeportError, match=f"set.tar.gz: .*({message})"):
        fetch(archive, into)
    assert set(content(tmp_path)) == {"deep/data/set.tar.gz"}
    assert not Path("/tmp/spikeport-escaped").exists()


@pytest.mark.parametrize(
    ("message", "name", "folder"),
    [
        ("unknown data set 'mnist'", "mnist", Path("x")),
        ("digits has no public archive", "digits", Path("x")),
        ("--data DIR says where to unpack cifar10", "cifar10", None),
    ],
)
def test_what_cannot_be_downloaded_is_refused(message, name, folder):
    with pytest.raises(SpikeportError, match=message):
        download_dataset(name, folder)
