"""The fixed-point engine: a Loihi program on the CPU, integer for integer, many samples at a time."""

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikeport.core.processes import check_processes
from spikeport.core.progress import Progress, silent
from spikeport.targets.loihi import arithmetic
from spikeport.targets.loihi.activity import Activity
from spikeport.targets.loihi.convolution import (
    FLOAT32_EXACT,
    Convolution,
    channels_last,
    convolution,
    exactly,
    worst_current,
)
from spikeport.targets.loihi.host import bias_mantissas
from spikeport.targets.loihi.neurons import run
from spikeport.targets.loihi.processes import in_parts
from spikeport.targets.loihi.program import INPUT, LoihiProgram, Population
from spikeport.targets.record import BY_NAME, SpikeRecord, joined

#: Values of the largest map over all steps of a batch, 64 MiB of float32: fewer cost time, for a layer begins anew for
#: every batch, more cost memory.
MAP_VALUES = 1 << 24
MAX_BATCH = 256
#: Parts per process: enough to show progress, and for a process that is done early to take another.
PARTS = 4


def simulate_fixed(
    program: LoihiProgram,
    x: np.ndarray,
    labels: np.ndarray | None = None,
    rasters: int = 0,
    progress: Progress = silent,
    processes: int = 1,
) -> SpikeRecord:
    """Runs float samples [N, C, H, W] ([T, N, C, H, W] where the input changes) through the program.

    A layer of depth d does at the chip's step t + d what it does here at step t; so the layers run one after
    the other, all T steps of each at once.

    Args:
        rasters: keep the full spike maps of that many first samples.
        progress: told the number of samples done.
        processes: share the samples among that many processes.

    Raises:
        SpikeportError: samples of another shape, none at all, NaN, or outside the graded range; fewer than one process,
            or one that died.
    """
    check_processes(processes)
    q = program.quantise(x)
    processes = min(processes, len(q))
    if processes > 1:
        size = math.ceil(len(q) / (PARTS * processes))
        axis = 0 if program.held else 1
        records = in_parts(partial(_simulate, program), x, axis, size, rasters, processes, progress)
        return replace(joined(records), labels=labels)
    size = _batch_size(program)
    parts = []
    with torch.inference_mode(), exactly():
        layers = [_layer(program, population) for population in program.populations]
        for start in range(0, len(q), size):
            batch = q[start : start + size]
            written = bias_mantissas(program, batch)
            ready = [_written(layer, written) for layer in layers]
            parts.append(_run(program, ready, torch.from_numpy(batch), max(0, min(rasters - start, len(batch)))))
            progress(start + len(batch), len(q))
    return replace(joined(parts), program=program.digest(), labels=labels)


def _simulate(program: LoihiProgram, x: np.ndarray, rasters: int) -> SpikeRecord:
    return simulate_fixed(program, x, rasters=rasters)


def class_currents(sums: np.ndarray, output: Population, time_steps: int) -> np.ndarray:
    """Integrator sums (v after T steps) to mean class currents, float64."""
    return sums / (output.scale * (1 << arithmetic.SHIFT) * time_steps)


def _batch_size(program: LoihiProgram) -> int:
    shapes = [program.input_shape, *(p.shape for p in program.populations)]
    largest = program.time_steps * max(int(np.prod(shape)) for shape in shapes)
    return min(max(MAP_VALUES // largest, 1), MAX_BATCH)


@dataclass(frozen=True, eq=False)
class _Layer:
    """A population and the synapses into it, ready to run."""

    population: Population
    forward: list[Convolution]
    recurrent: list[Convolution]


def _layer(program: LoihiProgram, population: Population) -> _Layer:
    incoming = [s for s in program.into(population.name) if not s.host]
    peak = sum(worst_current(program, s) for s in incoming)
    dtype = torch.float32 if peak < FLOAT32_EXACT else torch.float64  # holds the sum of all currents
    ready = [convolution(s, program.shape_of(s.pre), dtype) for s in incoming]
    forward = [c for c in ready if c.synapse.pre != population.name]
    recurrent = [c for c in ready if c.synapse.pre == population.name]
    return _Layer(population, forward, recurrent)


def _written(layer: _Layer, mantissas: dict[str, np.ndarray]) -> _Layer:
    """The layer with the biases that the host writes for a batch, where it does."""
    population = layer.population
    if population.name not in mantissas:
        return layer
    return replace(layer, population=replace(population, bias_mant=mantissas[population.name]))


def _run(program: LoihiProgram, layers: list[_Layer], q: Tensor, keep: int) -> SpikeRecord:
    """Graded samples [N, 1 or T, C, H, W] through all layers; rows of maps are time-major, as in training.

    The record of a batch; it does not name its program.
    """
    steps, n = program.time_steps, len(q)
    sent = {INPUT: Activity(channels_last(q.transpose(0, 1).flatten(0, 1).float()), spikes=False)}
    ahead = Counter(link.synapse.pre for layer in layers for link in layer.forward + layer.recurrent)
    out: dict[str, Any] = {k: {} for k in (*BY_NAME, "wraps", "saturations")}

    def by_sample(rows: np.ndarray) -> np.ndarray:
        """[T*N], or [N] of a held input, which counts at every step, to [N, T]."""
        return np.repeat(rows.reshape(-1, n).T, steps * n // len(rows), axis=1)

    for layer in layers:
        population = layer.population
        name = population.name
        feedback = partial(_returned, layer.recurrent) if layer.recurrent else None
        current = (
            _arriving(layer.forward, sent, n)
            if layer.forward
            else torch.zeros(1, n, *population.shape, dtype=torch.float32)
        )
        found = run(population, current, steps, feedback)
        out["wraps"][name], out["saturations"][name] = found.wraps, found.saturations
        sent[name] = Activity(found.spikes.flatten(0, 1))
        for link in layer.forward + layer.recurrent:
            pre = link.synapse.pre
            out["events"][link.synapse.name] = by_sample(sent[pre].events(link.synapse))
            ahead[pre] -= 1
            if not ahead[pre] and pre != name:  # maps of all layers would fill the memory
                del sent[pre]
        for synapse in program.into(name):
            if synapse.host:
                out["events"][synapse.name] = np.zeros((n, steps), np.int64)
        if population.spiking:
            out["spikes"][name] = by_sample(sent[name].counts())
            out["digests"][name] = by_sample(sent[name].checksums())
            if keep:
                out["rasters"][name] = (found.spikes[:, :keep].numpy() != 0).swapaxes(0, 1)
        if name == program.output:
            sums = found.v.flatten(1).long().numpy()
    outputs = class_currents(sums, program.population(program.output), steps)
    details = {"torch": str(torch.__version__)}
    return SpikeRecord("fixed", steps, program="", outputs=outputs, output_sums=sums, details=details, **out)


def _arriving(forward: list[Convolution], sent: dict[str, Activity], n: int) -> Tensor:
    """What the synapses from other layers add at each step, [T, N, C, H, W], or [1, N, C, H, W] where all is held."""
    parts = [link(sent[link.synapse.pre].values).unflatten(0, (-1, n)) for link in forward]
    # What moves first: what is held is added to each of its steps.
    total, *others = sorted(parts, key=len, reverse=True)
    for part in others:
        total += part
    return total


def _returned(recurrent: list[Convolution], spikes: Tensor) -> Tensor:
    """What the spikes [N, C, H, W] of a step add to the next."""
    return torch.stack([link(spikes) for link in recurrent]).sum(0)
