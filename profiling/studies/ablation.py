"""Which Fire modules SqueezeNet needs: the pruning schedules of the paper's Table 4.2, or the user's."""

from collections.abc import Sequence
from dataclasses import replace

from spikeport.core.config import TrainConfig
from spikeport.core.errors import SpikeportError
from spikeport.profiling.studies.study import Study, seeds_from

#: Name in the paper (Table 4.2) -> the Fire modules that stay.
SCHEDULES = {
    "full": (2, 3, 4, 5, 6, 7, 8, 9),
    "head-1": (2, 3, 4, 5, 9),
    "head-2": (2, 3, 4, 5, 8),
    "tail-1": (2, 5, 6, 7, 8, 9),
    "tail-2": (2, 4, 6, 7, 8, 9),
    "alt-1": (2, 4, 6, 8),
    "alt-2": (3, 5, 7, 9),
    "ref-1": (4, 6, 8, 9),
    "ref-2": (2, 4, 5, 6, 8, 9),
}


def ablation_study(base: TrainConfig, schedules: Sequence[str] = (), seeds: int = 1) -> Study:
    """One row per schedule: a name of ``SCHEDULES`` or modules, as "4,6,8,9"; all nine where none is given.

    Raises:
        SpikeportError: a name that is not known or is there twice, fewer than one seed. Modules that do not exist, or
            none at all, are refused when the models are built.
    """
    rows = {}
    for schedule in schedules or SCHEDULES:
        keep = SCHEDULES.get(schedule) or _modules(schedule)
        name = schedule if schedule in SCHEDULES else "fire-" + "-".join(map(str, keep))
        if name in rows:
            raise SpikeportError(f"schedule {name} is there twice; name each once")
        rows[name] = replace(base, keep=keep)
    return Study("ablation", rows, seeds_from(base.seed, seeds))


def _modules(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",") if part.strip()}))
    except ValueError:
        known = ", ".join(SCHEDULES)
        raise SpikeportError(f"schedule {text!r}: not one of {known}, nor Fire modules as 4,6,8,9") from None
