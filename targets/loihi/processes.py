"""Samples shared out to processes, each with its share of the threads."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np

from spikeport.core.processes import in_processes
from spikeport.core.progress import Progress

R = TypeVar("R")


def in_parts(
    work: Callable[[np.ndarray, int], R],
    x: np.ndarray,
    axis: int,
    size: int,
    rasters: int,
    processes: int,
    progress: Progress,
) -> list[R]:
    """What ``work`` makes of every ``size`` samples, in their order; new processes are gone when it returns or raises.

    Args:
        work: takes samples, and of how many of them the spike maps are kept; see ``core.processes.in_processes``.
        axis: that of the samples in x.
        rasters: of so many first samples the spike maps are kept.

    Raises:
        SpikeportError: a process died.
    """
    count = x.shape[axis]
    starts = range(0, count, size)
    parts = ((start, x.take(range(start, min(start + size, count)), axis), max(rasters - start, 0)) for start in starts)
    died = (
        f"one of the {processes} processes ended before its samples were simulated (out of memory? a script that "
        'calls this without `if __name__ == "__main__"`?); take fewer processes'
    )
    found: dict[int, R] = {}
    for start, result in in_processes(partial(_numbered, work), parts, processes, died):
        found[start] = result
        progress(sum(min(size, count - start) for start in found), count)
    return [found[start] for start in starts]


def _numbered(work: Callable[[np.ndarray, int], R], part: tuple[int, np.ndarray, int]) -> tuple[int, R]:
    start, x, rasters = part
    return start, work(x, rasters)
