"""A search over learning rate, tau, threshold and surrogate with Optuna, judged by validation accuracy.

The database (SQLite in the study's folder, or one that many machines share) holds what was tried and how well it did;
STUDY/trials/NAME are ordinary run folders. A trial that was interrupted goes on in the folder it was started in.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import Timeout
from optuna.trial import Trial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from spikeport.core.config import TrainConfig, laid_over
from spikeport.core.errors import SpikeportError, reason
from spikeport.core.processes import check_processes, in_processes
from spikeport.core.surrogates import SURROGATES, surrogate_named
from spikeport.profiling.studies.results import write_rows
from spikeport.profiling.studies.running import DIED, lock_path, run_trial, trial_lock
from spikeport.profiling.studies.study import PLACE, TRIALS, check_trainable, finished, open_folder, require_same
from spikeport.profiling.studies.table import Row, read_row, trial_config

#: Seconds a process waits for another one of the same folder that is choosing its next trial.
ASKING = 60
SAMPLERS = ("tpe", "random")


@dataclass(frozen=True)
class Space:
    """What is searched: (low, high) ranges and a list of surrogates; one value, or low == high, is not searched.

    The defaults stand in for the ranges of the paper's random search, which it does not give. ``lr`` is drawn
    uniformly in its logarithm, the other two uniformly.
    """

    lr: tuple[float, float] = (1e-4, 1e-2)
    tau: tuple[float, float] = (1.05, 4.0)
    v_threshold: tuple[float, float] = (0.5, 1.5)
    surrogates: tuple[str, ...] = tuple(SURROGATES)

    def __post_init__(self) -> None:
        for name in ("lr", "tau", "v_threshold"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise SpikeportError(f"the range {low}:{high} of {name} is empty; give LOW:HIGH with 0 < LOW <= HIGH")
        if self.tau[0] < 1:
            raise SpikeportError(f"the range of tau begins at {self.tau[0]}; the time constant is at least 1 step")
        if not self.surrogates:
            raise SpikeportError("no surrogate to choose from; name at least one")
        for name in self.surrogates:
            surrogate_named(name)
        if not any(isinstance(choice, tuple) for choice in self.choices().values()):
            raise SpikeportError("the search space is empty: every setting has one value; give one of them a range")

    def choices(self) -> dict[str, Any]:
        """Setting of TrainConfig -> a range, a tuple of names, or the value it is fixed to."""
        chosen: dict[str, Any] = {}
        for name in ("lr", "tau", "v_threshold"):
            low, high = getattr(self, name)
            chosen[name] = low if low == high else (low, high)
        chosen["surrogate"] = self.surrogates if len(self.surrogates) > 1 else self.surrogates[0]
        return chosen


@dataclass(frozen=True)
class Search:
    """A search's definition.

    Attributes:
        name: of the study in the database: machines that give the same name and database work on the same search.
        storage: URL of the database; None: SQLite in the study's folder.
    """

    base: TrainConfig
    space: Space
    sampler: str = "tpe"
    name: str = "search"
    storage: str | None = None

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise SpikeportError(f"sampler {self.sampler!r} is not one of {', '.join(SAMPLERS)}")
        searched = [name for name, choice in self.space.choices().items() if isinstance(choice, tuple)]
        if self.base.kind == "cnn" and searched != ["lr"]:
            raise SpikeportError("a CNN has no tau, threshold or surrogate to search; fix them to one value each")

    def to_dict(self) -> dict[str, Any]:
        """The definition; a database's address may hold a password and is no part of it."""
        space = {name: list(v) if isinstance(v, tuple) else v for name, v in self.space.choices().items()}
        base = {name: value for name, value in asdict(self.base).items() if name not in (*space, *PLACE)}
        return {
            "study": "search",
            "name": self.name,
            "sampler": self.sampler,
            "seed": self.base.seed,
            "space": space,
            "rows": {"base": base},
        }


def run_search(
    definition: Search,
    folder: Path,
    trials: int,
    resume: bool = False,
    processes: int = 1,
    on_trial: Callable[[str, str], None] = lambda name, failed: None,
) -> list[Row]:
    """Runs ``definition`` until its database holds ``trials`` trials; returns the folder's, the best first.

    Args:
        folder: the study's. Machines that share a database may each have their own.
        resume: go on with it: interrupted trials first, each from its checkpoint.
        on_trial: told the name of every trial that ends here, and why it failed ("" where it did not).

    Raises:
        SpikeportError: unusable settings, a database that cannot be reached or holds another search, a folder of
            another study; or every trial failed.
    """
    check_processes(processes)
    if trials < 1:
        raise SpikeportError(f"{trials} trials; at least 1 is needed")
    check_trainable([definition.base])
    database = definition.storage is not None
    if database:
        _open(definition, folder)  # before anything is written
    open_folder(folder, definition.to_dict(), resume)
    study = _open(definition, folder)
    left = trials - sum(trial.state.is_finished() for trial in study.trials)
    for ended in in_processes(partial(_one, definition, folder), [trials] * max(left, 0), processes, DIED):
        if ended:
            on_trial(*ended)
    states = {trial.state for trial in study.trials}
    if states == {TrialState.FAIL}:
        last = next((trial.user_attrs["error"] for trial in study.trials[::-1] if "error" in trial.user_attrs), "")
        raise SpikeportError(f"{folder}: every trial failed, the last with: {last}; search another range, elsewhere")
    return write_search(folder)


