"""Killed at random moments: a simulation ends, says so in one line, leaves nothing, and the next one works."""

import glob
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from programs import single

from spikeport.core.errors import SpikeportError
from spikeport.targets.loihi.fixed import simulate_fixed
from spikeport.targets.loihi.lava import simulate_lava
from spikeport.targets.loihi.lava.engine import shutdown
from spikeport.targets.loihi.lava.process import SHARED_MEMORY, session_members
from spikeport.targets.record import SpikeRecord, differences

pytestmark = pytest.mark.usefixtures("lava")

SEEDS = range(20) if os.environ.get("HYPOTHESIS_PROFILE") == "long" else range(0, 20, 5)
#: Seconds from the start of a simulation within which it is killed; about what it takes.
LIFE = 2.5
#: Seconds after which a simulation that lost a process must have hung.
HANG = 30

PROGRAM = single(np.full((2, 1, 2, 2), 90, np.int8), (1, 3, 3), time_steps=4)
X = np.ones((500, 1, 3, 3))


def simulation(folder: Path) -> None:
    """In a process of its own: writes a record or an error, then shows that the next simulation works."""
    tempfile.tempdir = str(folder)
    try:
        simulate_lava(PROGRAM, X).save(folder / "lava.npz")
    except SpikeportError as error:
        (folder / "error").write_text(str(error))
        next_works()
    shutdown()  # as at the end of any program; multiprocessing's children skip atexit


def next_works() -> None:
    assert differences(simulate_fixed(PROGRAM, X[:2]), simulate_lava(PROGRAM, X[:2])) == []


def workers(folder: Path) -> dict[int, str]:
    """Session and token of every worker started for ``folder``."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if "worker" in command and any(part.startswith(str(folder)) for part in command):
                    found[os.getsid(int(entry.name))] = command[command.index("worker") + 2]
    return found


def left_behind(folder: Path, known: dict[int, str]) -> list[object]:
    known = known | workers(folder)
    members = [pid for session in known for pid in session_members(session)]
    shared = [path for path in SHARED_MEMORY.iterdir() if any(token in path.name for token in known.values())]
    return [*members, *shared, *glob.glob(f"{folder}/spikeport-lava-*/*")]  # pathlib's raises where a folder goes


@pytest.fixture
def folder() -> Iterator[Path]:
    """As tmp_path, but short enough for the worker to take it for its own files."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_at_a_random_moment(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    kills_parent, moment = seed % 2 == 0, rng.uniform(0, LIFE)
    parent = multiprocessing.get_context("fork").Process(target=simulation, args=(folder,))
    parent.start()
    time.sleep(moment)
    known = workers(folder)
    processes = [parent.pid] if kills_parent else sorted(pid for s in known for pid in session_members(s))
    victim = rng.choice(processes) if processes else None
    if victim is not None:
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    parent.join(HANG)
    ended = (0, -signal.SIGKILL) if victim == parent.pid else (0,)
    assert parent.exitcode in ended, "it hung, or the next one failed"

    deadline = time.monotonic() + 10
    while left_behind(folder, known) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left_behind(folder, known) == []

    record, error = folder / "lava.npz", folder / "error"
    if record.exists():
        assert differences(simulate_fixed(PROGRAM, X), SpikeRecord.load(record)) == []
    if parent.exitcode == 0:
        assert record.exists() != error.exists()
    if error.exists():
        assert "\n" not in error.read_text()
        assert "simulate again" in error.read_text()
    next_works()
