"""What a simulation saw: spikes, synaptic events and outputs, layer by layer and step by step."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from spikeport.core.arrays import kind_of
from spikeport.core.errors import SpikeportError
from spikeport.core.files import reading_archive, write_archive
from spikeport.core.settings import check_types

FORMAT = 2
#: What a record holds of every sample and step, by population or synapse.
COUNTS = ("spikes", "digests", "events")
#: The same and the spike maps.
BY_NAME = (*COUNTS, "rasters")


@dataclass(frozen=True, eq=False)
class SpikeRecord:
    """The record of N samples over T steps.

    Attributes:
        engine: "fixed" or "lava".
        time_steps: T.
        program: digest of the program that ran.
        outputs: mean class current, float64 [N, K].
        output_sums: the integer sums behind them, int64 [N, K].
        spikes: population -> spikes per sample and step, int64 [N, T].
        digests: population -> CRC-32 of the packed spike map (H, W, C order) per sample and step, uint32 [N, T].
        events: synapse -> synaptic events (one weight read and added; padding excluded), int64 [N, T].
        wraps: population -> times a current u wrapped around its 24 bits.
        saturations: population -> times a voltage v stood at its 24-bit limit.
        labels: true classes, int64 [N], or None.
        rasters: population -> spikes of the first samples, bool [n, T, C, H, W]; empty unless asked for.
        details: versions and options of the engine (JSON values), and "samples_digest": which samples these were.
    """

    engine: str
    time_steps: int
    program: str
    outputs: np.ndarray
    output_sums: np.ndarray
    spikes: dict[str, np.ndarray]
    digests: dict[str, np.ndarray]
    events: dict[str, np.ndarray]
    wraps: dict[str, int]
    saturations: dict[str, int]
    labels: np.ndarray | None = None
    rasters: dict[str, np.ndarray] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return len(self.outputs)

    @property
    def accuracy(self) -> float | None:
        """Top-1 accuracy, or None where no labels are known."""
        if self.labels is None:
            return None
        return float((self.outputs.argmax(1) == self.labels).mean())

    def save(self, path: Path | str) -> None:
        """Writes an .npz file under just that name."""
        arrays: dict[str, Any] = {"outputs": self.outputs, "output_sums": self.output_sums}
        if self.labels is not None:
            arrays["labels"] = self.labels
        for kind in BY_NAME:
            arrays.update({f"{kind}/{name}": value for name, value in getattr(self, kind).items()})
        names = ("engine", "time_steps", "program", "wraps", "saturations", "details")
        header = {"format": FORMAT} | {name: getattr(self, name) for name in names}
        write_archive(path, header, arrays)

    @staticmethod
    def load(path: Path | str) -> "SpikeRecord":
        """Raises SpikeportError where the file is missing, damaged, or not a record."""
        with reading_archive(path, "a spike record", "`spikeport simulate RUN --target loihi` writes it") as archive:
            header = json.loads(str(archive["header"]))
            if "populations" in header:
                raise SpikeportError("it is a Loihi program")
            if header.pop("format") != FORMAT:
                raise SpikeportError("written by another version")
            kinds: dict[str, Any] = {k: {} for k in BY_NAME}
            plain: dict[str, Any] = {}
            for name in archive.files:
                kind, _, item = name.partition("/")
                if item:
                    kinds[kind][item] = archive[name]
                elif name != "header":
                    plain[name] = archive[name]
            record = SpikeRecord(**header, **plain, **kinds)
            _check_fields(record)
            return record


def samples_digest(x: np.ndarray) -> str:
    """Which samples these are: the same on machines that round the normalisation of pixels differently."""
    steps = np.rint(np.clip(np.asarray(x, np.float64), -1e12, 1e12) * 64).astype(np.int64)
    return hashlib.sha256(repr(steps.shape).encode() + steps.tobytes()).hexdigest()


def may_be_of(digest: str | None, x: np.ndarray) -> bool:
    """Whether a record with this digest can be of the samples ``x``; an older one has none, which rules nothing out."""
    return digest is None or digest == samples_digest(x)


def _check_fields(record: SpikeRecord) -> None:
    """Raises SpikeportError, naming the field, where a record cannot be what an engine saw."""
    check_types(record)
    samples, steps = record.samples, record.time_steps
    outputs, sums = record.outputs, record.output_sums
    if steps < 1:
        raise SpikeportError(f"time_steps is {steps}; expected at least 1")
    if outputs.ndim != 2 or outputs.dtype.kind != "f" or not np.isfinite(outputs).all():
        raise SpikeportError(f"outputs is {kind_of(outputs)}; expected finite numbers [N, K]")
    if sums.shape != outputs.shape or sums.dtype.kind != "i":
        raise SpikeportError(f"output_sums is {kind_of(sums)}; expected int64 {list(outputs.shape)}")
    counts = [(f"{k}/{n}", c) for k in COUNTS for n, c in getattr(record, k).items()]
    for name, count in counts:
        if count.shape != (samples, steps) or count.dtype.kind not in "iu" or count.min(initial=0) < 0:
            raise SpikeportError(
                f"{name} is {kind_of(count)}; expected whole numbers [{samples}, {steps}], none below 0"
            )
    for name, maps in record.rasters.items():
        if maps.dtype != bool or maps.ndim != 5 or len(maps) > samples or maps.shape[1] != steps:
            raise SpikeportError(f"rasters/{name} is {kind_of(maps)}; expected bool [n, {steps}, C, H, W]")
    layers = record.spikes.keys()
    if layers != record.digests.keys() or not record.rasters.keys() <= layers:
        raise SpikeportError("spikes, digests and rasters are of different layers")
    for kind in ("wraps", "saturations"):
        values: dict[str, Any] = getattr(record, kind)
        if not layers <= values.keys() or any(type(v) is not int or v < 0 for v in values.values()):
            raise SpikeportError(f"{kind} does not name a count for every layer")
    labels = np.zeros(samples, int) if record.labels is None else record.labels
    if labels.shape != (samples,) or labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
        raise SpikeportError(f"labels is {kind_of(labels)}; expected classes [{samples}], none below 0")


def joined(parts: list[SpikeRecord]) -> SpikeRecord:
    """The record of several runs of one program, one after the other."""
    arrays: dict[str, Any] = {
        kind: {
            name: np.concatenate([getattr(p, kind)[name] for p in parts if name in getattr(p, kind)])
            for name in getattr(parts[0], kind)
        }
        for kind in BY_NAME
    }
    for kind in ("wraps", "saturations"):
        arrays[kind] = {name: sum(getattr(p, kind)[name] for p in parts) for name in getattr(parts[0], kind)}
    for name in ("outputs", "output_sums"):
        arrays[name] = np.concatenate([getattr(p, name) for p in parts])
    return replace(parts[0], **arrays)


def differences(a: SpikeRecord, b: SpikeRecord) -> list[str]:
    """One line per place where two records of the same program disagree; empty where they are equal.

    Spike maps are compared through their CRC-32 at every layer, sample and step, so equal counts in other
    places do not pass.

    Raises:
        SpikeportError: the records are of different programs or samples.
    """
    if a.program != b.program or a.time_steps != b.time_steps:
        raise SpikeportError("the two records are of different programs; simulate both engines again")
    n = min(a.samples, b.samples)
    found = []
    for kind in COUNTS:
        left, right = getattr(a, kind), getattr(b, kind)
        for name in left:
            wrong = left[name][:n] != right[name][:n]
            if wrong.any():
                sample, step = np.argwhere(wrong)[0]
                found.append(
                    f"{name}: {kind} differ at {int(wrong.sum())} of {wrong.size} (sample, step); first at sample "
                    f"{sample}, step {step}: {left[name][sample, step]} in {a.engine}, "
                    f"{right[name][sample, step]} in {b.engine}"
                )
    if not np.array_equal(a.output_sums[:n], b.output_sums[:n]):
        found.append(f"outputs: integer class sums differ between {a.engine} and {b.engine}")
    return found
