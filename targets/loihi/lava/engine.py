"""The Lava engine: a Loihi program in Intel's own simulator, one worker process reused for many programs."""

import atexit
import threading
from dataclasses import replace

import numpy as np

from spikeport.core.errors import SpikeportError
from spikeport.core.progress import Progress, silent
from spikeport.targets.loihi.convolution import worst_current
from spikeport.targets.loihi.lava.environment import require
from spikeport.targets.loihi.lava.job import run_job
from spikeport.targets.loihi.lava.process import Worker
from spikeport.targets.loihi.program import INPUT, LoihiProgram
from spikeport.targets.record import SpikeRecord, joined

#: "fast" replaces Lava's convolution by an exact one of ours; "stock" is Lava's own (ten times slower or more).
CONVOLUTIONS = ("fast", "stock")
#: What Lava's own arithmetic holds, beyond which it wraps in another place than the chip.
SYNAPSE_SUM_MAX = (1 << 23) - 1
INPUT_SUM_MAX = (1 << 25) - 1
BIAS_MANT_MAX = (1 << 15) - 1
#: Seconds; a year, which sockets hold on every system.
TIMEOUT_MAX = 365 * 24 * 3600

_lock = threading.Lock()
_worker: Worker | None = None


def simulate_lava(
    program: LoihiProgram,
    x: np.ndarray,
    labels: np.ndarray | None = None,
    rasters: int = 0,
    progress: Progress = silent,
    convolution: str = "fast",
    timeout: float | None = None,
) -> SpikeRecord:
    """Runs float samples through the program in Lava; arguments and record are those of ``simulate_fixed``.

    Args:
        rasters: keep the full spike maps of that many first samples.
        progress: told the number of samples done.
        convolution: "fast" or "stock", see ``CONVOLUTIONS``; neurons and routing are always Lava's.
        timeout: seconds; by default about ten times what the work should need.

    Raises:
        SpikeportError: no environment, samples or a program Lava cannot take, a failure inside Lava, its
            death, or the time is over. Nothing is left running then, and the next call starts afresh.
    """
    if convolution not in CONVOLUTIONS:
        raise SpikeportError(f"convolution {convolution!r} is unknown; choose one of {', '.join(CONVOLUTIONS)}")
    if timeout is not None and not 0 < timeout <= TIMEOUT_MAX:
        raise SpikeportError(f"a timeout of {timeout:g} s; give more than 0 s, {TIMEOUT_MAX:,} at most")
    _check(program)
    q = program.quantise(x)
    if timeout is None:
        timeout = time_limit(program, len(q), convolution)
    with _lock:
        if any(s.pre == s.post for s in program.synapses):
            # A recurrent synapse would carry a sample's last spikes into the next one.
            parts = [
                run_job(_ready_worker(), program, q[k : k + 1], int(k < rasters), convolution, timeout)
                for k in range(len(q))
            ]
            record = joined(parts)
            progress(len(q), len(q))
        else:
            record = run_job(_ready_worker(), program, q, rasters, convolution, timeout, progress)
    return replace(record, labels=labels)


def time_limit(program: LoihiProgram, samples: int, convolution: str) -> float:
    """Seconds after which a simulation must have hung: a minute and ten times the expected work."""
    leaves = 1 + len(program.populations) + len(program.synapses)
    step = 0.001 * leaves
    for synapse in program.synapses:
        kernels = synapse.weight.shape[0] * synapse.weight.shape[1]
        _, height, width = program.shape_of(synapse.pre)
        products = synapse.weight.size * height * width
        step += 20e-6 * kernels + 1e-9 * products if convolution == "stock" else 1e-9 * products
    return 60 + 0.5 * leaves + 10 * step * (samples * program.time_steps + program.depth)


def shutdown() -> None:
    """Ends the worker, if there is one; the next simulation starts another."""
    global _worker
    if _worker is not None:
        _worker.discard()
        _worker = None


atexit.register(shutdown)


def _ready_worker() -> Worker:
    global _worker
    python = require()
    if _worker is None or not _worker.alive or _worker.python != python:
        shutdown()
        _worker = Worker(python)
    return _worker


def _check(program: LoihiProgram) -> None:
    """Refuses what Lava would compute otherwise than the chip, without a word."""
    depths = {INPUT: 0} | {population.name: population.depth for population in program.populations}
    for population in program.populations:
        name, incoming = population.name, program.into(population.name)
        if population.depth != 1 + max((depths[s.pre] for s in incoming if s.pre != name), default=-1):
            raise SpikeportError(f"{name}: depth {population.depth} is not one more than its inputs'; compile again")
        for synapse in incoming:
            # Only the input can be delayed.
            if synapse.pre not in (INPUT, name) and depths[synapse.pre] != population.depth - 1:
                raise SpikeportError(
                    f"{synapse.name}: goes from depth {depths[synapse.pre]} to {population.depth}, Lava needs one step "
                    "a synapse; compile again, it adds relays"
                )
        currents = {s.name: worst_current(program, s) for s in incoming if not s.host}
        for link, current in currents.items():
            _limit(f"{link}: current", current, SYNAPSE_SUM_MAX, "smaller weights")
        _limit(f"{name}: current", sum(currents.values()), INPUT_SUM_MAX, "smaller weights")
        mantissa = int(np.abs(population.bias_mant).max(initial=0))
        _limit(f"{name}: bias mantissa", mantissa, BIAS_MANT_MAX, "a larger bias_exp")


def _limit(what: str, reached: int, limit: int, remedy: str) -> None:
    if reached > limit:
        raise SpikeportError(f"{what} can reach {reached}, Lava wraps above {limit}; compile with {remedy}")
