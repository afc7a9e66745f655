"""A study that is killed at a random moment, processes and all, ends with the table it would have had."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from spikeport.core import TrainConfig
from spikeport.profiling.studies import ablation_study, run_study, write_results
from spikeport.profiling.studies.study import TRIALS, finished

SCHEDULES = ("alt-1", "9", "8")
SETTINGS = {"dataset": "digits", "width": 0.0625, "epochs": 12, "train_images": 100, "lr": 0.01}
STUDY = ablation_study(TrainConfig(**SETTINGS), SCHEDULES, seeds=1)


def start(folder: Path) -> subprocess.Popen:
    """The study on the command line, in two processes of one thread each, as the tests have."""
    settings = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    schedules = [part for name in SCHEDULES for part in ("--schedule", name)]
    command = ["study", "ablation", *schedules, *settings, "--seeds", "1", "--processes", "2", "--out", str(folder)]
    return subprocess.Popen(
        [sys.executable, "-m", "spikeport", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_killed_at_a_random_moment_it_ends_with_the_same_table(tmp_path):
    victim = start(tmp_path / "killed")
    begin = time.monotonic()
    trials = tmp_path / "killed" / TRIALS
    while not list(trials.glob("*/config.toml")) and victim.poll() is None and time.monotonic() < begin + 120:
        time.sleep(0.02)
    pause = random.uniform(0, 0.6)
    print(f"killed {pause:.3f} s after its first trial began")  # pytest shows it where the test fails
    time.sleep(pause)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL, "it ended before it was killed"

    run_study(STUDY, tmp_path / "whole")
    write_results(STUDY, tmp_path / "whole")
    done = [name for name in STUDY.trials if finished(tmp_path / "killed", name)]
    assert len(done) < len(STUDY.trials), "its processes ended with it"
    told = []
    run_study(STUDY, tmp_path / "killed", resume=True, on_trial=told.append)
    assert sorted(told) == sorted(STUDY.trials)
    assert told[: len(done)] == done, "what was finished is kept"
    write_results(STUDY, tmp_path / "killed")
    for name in ("table.csv", "table.md", "pareto.svg"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(trials.rglob(".*")), "half-written files are gone"