def write_search(folder: Path) -> list[Row]:
    """Writes table.csv, table.md and pareto.svg of the folder's finished trials; returns them, the best first."""
    names = sorted(path.name for path in (folder / TRIALS).glob("*") if finished(folder, path.name))
    rows = [read_row(folder, name, trial_config(folder, name), [name]) for name in names]
    rows.sort(key=lambda row: -(row.mean("validation_accuracy") or 0.0))
    write_rows(folder, rows)
    return rows


def _open(definition: Search, folder: Path) -> optuna.Study:
    """The study in the database. Raises SpikeportError where that cannot be reached or it is another search."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url = definition.storage or f"sqlite:///{(folder / 'optuna.db').resolve()}"
    try:
        storage = optuna.storages.RDBStorage(url)
        study = optuna.create_study(
            storage=storage, study_name=definition.name, direction="maximize", load_if_exists=True
        )
        wanted = definition.to_dict()
        if not (found := study.user_attrs.get("definition")):
            study.set_user_attr("definition", found := wanted)
    except (SQLAlchemyError, ImportError, optuna.exceptions.OptunaError) as error:
        raise SpikeportError(
            f"the database {_without_password(url)} cannot be used ({reason(error)}); check its address, its driver "
            "and that it runs"
        ) from None
    require_same(f"search {definition.name!r} in the database", found, wanted)
    return study


def _without_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return "(not a database URL, as postgresql://user@host/name)"


def _one(definition: Search, folder: Path, trials: int) -> tuple[str, str] | None:
    """Trains the next trial of the search, if there is one; returns its name, and why it failed or ""."""
    study = _open(definition, folder)
    with trial_lock(folder, "asking", ASKING):
        claimed = _interrupted(definition, study, folder) or _next(study, folder, trials)
    if claimed is None:
        return None
    trial, lock = claimed
    name = _name(trial)
    with lock:
        config = TrainConfig(**laid_over(asdict(definition.base), _suggest(definition, study, trial)))
        try:
            run = run_trial(folder, name, config)
        except SpikeportError as error:  # a learning rate at which the loss diverges is a result, too
            failed = str(error).removeprefix(f"trial {name}: ")
            trial.set_user_attr("error", failed)
            study.tell(trial, state=TrialState.FAIL)
            return name, failed
        study.tell(trial, run.results["validation_accuracy"])
    return name, ""


def _interrupted(definition: Search, study: optuna.Study, folder: Path) -> tuple[Trial, Any] | None:
    """A trial of this folder that no process trains any more, and its lock."""
    for found in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        trial = Trial(study, found._trial_id)
        ours = definition.storage is None or lock_path(folder, _name(trial)).exists()
        if ours and (lock := _free(folder, trial)):
            return trial, lock
    return None


def _next(study: optuna.Study, folder: Path, trials: int) -> tuple[Trial, Any] | None:
    """A new trial and its lock, while there are fewer than ``trials``."""
    if len(study.trials) >= trials:
        return None
    trial = study.ask()
    if trial.number >= trials:  # another machine was faster
        study.tell(trial, state=TrialState.FAIL)
        return None
    lock = _free(folder, trial)
    assert lock is not None
    return trial, lock


def _free(folder: Path, trial: Trial) -> Any:
    """The lock of a trial, held; None where another process holds it."""
    try:
        return trial_lock(folder, _name(trial), 0).acquire()
    except Timeout:
        return None


def _name(trial: Trial) -> str:
    return f"trial-{trial.number:04d}"


def _suggest(definition: Search, study: optuna.Study, trial: Trial) -> dict[str, Any]:
    """The trial's settings. What is drawn depends on seed and number alone (and, for TPE, on what is known)."""
    seed = int(np.random.SeedSequence([definition.base.seed, trial.number]).generate_state(1)[0])
    random = optuna.samplers.RandomSampler(seed)
    study.sampler = random if definition.sampler == "random" else optuna.samplers.TPESampler(seed=seed)
    chosen: dict[str, Any] = {}
    for name, choice in definition.space.choices().items():
        if not isinstance(choice, tuple):
            chosen[name] = choice
        elif name == "surrogate":
            chosen[name] = trial.suggest_categorical(name, choice)
        else:
            chosen[name] = trial.suggest_float(name, *choice, log=name == "lr")
    return chosen
