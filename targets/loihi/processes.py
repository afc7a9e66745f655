"""The fixed engine in several processes, each with a share of the samples and of the threads."""

import math
import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.shared_memory import SharedMemory

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
_memory: SharedMemory
_x: np.ndarray


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
    # Shared, not sent: Python's pool can wait for ever on a process that dies while samples are on their way to it.
    memory = SharedMemory(create=True, size=x.nbytes)
    np.ndarray(x.shape, x.dtype, memory.buf)[:] = x
    pool = ProcessPoolExecutor(processes, context, _start, (program, threads, memory.name, x.shape, x.dtype))
    try:
        slices: dict[Future, int] = {}
        for start in range(0, count, size):
            stop = min(start + size, count)
            slices[pool.submit(_simulate, start, stop, axis, max(rasters - start, 0))] = stop - start
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
        memory.close()
        memory.unlink()


def _start(program: LoihiProgram, threads: int, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    global _program, _memory, _x
    _program, _memory = program, SharedMemory(name)
    _x = np.ndarray(shape, dtype, _memory.buf)
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed ends nobody; so its children watch it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _simulate(start: int, stop: int, axis: int, rasters: int) -> SpikeRecord:
    return simulate_fixed(_program, _x.take(range(start, stop), axis), rasters=rasters)
