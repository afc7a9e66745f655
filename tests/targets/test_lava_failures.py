"""Whatever dies or hangs around Lava: a readable error, nothing left behind, and the next run works."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from programs import single

from spikeport.core.errors import SpikeportError
from spikeport.targets.loihi.fixed import simulate_fixed
from spikeport.targets.loihi.lava import engine, simulate_lava
from spikeport.targets.loihi.lava.process import SHARED_MEMORY, Worker, session_members
from spikeport.targets.record import differences

pytestmark = pytest.mark.usefixtures("lava")

PROGRAM = single(np.ones((2, 1, 2, 2), np.int8), (1, 3, 3), time_steps=4)
X = np.ones((2, 1, 3, 3))
#: Seconds of work: nobody waits for its end.
LONG = np.ones((20_000, 1, 3, 3))


@pytest.fixture
def worker() -> Worker:
    """The engine's worker, alive."""
    simulate_lava(PROGRAM, X)
    assert engine._worker is not None
    return engine._worker


def left_behind(session: int, token: str, folder: Path) -> list[object]:
    shared = [path for path in SHARED_MEMORY.iterdir() if token in path.name]
    return [*session_members(session), *shared, *([folder] if folder.exists() else [])]


def assert_recovered(worker: Worker) -> None:
    assert left_behind(worker.process.pid, worker.token, worker.folder) == []
    assert differences(simulate_fixed(PROGRAM, X), simulate_lava(PROGRAM, X)) == []
    assert engine._worker is not worker


def youngest(worker: Worker) -> int:
    """A process that Lava has just started, once there is one (the worker and its resource tracker apart)."""
    while len(members := session_members(worker.process.pid)) < 4:
        time.sleep(0.001)
    return max(members, key=started)


def started(process: int) -> int:
    """When it was, in ticks; numbers of processes begin anew some time."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])


def test_exception_in_an_actor_is_told(worker: Worker) -> None:
    # A threshold that is no integer fails inside Lava before the neuron sends; Lava alone would wait for ever.
    broken = replace(PROGRAM.populations[0], vth=2.5)
    with pytest.raises(SpikeportError, match=r"Lava failed: population layer: TypeError: .*; simulate again"):
        simulate_lava(replace(PROGRAM, populations=(broken, PROGRAM.populations[1])), X)
    assert_recovered(worker)


def test_a_full_disk_is_told(worker: Worker) -> None:
    # As good as a full disk: the results cannot be written at the end. Lava raises here, and would hang in stop().
    def remove_job(done: int, total: int) -> None:
        for job in worker.folder.glob("*/"):
            shutil.rmtree(job, ignore_errors=True)

    with pytest.raises(SpikeportError, match=r"Lava failed: (population|input) .*: FileNotFoundError"):
        simulate_lava(PROGRAM, np.ones((50, 1, 3, 3)), progress=remove_job)
    assert_recovered(worker)


def test_too_few_open_files_are_told(tmp_path: Path) -> None:
    PROGRAM.save(tmp_path / "program.npz")
    limited = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))"
    command = [sys.executable, "-c", limited + PARENT.format(samples=1, pause=0)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "Lava failed: 5 Lava processes need 124 open files, the limit is 100; raise it with" in done.stderr


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(
    ("victim", "told"),
    [
        (lambda worker: worker.process.pid, "worker died after"),
        (youngest, "Lava failed: .*ended with exit code -9"),
    ],
)
def test_a_killed_process_is_told(worker: Worker, victim: Callable[[Worker], int], told: str, delay: float) -> None:
    delay *= random.Random(f"{delay} {told}").uniform(0.5, 1.5)  # the same moment in every run

    def kill() -> None:
        while not list(worker.folder.glob("*/program.npz")):  # the job has begun
            time.sleep(0.001)
        time.sleep(delay)
        os.kill(victim(worker), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(SpikeportError, match=told):
        simulate_lava(PROGRAM, LONG, timeout=120)
    killer.join()
    assert_recovered(worker)


def test_a_hanging_actor_meets_the_time_limit(worker: Worker) -> None:
    stopper = threading.Timer(0.5, lambda: os.kill(youngest(worker), signal.SIGSTOP))
    stopper.start()
    with pytest.raises(SpikeportError, match="Lava did not finish within 2 s.*; simulate again"):
        simulate_lava(PROGRAM, LONG, timeout=2)
    stopper.join()
    assert_recovered(worker)


def test_an_interrupted_run_leaves_nothing(worker: Worker) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_lava(PROGRAM, LONG, progress=interrupt)
    assert_recovered(worker)


def test_a_worker_that_died_idle_is_replaced(worker: Worker) -> None:
    os.kill(worker.process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, worker.process.pid, os.WEXITED | os.WNOWAIT)
    simulate_lava(PROGRAM, X)
    assert_recovered(worker)


def test_a_long_path_for_temporary_files_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # multiprocessing's sockets would lie there, and their paths are limited to 107 characters.
    engine.shutdown()
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    assert differences(simulate_fixed(PROGRAM, X), simulate_lava(PROGRAM, X)) == []


def test_shutdown_leaves_nothing(worker: Worker) -> None:
    engine.shutdown()
    assert_recovered(worker)


PARENT = """
import time
import numpy as np
from spikeport.targets.loihi.lava import engine
from spikeport.targets.loihi.program import LoihiProgram
def tell(done, total):
    worker = engine._worker
    print(worker.process.pid, worker.token, worker.folder, flush=True)
    time.sleep({pause})
engine.simulate_lava(LoihiProgram.load("program.npz"), np.ones(({samples}, 1, 3, 3)), progress=tell)
"""


def start_parent(folder: Path, samples: int, pause: float) -> tuple[subprocess.Popen[str], tuple[int, str, Path]]:
    """A parent that tells its worker's session, token and folder when some samples are done, then waits a while."""
    PROGRAM.save(folder / "program.npz")
    command = [sys.executable, "-c", PARENT.format(samples=samples, pause=pause)]
    parent = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    session, token, worker_folder = parent.stdout.readline().split()
    return parent, (int(session), token, Path(worker_folder))


@pytest.mark.parametrize("pause", [0, 60])  # with a pause it dies with messages unread
def test_a_killed_parent_leaves_nothing(tmp_path: Path, pause: float) -> None:
    parent, traces = start_parent(tmp_path, len(LONG), pause)
    assert len(session_members(traces[0])) > 4
    time.sleep(1.5)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while left_behind(*traces) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left_behind(*traces) == []


def test_a_parent_that_ends_leaves_nothing(tmp_path: Path) -> None:
    parent, traces = start_parent(tmp_path, 1, 0)
    assert parent.wait(30) == 0
    assert left_behind(*traces) == []
