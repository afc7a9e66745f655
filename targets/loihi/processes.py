"""The fixed engine in several processes, each with a share of the samples and of the threads."""

import math
from functools import partial

import numpy as np

from spikeport.core.processes import in_processes
from spikeport.core.progress import Progress
from spikeport.targets.loihi.fixed import simulate_fixed
from spikeport.targets.loihi.program import LoihiProgram
from spikeport.targets.record import SpikeRecord, joined

#: Slices per process: enough to show progress, and for a process that is done early to take another.
SLICES = 4


def simulate_slices(
    program: LoihiProgram, x: np.ndarray, rasters: int, progress: Progress, processes: int
) -> SpikeRecord:
    """``simulate_fixed`` in that many new processes; they are gone when it returns or raises.

    Raises:
        SpikeportError: one of them died.
    """
    axis = 0 if program.held else 1
    count = x.shape[axis]
    size = math.ceil(count / (SLICES * processes))
    slices = (
        (start, x.take(range(start, min(start + size, count)), axis), max(rasters - start, 0))
        for start in range(0, count, size)
    )
    died = (
        f"one of the {processes} processes ended before its samples were simulated (out of memory? a script that "
        'calls this without `if __name__ == "__main__"`?); take fewer processes'
    )
    parts: dict[int, SpikeRecord] = {}
    for start, part in in_processes(partial(_simulate, program), slices, processes, died):
        parts[start] = part
        progress(sum(part.samples for part in parts.values()), count)
    return joined([parts[start] for start in sorted(parts)])


def _simulate(program: LoihiProgram, part: tuple[int, np.ndarray, int]) -> tuple[int, SpikeRecord]:
    start, x, rasters = part
    return start, simulate_fixed(program, x, rasters=rasters)
