"""Layer by layer: what training promised beside what the target's own counts say.

The same Horowitz constants are applied to every witness, on the same samples, and the analog first layer is charged
alike (once per inference), so that any difference between witnesses is spikes alone.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from spikeport.core.errors import SpikeportError
from spikeport.profiling.counts import LayerCounts, ModelCounts
from spikeport.profiling.energy import horowitz
from spikeport.profiling.loihi_energy import host_macs
from spikeport.targets.loihi.program import INPUT, LoihiProgram, Population, Synapse
from spikeport.targets.record import SpikeRecord

TRAINING = "training"
#: A relative difference of synaptic operations above this is marked in the report.
MARK_ABOVE = 0.1
#: Rows whose neurons stand for something else than a LIF layer of the model.
NO_LIF = ("MaxPool2d", "Relay")


@dataclass(frozen=True)
class Row:
    """One synaptic layer and the neurons behind it; all counts are means per image over all steps.

    Attributes:
        layer: the convolution, linear or pooling layer of the model ("" where only the target has it).
        neurons_layer: the spiking layer behind it ("" for class currents).
        neurons: number of those neurons.
        macs: multiply-accumulates on analog input, as the model executes them.
        analog: the layer takes the network's input, so that every witness multiplies; else only training does.
        acs: witness -> synaptic operations.
        spikes: witness -> spikes of the neurons.
        rate: witness -> spikes per neuron and step.
        energy_nj: witness -> energy of ``acs`` and ``macs`` under Horowitz's constants, nJ.
        divergence: engine -> how far its spikes are from training's: the absolute differences of the counts of every
            image and step, summed, over training's spikes.
        graded_events: engine -> synaptic events of graded input as the target executed them, at every step.
        cnn_macs, cnn_energy_nj: the same layer of the CNN twin, dense.
        note: why target and training may differ here.
    """

    layer: str
    kind: str
    neurons_layer: str
    neurons: int
    macs: float
    analog: bool
    acs: dict[str, float]
    spikes: dict[str, float]
    rate: dict[str, float]
    energy_nj: dict[str, float]
    divergence: dict[str, float] = field(default_factory=dict)
    graded_events: dict[str, float] = field(default_factory=dict)
    cnn_macs: float | None = None
    cnn_energy_nj: float | None = None
    note: str = ""

    def difference(self, witness: str) -> float | None:
        """Relative difference of synaptic operations to training; None where either has none."""
        if not self.acs.get(TRAINING) or witness not in self.acs:
            return None
        return self.acs[witness] / self.acs[TRAINING] - 1

    def macs_of(self, witness: str) -> float:
        """What this witness multiplies; a chip adds, except where it takes the network's input."""
        return self.macs if self.analog or witness == TRAINING else 0.0

    def marked(self, witness: str) -> bool:
        """Whether the witness's synaptic operations differ from training's by more than ``MARK_ABOVE``."""
        difference = self.difference(witness)
        return difference is not None and abs(difference) > MARK_ABOVE

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    training: ModelCounts | None,
    program: LoihiProgram,
    records: dict[str, SpikeRecord],
    cnn: ModelCounts | None = None,
) -> list[Row]:
    """One row per synaptic layer, in the order they run.

    Args:
        training: counts of the PyTorch model on the records' samples; None for a network we did not train.
        records: engine -> record of ``program``.
        cnn: counts of the CNN twin.

    Every witness is averaged over the samples that all of them saw: the first of each.

    Raises:
        SpikeportError: a record of another program or of zero samples, or another number of time steps.
    """
    digest = program.digest()
    for engine, record in records.items():
        if record.program != digest:
            raise SpikeportError(f"the {engine} record is of another program; simulate again")
        _require_whole(engine, record, program)
    if training is not None and training.time_steps != program.time_steps:
        raise SpikeportError(
            f"the program runs {program.time_steps} steps, the model {training.time_steps}; export the model again"
        )
    samples = common_samples(training, records)
    if samples < 1:
        raise SpikeportError("zero samples in a record; simulate at least one")
    rows = []
    sources: dict[str, list[Synapse]] = {}
    for synapse in program.synapses:
        sources.setdefault(synapse.source or synapse.name, []).append(synapse)
    order = [n for n in training.layers if n in sources] if training else []
    shown: set[str] = set()
    for source in [*order, *(s for s in sources if s not in order)]:
        row = _row(source, sources[source], training, program, records, cnn, samples)
        if row.neurons_layer and row.neurons_layer in shown:
            # A second branch into the same neurons: their spikes are shown once.
            row = replace(row, spikes={}, rate={}, divergence={})
        shown.add(row.neurons_layer)
        rows.append(row)
    return rows


def _require_whole(engine: str, record: SpikeRecord, program: LoihiProgram) -> None:
    """Raises SpikeportError where the record lacks a layer of the program, or has other steps or outputs."""
    wanted = {
        "time_steps": (record.time_steps, program.time_steps),
        "outputs": (record.outputs.shape[1], program.population(program.output).neurons),
        "spikes": (sorted(record.spikes), sorted(p.name for p in program.populations if p.spiking)),
        "events": (sorted(record.events), sorted(s.name for s in program.synapses)),
    }
    for name, (found, expected) in wanted.items():
        if found != expected:
            raise SpikeportError(f"the {engine} record is damaged: its {name} are not the program's; simulate again")


def common_samples(training: ModelCounts | None, records: dict[str, SpikeRecord]) -> int:
    """How many first samples every witness saw."""
    return min([r.samples for r in records.values()] + ([training.samples] if training else []))


def _mean(counts: list[np.ndarray], samples: int) -> float:
    """Mean per image of counts [N, T], summed, over the first ``samples`` images."""
    return sum(float(c[:samples].sum()) for c in counts) / samples


