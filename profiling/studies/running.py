"""Trains the trials of a study: once each, here or in several processes, and again after a kill."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from spikeport.core.config import TrainConfig
from spikeport.core.errors import SpikeportError
from spikeport.core.processes import check_processes, in_processes
from spikeport.core.runs import Run, load_run
from spikeport.core.training import CHECKPOINT_FILE, train
from spikeport.profiling.studies.measured import measure
from spikeport.profiling.studies.study import TRIALS, Study, check_trainable, finished, open_folder
from spikeport.targets.loihi.qat import preparation

#: Seconds to wait for a trial that another process trains: the processes of a killed study need a moment to end.
PATIENCE = 10
DIED = (
    "a training process was killed (by hand, or for want of memory); go on with --resume and, for want of memory, "
    "fewer --processes"
)


def run_study(
    study: Study,
    folder: Path,
    resume: bool = False,
    processes: int = 1,
    on_trial: Callable[[str], None] = lambda name: None,
) -> None:
    """Trains and measures every trial of ``study`` that is not finished.

    Args:
        folder: the study's; several machines may work on one they share.
        resume: go on with it; finished trials are kept, an unfinished one resumes from its checkpoint.
        processes: trials trained at the same time. The result of a training depends on how many threads it has, so
            resume with the same number.
        on_trial: told the name of every trial that is finished.

    Raises:
        SpikeportError: settings that cannot be trained, a folder of another study, a training that fails.
    """
    check_processes(processes)
    check_trainable(list(study.rows.values()))
    open_folder(folder, study.to_dict(), resume)
    waiting = []
    for name, config in study.trials.items():
        if finished(folder, name):
            on_trial(name)
        else:
            waiting.append((name, config))
    for trained in in_processes(partial(_one, folder), waiting, processes, DIED):
        if trained:
            on_trial(trained)


def _one(folder: Path, trial: tuple[str, TrainConfig]) -> str | None:
    """Trains one trial; None where a process on another machine does."""
    name, config = trial
    try:
        with trial_lock(folder, name):
            run_trial(folder, name, config)
    except Timeout:
        return None
    return name


def trial_lock(folder: Path, name: str, patience: float = PATIENCE) -> FileLock:
    """The operating system lets go of it when its process ends, however that ends."""
    path = lock_path(folder, name)
    path.parent.mkdir(exist_ok=True)
    return FileLock(path, timeout=patience)


def lock_path(folder: Path, name: str) -> Path:
    return folder / "locks" / f"{name}.lock"


def run_trial(folder: Path, name: str, config: TrainConfig) -> Run:
    """Trains the trial from where it stands and measures it; the caller holds its lock."""
    path = folder / TRIALS / name
    if finished(folder, name):
        return load_run(path)
    resume = (path / CHECKPOINT_FILE).exists()
    if resume:
        for half_written in filter(Path.is_file, path.glob(".*")):  # by a process that was killed
            half_written.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
    try:
        trained = train(config, path, resume=resume, prepare=preparation(config))
    except SpikeportError as error:
        raise SpikeportError(f"trial {name}: {error}") from None
    measure(trained)
    return trained
