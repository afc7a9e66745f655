"""The command line in this process, and two tiny trained and exported networks."""

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from filelock import FileLock

from spikeport.main import app


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


def run(*arguments: object) -> Outcome:
    """``spikeport arguments...`` as its entry point runs it: exit status, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    status: object = 0
    argv = ["spikeport", *map(str, arguments)]
    with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app()
        except SystemExit as end:
            status = end.code or 0
    assert isinstance(status, int)
    return Outcome(status, out.getvalue(), err.getvalue())


def succeed(*arguments: object) -> str:
    """The standard output of a command that has to end with status 0."""
    outcome = run(*arguments)
    assert outcome.status == 0, outcome.err
    return outcome.out


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, hidden ones too, with the content of files."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def refuse(folder: Path, *arguments: object) -> str:
    """The message of a command that has to end with status 2, one or two lines, and ``folder`` as it was."""
    before = tree(folder)
    outcome = run(*arguments)
    assert outcome.status == 2, outcome.out + outcome.err
    assert outcome.err.startswith("error: "), outcome.err
    assert outcome.err.count("\n") <= 2
    assert tree(folder) == before
    return outcome.err


@pytest.fixture
def spikeport() -> Callable[..., Outcome]:
    return run


@pytest.fixture(scope="session")
def works() -> Callable[..., str]:
    return succeed


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """Runs a command that must be refused and must leave ``tmp_path`` as it was; returns its message."""
    return lambda *arguments: refuse(tmp_path, *arguments)


@pytest.fixture(scope="session")
def walked(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Path]:
    """A folder with the runs cnn and snn, taken all the way to the report. Tests read it and do not write.

    One for all processes of a session: the first that needs it makes it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "walked"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            walk(folder)
    before = tree(folder)
    yield folder
    assert tree(folder) == before


def walk(folder: Path) -> None:
    cnn, snn = folder / "cnn", folder / "snn"
    small = ("--dataset", "digits", "--width", 0.125, "--epochs", 1, "--lr", 0.005)
    succeed("train", "--kind", "cnn", *small, "--out", cnn)
    succeed("train", "--kind", "snn", *small, "--out", snn)
    succeed("export", cnn, "--target", "onnx")
    succeed("export", snn, "--target", "nir")
    succeed("export", snn, "--target", "loihi")
    succeed("simulate", cnn, "--target", "onnx", "--samples", 16)
    succeed("simulate", snn, "--target", "loihi", "--engine", "fixed", "--samples", 8, "--rasters", 1)
    succeed("report", snn, "--against", cnn)
