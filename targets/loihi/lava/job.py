"""One job: a program and its samples to the worker, what Lava counted back as a SpikeRecord."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from spikeport.core.progress import Progress, silent
from spikeport.targets.loihi.fixed import class_currents
from spikeport.targets.loihi.host import bias_mantissas
from spikeport.targets.loihi.lava.process import Worker
from spikeport.targets.loihi.program import LoihiProgram
from spikeport.targets.record import SpikeRecord


def run_job(
    worker: Worker,
    program: LoihiProgram,
    q: np.ndarray,
    rasters: int,
    convolution: str,
    limit: float,
    progress: Progress = silent,
) -> SpikeRecord:
    """Runs the graded samples q (int [N, 1 or T, C, H, W], from ``program.quantise``) within ``limit`` seconds.

    Raises:
        SpikeportError: see ``Worker.run``.
    """
    folder = Path(tempfile.mkdtemp(dir=worker.folder))
    try:
        program.save(folder / "program.npz")
        np.save(folder / "input.npy", q.astype(np.int8) if program.input_mode == "graded" else q)
        for name, mantissas in bias_mantissas(program, q).items():
            index = [p.name for p in program.populations].index(name)
            np.save(folder / f"bias-{index}.npy", mantissas.astype(np.int16))
        job = {"folder": str(folder), "rasters": min(rasters, len(q)), "convolution": convolution}
        finished = worker.run(job, limit, progress)
        return _collect(folder, program, len(q), worker.versions | finished | {"convolution": convolution})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _collect(folder: Path, program: LoihiProgram, samples: int, details: dict[str, Any]) -> SpikeRecord:
    """Puts together the files that Lava's processes wrote, one each."""
    record = SpikeRecord(
        engine="lava",
        time_steps=program.time_steps,
        program=program.digest(),
        outputs=np.empty(0),
        output_sums=np.empty(0),
        spikes={},
        digests={},
        events={},
        wraps={},
        saturations={},
        details=details,
    )
    record.events.update(
        {s.name: np.zeros((samples, program.time_steps), np.int64) for s in program.synapses if s.host}
    )
    for path in folder.glob("source-*.npz"):
        with np.load(path) as archive:
            record.events.update(_events(archive, samples))
    for index, population in enumerate(program.populations):
        with np.load(folder / f"population-{index}.npz") as archive:
            record.events.update(_events(archive, samples))
            record.wraps[population.name] = int(archive["wraps"])
            record.saturations[population.name] = int(archive["saturations"])
            if not population.spiking:
                sums = archive["sums"]
                continue
            record.spikes[population.name] = archive["spikes"].reshape(samples, -1)
            record.digests[population.name] = archive["digests"].reshape(samples, -1)
            if len(archive["rasters"]):
                record.rasters[population.name] = archive["rasters"]
    outputs = class_currents(sums, program.population(program.output), program.time_steps)
    return replace(record, outputs=outputs, output_sums=sums)


def _events(archive: dict[str, np.ndarray], samples: int) -> dict[str, np.ndarray]:
    prefix = "events/"
    return {key.removeprefix(prefix): archive[key].reshape(samples, -1) for key in archive if key.startswith(prefix)}
