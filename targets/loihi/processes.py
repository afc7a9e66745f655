"""The fixed engine in several processes, each with a share of the samples and of the threads."""

import math
import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import torch

from spikeport.core.errors import SpikeportError
from spikeport.core.progress import Progress
from spikeport.targets.loihi.fixed import simulate_fixed
from spikeport.targets.loihi.program import LoihiProgram
from spikeport.targets.record import SpikeRecord, joined

#: Slices per process: enough to show progress, and for a process that is done early to take another.
SLICES = 4

_program: LoihiProgram


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
    threads = max(torch.get_num_threads() // processes, 1)
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _start, (program, threads))
    try:
        slices: dict[Future, int] = {}
        for start in range(0, count, size):
            part = x.take(range(start, min(start + size, count)), axis)
            slices[pool.submit(_simulate, part, max(rasters - start, 0))] = part.shape[axis]
        done = 0
        for future in as_completed(slices):
            future.result()
            done += slices[future]
            progress(done, count)
        return joined([future.result() for future in slices])
    except BrokenProcessPool:
        raise SpikeportError(
            f"one of the {processes} processes ended before its samples were simulated (out of memory? a script that "
            'calls this without `if __name__ == "__main__"`?); take fewer processes'
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start(program: LoihiProgram, threads: int) -> None:
    global _program
    _program = program
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed ends nobody; so its children watch it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _simulate(x: np.ndarray, rasters: int) -> SpikeRecord:
    return simulate_fixed(_program, x, rasters=rasters)
