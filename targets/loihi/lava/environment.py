"""Lava's own virtual environment: lava-nc is archived upstream and pinned to packages spikeport cannot live with."""

import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spikeport.core.errors import SpikeportError
from spikeport.core.files import read_json, write_json
from spikeport.targets.loihi.fixed import simulate_fixed
from spikeport.targets.loihi.lava.job import run_job
from spikeport.targets.loihi.lava.process import Worker
from spikeport.targets.loihi.program import INPUT, LoihiProgram, Population, Synapse
from spikeport.targets.record import differences

#: What is tested together. Installed with --no-deps: Lava's own pins (numpy < 2, torch 2.3, CUDA, OpenCV) do not
#: run on current Pythons and its simulator needs none of the rest.
REQUIREMENTS = {
    "lava-nc": "0.10.0",
    "lava-dl": "0.6.0",
    "numpy": "2.3.5",
    "scipy": "1.17.1",
    "networkx": "2.8.7",
    "asteval": "1.0.10",
    "h5py": "3.16.0",
}
#: Written first (unfinished) and last (finished), so that a folder is known to be ours and to be whole.
MARKER = "spikeport-lava.json"
REMEDY = "run `spikeport lava setup`"

Say = Callable[[str], None]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Status:
    """What `spikeport lava status` shows.

    Attributes:
        home: the folder of the environment.
        ready: whether it can run.
        python: version of its Python ("" where it is not ready).
        versions: package -> version (empty where it is not ready).
        problem: why it is not ready, and the remedy ("" where it is).
    """

    home: Path
    ready: bool
    python: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    problem: str = ""


def default_home() -> Path:
    """$SPIKEPORT_LAVA_HOME, else spikeport/lava in the user's cache."""
    if named := os.environ.get("SPIKEPORT_LAVA_HOME"):
        return Path(named).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(cache).expanduser() / "spikeport" / "lava").absolute()


def status(home: Path | str | None = None) -> Status:
    """Looks without running anything; never raises."""
    home = _home(home)
    if sys.platform != "linux":
        return Status(home, False, problem="Lava runs on Linux only; use the fixed engine")
    if not home.exists():
        return Status(home, False, problem=f"no Lava environment at {home}; {REMEDY}")
    try:
        marker = read_json(home / MARKER)
        complete, requirements, python = bool(marker["complete"]), marker["requirements"], str(marker["python"])
    except (SpikeportError, KeyError, TypeError):
        return Status(home, False, problem=f"{home} is no Lava environment; choose another SPIKEPORT_LAVA_HOME")
    if not complete:
        return Status(home, False, problem=f"the Lava environment at {home} is unfinished; {REMEDY}")
    if requirements != REQUIREMENTS:
        return Status(home, False, problem=f"the Lava environment at {home} has other versions; {REMEDY}")
    if not _interpreter(home).exists():
        return Status(home, False, problem=f"the Python of the Lava environment at {home} is gone; {REMEDY}")
    return Status(home, True, python, dict(requirements))


def require(home: Path | str | None = None) -> Path:
    """The interpreter of the environment. Raises SpikeportError with the remedy where there is none."""
    found = status(home)
    if not found.ready:
        raise SpikeportError(found.problem)
    return _interpreter(found.home)


def setup(home: Path | str | None = None, say: Say = log.info, overwrite: bool = False) -> Status:
    """Builds the environment where it is missing, unfinished or outdated, and runs a small network in it.

    Args:
        say: told each stage in one line.
        overwrite: build again what is ready.

    Raises:
        SpikeportError: not Linux, a folder that is not ours, a failing installation, or a Lava that computes
            something else than the fixed engine.
    """
    home = _home(home)
    if sys.platform != "linux":
        raise SpikeportError(f"Lava runs on Linux only, this is {platform.system()}; use the fixed engine")
    with _locked(home):
        if status(home).ready and not overwrite:
            return status(home)
        _clear(home)
        _mark(home, complete=False)
        say(f"creating a virtual environment in {home}")
        _run([sys.executable, "-m", "venv", str(home)], "install your Python's venv module (Debian: python3-venv)")
        say("installing lava-nc and what it needs")
        pins = [f"{name}=={version}" for name, version in REQUIREMENTS.items()]
        pip = [str(_interpreter(home)), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
        # Lava refuses Python 3.11 and newer by its metadata alone; one shim in the worker makes it run.
        _run([*pip, "--ignore-requires-python", "--no-deps", *pins], "check the network and the disk, then try again")
        # lava-dl's wheel installs 111 MB of its own tests as a top-level package: no use, and it shadows others.
        for tests in home.glob("lib/python*/site-packages/tests"):
            shutil.rmtree(tests)
        say("running a small network in it")
        _verify(_interpreter(home))
        _mark(home, complete=True)
    return status(home)


def _home(home: Path | str | None) -> Path:
    return (default_home() if home is None else Path(home).expanduser()).resolve()


def _interpreter(home: Path) -> Path:
    return home / "bin" / "python"


def _mark(home: Path, complete: bool) -> None:
    write_json(
        home / MARKER,
        {"complete": complete, "requirements": REQUIREMENTS, "python": platform.python_version()},
    )


def _clear(home: Path) -> None:
    """Removes an environment of ours; refuses to touch anything else."""
    if home.is_dir() and not any(home.iterdir()):
        return
    if (home / MARKER).is_file():
        shutil.rmtree(home)
    elif home.exists():
        raise SpikeportError(f"{home} exists and is no Lava environment; move it, or set SPIKEPORT_LAVA_HOME")


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Two set-ups of one home wait for each other. Locks the parent folder: the home itself comes and goes."""
    import fcntl  # only where there is Linux

    handle = -1
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(home.parent, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    except OSError as error:
        raise SpikeportError(f"cannot write {home} ({error}); free it, or set SPIKEPORT_LAVA_HOME") from None
    finally:
        if handle >= 0:
            os.close(handle)


def _run(command: list[str], remedy: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines() or [f"exit status {done.returncode}"]
        raise SpikeportError(f"building the Lava environment failed: {lines[-1].strip()}; {remedy}")


def _verify(python: Path) -> None:
    """Runs a small network in a worker of the new environment and compares it with the fixed engine."""
    program = _small_program()
    x = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2) - 4
    worker = Worker(python)
    try:
        record = run_job(worker, program, program.quantise(x), 0, "stock", 120)
    finally:
        worker.discard()
    if found := differences(simulate_fixed(program, x), record):
        raise SpikeportError(f"the new Lava environment computes wrongly: {found[0]}; report this")


def _small_program() -> LoihiProgram:
    common: dict[str, Any] = {"source": "", "du": 4095, "dv": 0, "bias_exp": 6, "scale": 1.0}
    first = Population("spikes", shape=(2, 2, 2), vth=3, bias_mant=np.array([1, 2], np.int32), depth=1, **common)
    nothing = np.zeros(1, np.int32)
    second = Population("output", shape=(1, 1, 1), vth=1 << 17, bias_mant=nothing, depth=2, spiking=False, **common)
    synapses = (
        Synapse("in", "", INPUT, "spikes", np.array([1, -1], np.int8).reshape(2, 1, 1, 1)),
        Synapse("out", "", "spikes", "output", np.arange(1, 9, dtype=np.int8).reshape(1, 2, 2, 2)),
    )
    return LoihiProgram(3, (1, 2, 2), 1.0, (first, second), synapses, "output")
