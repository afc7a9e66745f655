"""What a target is, and how one is found.

A target registers under the entry point group ``spikeport.targets``; a third party adds one without touching
this package.
"""

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from spikeport.core.errors import SpikeportError
from spikeport.core.progress import Progress, silent
from spikeport.core.runs import Run

GROUP = "spikeport.targets"


class Target(Protocol):
    """A place where an exported network runs.

    Attributes:
        name: what ``--target`` calls it.
        kind: the kind of network it takes, "cnn" or "snn".
        engines: the ways to run it; the first is the default.
        file: where a run folder keeps its program.
        record: the file beside it for what a simulation saw; may hold {engine}.
        help: one line.
    """

    name: str
    kind: str
    engines: tuple[str, ...]
    file: str
    record: str
    help: str

    def compile(self, source: Any, program: Path, calibration: np.ndarray | None = None) -> Any:
        """Turns an exported network (a NIR graph or an ONNX file) into the target's own file; returns the program.

        Raises:
            SpikeportError: the network cannot be held exactly, by layer and remedy.
        """

    def check(self, source: Any, chip: str | None = None, calibration: np.ndarray | None = None) -> Any:
        """Says before anything is compiled whether the network fits: every layer, every limit, the remedy."""

    def simulate(
        self,
        program: Path,
        x: np.ndarray,
        labels: np.ndarray | None = None,
        engine: str | None = None,
        progress: Progress = silent,
        run: Run | None = None,
        **options: Any,
    ) -> Any:
        """Runs float samples [N, ...] and returns the target's record.

        Args:
            run: what the program was exported from, for a target that holds the one against the other.

        Raises:
            SpikeportError: an unknown engine, or samples the program does not take.
        """


def target_names() -> list[str]:
    """Of every registered target, in alphabetical order."""
    return sorted(entry.name for entry in entry_points(group=GROUP))


def find_target(name: str) -> Target:
    """The target registered as ``name``. Raises SpikeportError for an unknown one or one that does not load."""
    for entry in entry_points(group=GROUP, name=name):
        try:
            make: Callable[[], Target] = entry.load()
        except ImportError as error:
            raise SpikeportError(f"target {name!r} ({entry.value}) does not load: {error}") from error
        return make()
    raise SpikeportError(f"unknown target {name!r}; available: {', '.join(target_names())}")


def check_labels(labels: np.ndarray | None, samples: int, classes: int) -> None:
    """Raises SpikeportError where there is not one class of the network per sample."""
    if labels is None:
        return
    if labels.shape != (samples,):
        raise SpikeportError(f"labels have shape {list(labels.shape)}; {samples} samples need [{samples}]")
    if labels.dtype.kind not in "iu":
        raise SpikeportError(f"labels are {labels.dtype}; classes are whole numbers: save them as int64")
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise SpikeportError(f"label {wrong[0]} names no class; the network has 0 to {classes - 1}")


def pick_engine(target: Target, engine: str | None) -> str:
    """The engine asked for, or the target's default. Raises SpikeportError for an unknown one."""
    if engine is None:
        return target.engines[0]
    if engine not in target.engines:
        raise SpikeportError(f"target {target.name} has no engine {engine!r}; available: {', '.join(target.engines)}")
    return engine
