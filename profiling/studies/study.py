"""What a study is: rows of a table, each the mean over trials of several seeds, and the folder that holds them.

STUDY/study.json       the definition
STUDY/trials/NAME/     an ordinary run folder; with measured.json in it the trial is finished
STUDY/locks/           held by the process that trains a trial; a killed process holds none
STUDY/table.csv ...    derived from the trials, written anew every time
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from spikeport.core.config import TrainConfig
from spikeport.core.data import load_dataset
from spikeport.core.errors import SpikeportError
from spikeport.core.files import read_json, refuse_existing, tuples, write_json

STUDY_FILE = "study.json"
TRIALS = "trials"
MEASURED_FILE = "measured.json"
#: Settings that say where a study runs, not what it is: another machine may resume it.
PLACE = ("data", "device")


@dataclass(frozen=True)
class Study:
    """A study whose trials are known before it starts.

    Attributes:
        kind: "ablation", "compare" or "seeds".
        rows: name of a table's row -> its settings; their seed is not used.
        seeds: every row is trained once with each of them.
    """

    kind: str
    rows: dict[str, TrainConfig]
    seeds: tuple[int, ...]

    @property
    def trials(self) -> dict[str, TrainConfig]:
        """Name of a trial (its run folder) -> its settings."""
        return {
            trial_name(row, seed): replace(config, seed=seed)
            for row, config in self.rows.items()
            for seed in self.seeds
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "study": self.kind,
            "seeds": list(self.seeds),
            "rows": {name: asdict(config) for name, config in self.rows.items()},
        }


def read_study(folder: Path) -> Study:
    """Raises SpikeportError where the folder does not hold an ablation, a comparison or a study of seeds."""
    path = folder / STUDY_FILE
    value = read_json(path)
    try:
        rows = {name: TrainConfig(**tuples(settings)) for name, settings in value["rows"].items()}
        return Study(value["study"], rows, tuple(value["seeds"]))
    except (TypeError, KeyError, AttributeError, SpikeportError) as error:
        raise SpikeportError(f"{path}: not an ablation, a comparison or a study of seeds ({error})") from None


def trial_name(row: str, seed: int) -> str:
    return f"{row}-seed{seed}"


def finished(folder: Path, trial: str) -> bool:
    return (folder / TRIALS / trial / MEASURED_FILE).exists()


def seeds_from(first: int, count: int) -> tuple[int, ...]:
    """Raises SpikeportError for fewer than one."""
    if count < 1:
        raise SpikeportError(f"{count} seeds; at least 1 is needed")
    return tuple(range(first, first + count))


def check_trainable(configs: list[TrainConfig]) -> None:
    """Raises SpikeportError where one of them names a missing data set or cannot be built, before anything starts."""
    for dataset, folder in {(c.dataset, c.data) for c in configs}:
        data = load_dataset(dataset, folder)
        for config in configs:
            if (config.dataset, config.data) == (dataset, folder):
                config.spec(len(data.class_names), data.image_shape).build()


def open_folder(folder: Path, definition: dict[str, Any], resume: bool) -> None:
    """Makes the folder of a study, or opens it again.

    Raises:
        SpikeportError: it exists and ``resume`` is False; it is not a study's; it is another study's.
    """
    path = folder / STUDY_FILE
    if path.exists():
        refuse_existing(folder, resume, "pass --resume to go on with it, or name another folder")
        require_same(str(path), read_json(path), definition)
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SpikeportError(f"{folder}: not the folder of a study (it has no {STUDY_FILE}); name another")
    write_json(path, definition)


def require_same(where: str, found: Any, wanted: dict[str, Any]) -> None:
    """Raises SpikeportError where the definition ``found`` is not that of the study that is asked for."""
    if not isinstance(found, dict) or "study" not in found:
        raise SpikeportError(f"{where}: not the definition of a study; name another")
    found, wanted = _flat(where, found), _flat(where, wanted)
    different = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    if different:
        name = different[0]
        row = name.rpartition(": ")[0]
        if row and name not in found:
            what = f"it has no {row}, which is asked for"
        elif row and name not in wanted:
            what = f"it has {row}, which is not asked for"
        else:
            what = f"it has {name} = {_short(found.get(name))}, asked for {_short(wanted.get(name))}"
        raise SpikeportError(f"{where}: another study: {what}; resume with the same command or name another")


def _flat(where: str, definition: dict[str, Any]) -> dict[str, Any]:
    """One entry per setting, without those that only say where a study runs."""
    flat = {name: value for name, value in definition.items() if name != "rows"}
    try:
        for row, settings in definition["rows"].items():
            values = asdict(TrainConfig(**tuples(settings)))  # a setting that is newer than the file has its default
            flat |= {f"{row}: {name}": value for name, value in values.items() if name not in (*PLACE, "seed")}
    except (TypeError, KeyError, AttributeError, SpikeportError) as error:
        raise SpikeportError(f"{where}: not the definition of a study ({error}); name another") from None
    return flat


def _short(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."
