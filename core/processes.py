"""Work shared out to new processes: one that dies, at whatever moment, is an error and never a wait.

Each process has a pipe of its own, and each end of it has one owner, so the system reports a death at once.
``concurrent.futures`` keeps both ends: there a message that a death cuts short is awaited for ever.
"""

import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from numbers import Integral
from pickle import PicklingError
from typing import Any, TypeVar

import torch

from spikeport.core.errors import SpikeportError

T = TypeVar("T")
R = TypeVar("R")


def check_processes(processes: int) -> None:
    """Raises SpikeportError where it is no whole number from one."""
    if not isinstance(processes, Integral) or processes < 1:
        raise SpikeportError(f"{processes} processes asked for; at least 1 is needed")


def in_processes(work: Callable[[T], R], items: Iterable[T], processes: int, died: str) -> Iterator[R]:
    """Yields ``work(item)`` as they finish: in this process, or in several new ones that end with this iterator.

    Each of several has its share of torch's threads, and the machine's GPUs in turn. What ``work`` raises there is
    raised here. A script that calls this does so under ``if __name__ == "__main__":``.

    Args:
        work: a function of a module, or a partial of one; sent to each process once.
        died: the error to raise where a process ends before its work.

    Raises:
        SpikeportError: ``died``.
    """
    if processes == 1:
        yield from map(work, items)
        return
    context = _context()
    threads = max(torch.get_num_threads() // processes, 1)
    waiting = iter(items)
    first = list(itertools.islice(waiting, processes))
    workers: dict[Connection, multiprocessing.process.BaseProcess] = {}
    try:
        for number in range(len(first)):
            ours, theirs = context.Pipe()
            # What it starts with must be little: nobody would notice a process that dies before it has read it all.
            workers[ours] = context.Process(target=_serve, args=(theirs, number, threads), daemon=True)
            workers[ours].start()
            theirs.close()
        try:
            for connection, item in zip(workers, first, strict=True):
                connection.send(work)
                connection.send(item)
        except OSError:
            raise SpikeportError(died) from None
        except (PicklingError, AttributeError, TypeError) as unsent:
            raise SpikeportError(
                f"this work cannot be sent to other processes ({unsent}): define what it needs in a module, not in a "
                "function; or take one process"
            ) from None
        working = list(workers)
        while working:
            ready = wait(working)
            for connection in [one for one in working if one in ready]:
                more = list(itertools.islice(waiting, 1))
                try:
                    result, error = connection.recv()
                    for item in more:
                        connection.send(item)
                except (EOFError, OSError):
                    raise SpikeportError(died) from None
                if not more:
                    working.remove(connection)
                if error is not None:
                    raise error
                yield result
    finally:
        for connection, process in workers.items():
            process.kill()
            process.join()
            connection.close()


def _context() -> Any:
    """How processes start: threads and CUDA do not survive a fork, so none is made of this process.

    On Linux they are forked from a process that has done nothing but import torch, which takes each of them seconds.
    """
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _serve(connection: Connection, number: int, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    if torch.cuda.device_count() > 1:
        torch.cuda.set_device(number % torch.cuda.device_count())
    answer: tuple[Any, Exception | None]
    with contextlib.suppress(EOFError):
        work = connection.recv()
        while True:
            item = connection.recv()
            try:
                answer = (work(item), None)
            except Exception as error:
                if not isinstance(error, SpikeportError):
                    error.add_note(traceback.format_exc())
                answer = (None, error)
            connection.send(answer)


def _end_with_parent() -> None:
    """A parent that is killed ends nobody; so its children watch it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