def _divergence(expected: np.ndarray, found: np.ndarray) -> float:
    """Absolute differences of counts [N, T], summed, over the expected spikes."""
    return float(np.abs(expected - found).sum()) / max(float(expected.sum()), 1.0)


def _row(
    source: str,
    synapses: list[Synapse],
    training: ModelCounts | None,
    program: LoihiProgram,
    records: dict[str, SpikeRecord],
    cnn: ModelCounts | None,
    samples: int,
) -> Row:
    populations = {s.post: program.population(s.post) for s in synapses}
    spiking = [p for p in populations.values() if p.spiking]
    neurons_layer = spiking[0].source if spiking else ""
    if neurons_layer:  # a layer over a concatenation is several populations
        spiking = [p for p in program.populations if p.source == neurons_layer]
    counts = training.layers.get(source) if training else None
    neurons = training.layers.get(neurons_layer) if training else None
    analog = all(s.pre == INPUT for s in synapses)
    acs: dict[str, float] = {}
    spikes: dict[str, float] = {}
    divergence: dict[str, float] = {}
    graded: dict[str, float] = {}
    macs = 0.0
    if counts is not None and training is not None:
        operations = counts.acs if counts.kind != "LIF" else _passed_on(synapses, program, counts)
        if operations is not None:
            acs[TRAINING] = _mean([operations], samples)
        macs = _mean([counts.macs], samples)
        if neurons is not None:
            spikes[TRAINING] = _mean([neurons.spikes], samples)
    for engine, record in records.items():
        events = _mean([record.events[s.name] for s in synapses if not s.host], samples)
        if analog:
            graded[engine], acs[engine] = events, 0.0
        else:
            acs[engine] = events
        fired = [record.spikes[p.name][:samples] for p in spiking]
        spikes[engine] = _mean(fired, samples)
        if neurons is not None and fired:
            divergence[engine] = _divergence(neurons.spikes[:samples], sum(fired[1:], fired[0]))
    if counts is None and analog:
        on_host = host_macs(replace(program, synapses=tuple(synapses)))
        macs = on_host or max(graded.values(), default=0.0) / program.time_steps
    total = sum(p.neurons for p in spiking or populations.values())
    cnn_counts = cnn.layers.get(source) if cnn else None
    cnn_macs = float(cnn_counts.dense) if cnn_counts and cnn_counts.kind != "MaxPool2d" else None
    return Row(
        layer=source if any(s.source for s in synapses) else "",
        kind=_kind(counts, populations),
        neurons_layer=neurons_layer,
        neurons=total,
        macs=macs,
        analog=analog,
        acs=acs,
        spikes=spikes,
        rate={w: count / (total * program.time_steps) for w, count in spikes.items()} if spiking else {},
        energy_nj={w: horowitz(count, macs if analog or w == TRAINING else 0.0) for w, count in acs.items()},
        divergence=divergence,
        graded_events=graded,
        cnn_macs=cnn_macs,
        cnn_energy_nj=None if cnn_macs is None else horowitz(0, cnn_macs),
        note=_note(synapses, counts, spiking, program, macs),
    )


def _passed_on(synapses: list[Synapse], program: LoihiProgram, counts: LayerCounts) -> np.ndarray | None:
    """Additions of a residual connection: one per spike, where every channel is passed on once; else None."""
    passed = sum(s.weight.shape[0] for s in synapses)
    channels = sum(program.shape_of(name)[0] for name in {s.pre for s in synapses})
    return counts.spikes if passed == channels else None


def _kind(counts: LayerCounts | None, populations: dict[str, Population]) -> str:
    if counts is not None:
        return "Skip" if counts.kind == "LIF" else counts.kind
    return "Relay" if all(not p.source for p in populations.values()) else "Synapses"


def _note(
    synapses: list[Synapse], counts: LayerCounts | None, spiking: list[Population], program: LoihiProgram, macs: float
) -> str:
    if all(s.host for s in synapses):
        return "computed by the host, once, and added to the neurons' biases"
    if all(s.pre == INPUT for s in synapses):
        return f"analog input: charged once; the chip receives it at each of the {program.time_steps} steps"
    if macs:
        return "analog in training (multiplied at every step); the chip composes it with the layer before it and adds"
    if counts is not None and counts.kind == "MaxPool2d":
        return "max-pooling of spikes: OR neurons on the chip"
    if not spiking:
        return "class currents: no neurons fire here"
    return ""


def witnesses(rows: list[Row]) -> list[str]:
    """Who counted: training, engines; in the order of the rows."""
    return list(dict.fromkeys(w for row in rows for w in row.acs))


def totals(rows: list[Row]) -> dict[str, dict[str, float]]:
    """witness -> sums per image: acs, macs, energy_nj, spikes."""
    return {
        w: {
            "acs": sum(row.acs.get(w, 0.0) for row in rows),
            "macs": sum(row.macs_of(w) for row in rows),
            "energy_nj": sum(row.energy_nj.get(w, 0.0) for row in rows),
            "spikes": sum(row.spikes.get(w, 0.0) for row in rows),
        }
        for w in witnesses(rows)
    }


def first_marked(rows: list[Row], witness: str) -> str | None:
    """The first layer whose synaptic operations differ from training's by more than ``MARK_ABOVE``."""
    return next((row.layer for row in rows if row.marked(witness)), None)


def mean_rate(rows: list[Row], witness: str, time_steps: int) -> float | None:
    """Average firing rate over the LIF layers a witness saw (pooling and relay neurons left out)."""
    lifs = [row for row in rows if row.kind not in NO_LIF and witness in row.spikes and row.neurons_layer]
    neurons = sum(row.neurons for row in lifs)
    return sum(row.spikes[witness] for row in lifs) / (neurons * time_steps) if neurons else None
