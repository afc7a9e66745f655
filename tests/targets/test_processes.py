"""The fixed engine in several processes: the same record, and nothing left running."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from programs import single

from spikeport.core import SpikeportError
from spikeport.targets.loihi.fixed import simulate_fixed
from spikeport.targets.record import differences

COUNT = 19


def program_and_samples():
    """An input that changes at every step: the samples are the second axis, [T, N, C, H, W]."""
    rng = np.random.default_rng(0)
    program = single(rng.integers(-127, 128, (6, 3, 3, 3)).astype(np.int8), (3, 7, 7), time_steps=3)
    x = rng.integers(-50, 51, (3, COUNT, 3, 7, 7)).astype(float) * program.input_scale
    return replace(program, held=False), x


def test_the_record_is_that_of_one_process():
    program, x = program_and_samples()
    labels, seen = np.arange(COUNT), []
    one = simulate_fixed(program, x, labels, rasters=12)
    two = simulate_fixed(program, x, labels, rasters=12, processes=2, progress=lambda *done: seen.append(done))
    assert differences(one, two) == []
    assert (one.wraps, one.saturations, one.details) == (two.wraps, two.saturations, two.details)
    np.testing.assert_array_equal(one.outputs, two.outputs)
    np.testing.assert_array_equal(one.labels, two.labels)
    assert one.rasters["layer"].any()
    np.testing.assert_array_equal(one.rasters["layer"], two.rasters["layer"])
    assert len(seen) > 2
    assert seen == sorted(seen)
    assert seen[-1] == (COUNT, COUNT)
    assert multiprocessing.active_children() == []


def test_a_process_that_dies_is_one_error():
    program, x = program_and_samples()

    def kill(done, total):
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(SpikeportError, match="one of the 2 processes ended before its samples were simulated"):
        simulate_fixed(program, np.repeat(x, 200, axis=1), processes=2, progress=kill)
    assert multiprocessing.active_children() == []


SCRIPT = """
import multiprocessing, time
import numpy as np
from programs import single
from spikeport.targets.loihi.fixed import simulate_fixed

def wait(done, total):
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    program = single(np.ones((2, 1, 1, 1), np.int8), (1, 4, 4))
    simulate_fixed(program, np.zeros((20, 1, 4, 4)), processes=2, progress=wait)
"""


def test_they_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment)
    children = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    assert len(children) == 2
    end = time.monotonic() + 30
    while (left := [pid for pid in children if alive(pid)]) and time.monotonic() < end:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def alive(pid):
    """Whether the process runs (a zombie, which nobody may collect in a container, does not)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_no_process_is_refused():
    program, x = program_and_samples()
    with pytest.raises(SpikeportError, match="0 processes asked for; at least 1 is needed"):
        simulate_fixed(program, x, processes=0)
