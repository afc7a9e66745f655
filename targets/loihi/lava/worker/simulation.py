"""Runs a network in Lava, and notices when one of Lava's processes fails."""

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lava.magma.core.process.process import AbstractProcess, ProcessServer
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.magma.runtime.runtime import Runtime
from lava.proc.conv.process import Conv
from lava.proc.io.source import RingBuffer
from lava.proc.lif.process import LIFReset

from .lifetime import Failure
from .models import FastConvolution, HeldInput, RecordedNeurons, StockConvolution
from .network import Network, build

#: Open files Lava needs in this process for each of its own, and beside them.
FILES_PER_PROCESS = 12
FILES_BESIDE = 64
#: Reports of progress in a job, at most.
REPORTS = 100
#: Seconds between looks for a failure.
LOOK = 0.2


def simulate(folder: Path, convolution: str, rasters: int, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Runs the job in ``folder`` (see ``network.build``); returns details for the record."""
    network = build(folder, rasters)
    _check_files(len(network.processes))
    models = {
        RingBuffer: HeldInput,
        LIFReset: RecordedNeurons,
        Conv: FastConvolution if convolution == "fast" else StockConvolution,
    }
    entry = next(iter(network.processes.values()))
    with _watched(network, entry):
        entry.create_runtime(run_cfg=Loihi2SimCfg(select_tag="fixed_pt", exception_proc_model_map=models))
        done = 0
        while done < network.samples:
            count = min(max(network.samples // REPORTS, 1), network.samples - done)
            done += count
            # The last samples leave the deepest population ``depth`` steps later.
            last = network.depth if done == network.samples else 0
            entry.run(condition=RunSteps(num_steps=count * network.time_steps + last))
            progress(done, network.samples)
    entry.stop()
    ProcessServer().processes.clear()  # Lava would keep every process of every job
    return {"steps": network.samples * network.time_steps + network.depth}


@contextmanager
def _watched(network: Network, entry: AbstractProcess) -> Iterator[None]:
    """Raises Failure with name and reason when one of Lava's processes fails: Lava itself would wait for ever.

    A timer's signal looks again and again, because an exception in a signal handler can get lost (in a hook).
    """

    def look(*_: Any) -> None:
        if entry.runtime is not None and entry.runtime._messaging_infrastructure is not None:
            _raise_failure(network, entry.runtime)

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, LOOK, LOOK)
    try:
        yield
    except RuntimeError:
        look()  # Lava only counts the exceptions
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _raise_failure(network: Network, runtime: Runtime) -> None:
    names = {process: name for name, process in network.processes.items()}
    # Lava starts a process for each builder, in this order, then those that synchronise them.
    labels = [names[process] for process in runtime._executable.proc_builders]
    for index, actor in enumerate(runtime._messaging_infrastructure.actors):
        label = labels[index] if index < len(labels) else "the runtime service"
        try:
            # After a failure Lava stops the others, which then end with 0.
            code = None if actor._is_done or actor.is_alive() else actor.exitcode
            failure = actor.exception  # asked last: it is sent before the end
        except (OSError, ValueError):
            continue  # Lava is closing this one just now; the next look finds what it left
        if failure:
            error, trace = failure
            print(trace, flush=True)
            raise Failure(f"{label}: {type(error).__name__}: {error}")
        if code:
            raise Failure(f"{label}: its process ended with exit code {code} (out of memory?)")


def _check_files(processes: int) -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES_BESIDE + FILES_PER_PROCESS * processes
    if needed > limit:
        raise Failure(
            f"{processes} Lava processes need {needed} open files, the limit is {limit}; raise it with "
            f"`ulimit -Hn {needed}` or nofile in /etc/security/limits.conf"
        )
