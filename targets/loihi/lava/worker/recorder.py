"""What one Lava process sees, step by step, written to a file when its last step is done.

Lava hands out its variables one number a message, so each process keeps its own counts and writes them itself.
"""

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Plan:
    """What to record; travels to the process in Lava's ``proc_params``.

    Attributes:
        path: the .npz to write.
        delay: Lava's steps before this process sees the first sample.
        time_steps: T, the steps of a sample.
        samples: N; steps beyond N * T are not recorded.
        rasters: keep the spike maps of that many first samples.
        fan_out: synapse -> events that each neuron of the map causes when it is active, int64 [W, H, C].
    """

    path: Path
    delay: int
    time_steps: int
    samples: int
    rasters: int = 0
    fan_out: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return self.samples * self.time_steps

    def step(self, lava_step: int) -> int | None:
        """Lava's step (from 1) as a step of the samples (from 0), or None where it belongs to none."""
        step = lava_step - 1 - self.delay
        return step if 0 <= step < self.steps else None


class Recorder:
    """The counts of one process, by name, and its spike maps."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.columns: dict[str, list] = {}
        self.totals: dict[str, int] = {"wraps": 0, "saturations": 0}
        self.rasters: list[np.ndarray] = []
        self.sums: list[np.ndarray] = []

    def events(self, active: np.ndarray) -> None:
        """Synaptic events of a step whose active neurons are ``active``, bool [W, H, C]."""
        for name, reached in self.plan.fan_out.items():
            self._add(f"events/{name}", int(reached[active].sum()))

    def spikes(self, step: int, spikes: np.ndarray) -> None:
        """Count and checksum of a step's spikes, bool [W, H, C]."""
        self._add("spikes", int(np.count_nonzero(spikes)))
        # Height, width, channels: the order of the checksum.
        self._add("digests", zlib.crc32(np.packbits(spikes.transpose(1, 0, 2)).tobytes()))
        if step < self.plan.rasters * self.plan.time_steps:
            self.rasters.append(spikes.transpose(2, 1, 0).copy())

    def count(self, kind: str, number: int) -> None:
        self.totals[kind] += number

    def voltages(self, step: int, v: np.ndarray) -> None:
        """Keeps v [W, H, C] of the last step of each sample: what an integrator has summed."""
        if (step + 1) % self.plan.time_steps == 0:
            self.sums.append(v.transpose(2, 1, 0).ravel().astype(np.int64))

    def end(self, step: int) -> None:
        """Writes everything after the last step."""
        if step + 1 < self.plan.steps:
            return
        rasters = np.array(self.rasters, bool)
        if self.rasters:
            rasters = rasters.reshape(self.plan.rasters, self.plan.time_steps, *rasters.shape[1:])
        arrays: dict[str, Any] = {"rasters": rasters, "sums": np.array(self.sums, np.int64), **self.totals}
        for name, column in self.columns.items():
            arrays[name] = np.array(column, np.uint32 if name == "digests" else np.int64)
        np.savez(self.plan.path, **arrays)

    def _add(self, name: str, value: int) -> None:
        self.columns.setdefault(name, []).append(value)
