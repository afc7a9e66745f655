"""Layer by layer: what training promised beside what the target's own counts say.

The same Horowitz constants are applied to every witness, on the same samples, and the analog first layer is charged
alike (once per inference where the input is held), so that any difference between witnesses is spikes alone; but where
the chip's synapses are others than training's (``Row.comparable``).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from spikeport.core.errors import SpikeportError
from spikeport.profiling.counts import LayerCounts, ModelCounts
from spikeport.profiling.loihi_energy import dense_operations
from spikeport.profiling.rows import TRAINING, Row
from spikeport.targets.loihi.program import INPUT, LoihiProgram, Synapse
from spikeport.targets.record import SpikeRecord


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
        SpikeportError: a record of another program or of zero samples, another number of time steps, or a counted layer
            that is in none of the program's synapses.
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
    sources: dict[str, list[Synapse]] = {}
    for synapse in program.synapses:
        sources.setdefault(synapse.source or synapse.name, []).append(synapse)
    counted = {**(training.layers if training else {}), **(cnn.layers if cnn else {})}
    layers = _layers(sources, counted)
    place = {name: number for number, name in enumerate(counted)}
    shown: set[str] = set()
    order = sorted(sources, key=lambda s: min((place[n] for n in layers[s] if n in place), default=len(place)))
    case = _Case(program, records, training, cnn, samples)
    return [_row(case, s, layers[s], sources[s], shown) for s in order]


def _layers(sources: dict[str, list[Synapse]], counted: dict[str, LayerCounts]) -> dict[str, list[str]]:
    """Source -> the layers in its row: every counted layer is in exactly one.

    Raises:
        SpikeportError: a counted layer is in none, so that its operations would be in no sum.
    """
    taken = set(sources)
    layers: dict[str, list[str]] = {}
    for source, synapses in sources.items():
        behind = dict.fromkeys(name for s in synapses for name in s.composed if name not in taken)
        layers[source] = [source, *behind]
        taken.update(behind)
    for name, counts in counted.items():
        if name not in taken and counts.kind not in ("LIF", "MaxPool2d") and counts.dense:
            raise SpikeportError(f"{name}: in no synapse of the program, so that no row would count it; export again")
    return layers


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


@dataclass(frozen=True, eq=False)
class _Case:
    """What the rows are made of; ``samples``: how many first images every witness saw."""

    program: LoihiProgram
    records: dict[str, SpikeRecord]
    training: ModelCounts | None
    cnn: ModelCounts | None
    samples: int

    def mean(self, counts: Iterable[np.ndarray]) -> float:
        """Mean per image of counts [N, T], summed."""
        return sum(float(c[: self.samples].sum()) for c in counts) / self.samples

    def counted(self, layers: list[str]) -> dict[str, LayerCounts]:
        """Training's counts of those layers that do something; an average does nothing itself."""
        found = self.training.layers if self.training else {}
        return {n: found[n] for n in layers if n in found and (found[n].dense or found[n].kind == "LIF")}


def _row(case: _Case, source: str, layers: list[str], synapses: list[Synapse], shown: set[str]) -> Row:
    """The row of ``synapses``, which come of ``layers``; ``shown``: layers of neurons in the rows before, added to."""
    program = case.program
    trained = case.counted(layers)
    name, *composed = trained or [source]
    counts = trained.get(name)
    # What the chip has in one synapse with it, and whether its operations are counted in this row.
    working = [n for n, c in case.training.layers.items() if c.dense] if case.training else []
    joined = {n: n in layers for s in synapses for n in s.composed if n in working and n != name}
    posts = [program.population(post) for post in dict.fromkeys(s.post for s in synapses)]
    behind = list(dict.fromkeys(p.source for p in posts if p.spiking and p.source))
    own = [n for n in behind if n not in shown]  # a second branch into the same neurons does not repeat them
    shown.update(own)
    if behind:  # a layer over a concatenation is several populations
        posts = [p for p in program.populations if p.spiking and p.source in own]
    neurons = sum(p.neurons for p in posts)
    comparable = not joined and _are_alike(synapses, counts, behind, program)
    macs, chip_macs, acs, graded = _operations(case, synapses, comparable, list(trained.values()))
    spikes, divergence = _spikes(case, [p.name for p in posts if p.spiking], own)
    cnn = case.cnn.layers if case.cnn else {}
    dense = [cnn[n].dense for n in layers if n in cnn and cnn[n].kind != "MaxPool2d"]
    return Row(
        layer=name if any(s.source for s in synapses) else "",
        composed=tuple(composed),
        kind=_kind(counts, synapses, program),
        neurons_layer=", ".join(behind),
        neurons=neurons,
        macs=macs,
        chip_macs=chip_macs,
        analog=_analog(synapses, program) == synapses,
        comparable=comparable,
        acs=acs,
        spikes=spikes,
        rate={w: count / (neurons * program.time_steps) for w, count in spikes.items()},
        divergence=divergence,
        graded_events=graded,
        cnn_macs=float(sum(dense)) if dense else None,
        note=_note(synapses, counts, behind, program, macs, joined, graded),
    )


def _analog(synapses: list[Synapse], program: LoihiProgram) -> list[Synapse]:
    """Those that take the network's analog input."""
    return [] if program.takes_spikes else [s for s in synapses if s.pre == INPUT]


def _operations(
    case: _Case, synapses: list[Synapse], comparable: bool, trained: list[LayerCounts]
) -> tuple[float, float, dict[str, float], dict[str, float]]:
    """``macs``, ``chip_macs``, ``acs`` and ``graded_events`` of a row."""
    program, analog = case.program, _analog(synapses, case.program)
    alike = comparable and analog == synapses  # then every witness has the same operations
    # What is held for all steps, and meets no spikes on its way, is charged once.
    once = program.held and all(s.pre == INPUT for s in synapses)
    charged = program.time_steps if once else 1
    times = {s.name: 1 if once or s.host else program.time_steps for s in analog}
    macs = chip_macs = float(sum(dense_operations(program, [s]) * times[s.name] for s in analog))
    acs: dict[str, float] = {}
    graded: dict[str, float] = {}
    if case.training is not None:
        # Neurons whose spikes reach others, but not through sums alone: training has no such operations.
        found = [c.acs for c in trained if c.kind != "LIF" or c.acs.any() or not c.spikes.any()]
        if found:
            acs[TRAINING] = case.mean(found)
        macs = case.mean(c.macs for c in trained)  # none where the input enters neurons as it is
        if alike and trained:  # images that hold spikes are additions in every witness
            chip_macs = macs
    for engine, record in case.records.items():
        events = {s.name: record.events[s.name] for s in synapses if not s.host}
        if analog:
            graded[engine] = case.mean(e for name, e in events.items() if name in times)
        acs[engine] = case.mean(e for name, e in events.items() if name not in times) / charged
        if alike:
            acs[engine] = acs.get(TRAINING, 0.0)
    return macs, chip_macs, acs, graded


def _spikes(case: _Case, populations: list[str], layers: list[str]) -> tuple[dict[str, float], dict[str, float]]:
    """``spikes`` and ``divergence`` of the neurons in a row: the chip's populations, training's layers."""
    spikes: dict[str, float] = {}
    divergence: dict[str, float] = {}
    trained = [case.training.layers[n].spikes for n in layers if n in case.training.layers] if case.training else []
    if trained:
        spikes[TRAINING] = case.mean(trained)
    for engine, record in case.records.items():
        found = [record.spikes[name] for name in populations]
        if found:
            spikes[engine] = case.mean(found)
        if trained and found:
            expected = np.sum([c[: case.samples] for c in trained], axis=0)
            apart = np.abs(expected - np.sum([c[: case.samples] for c in found], axis=0))
            divergence[engine] = float(apart.sum()) / max(float(expected.sum()), 1.0)
    return spikes, divergence


def _are_alike(synapses: list[Synapse], counts: LayerCounts | None, behind: list[str], program: LoihiProgram) -> bool:
    """Whether the chip has training's synapses: no kernel that grew by zeros, nor one for each of two layers behind."""
    if counts is None or counts.kind not in ("Conv2d", "Linear"):
        return not any(_has_zero_taps(s) for s in synapses)
    if any(s.composed for s in synapses):  # with averages, which may leave the number of synapses as it was
        return dense_operations(program, synapses) == counts.dense
    grown = counts.kind == "Conv2d" and any(s.weight[0, 0].size > counts.taps for s in synapses)
    return len(behind) < 2 and not grown


def _has_zero_taps(synapse: Synapse) -> bool:
    """Whether the kernel grew by zeros, which the chip reads: a tap that is 0 in every channel."""
    return bool((synapse.weight == 0).all((0, 1)).any())


def _kind(counts: LayerCounts | None, synapses: list[Synapse], program: LoihiProgram) -> str:
    if counts is not None:
        return "Skip" if counts.kind == "LIF" else counts.kind
    populations = [program.population(s.post) for s in synapses]
    if any(map(program.pools, populations)):
        return "MaxPool2d"
    return "Synapses" if any(p.source for p in populations) else "Relay"


def _note(
    synapses: list[Synapse],
    counts: LayerCounts | None,
    behind: list[str],
    program: LoihiProgram,
    macs: float,
    joined: dict[str, bool],
    graded: dict[str, float],
) -> str:
    notes = []
    if joined:
        notes.append(f"on the chip in one with {', '.join(joined)}: another synapse, with another number of events")
    if not all(joined.values()):
        notes.append("training's operations of what is shared are in one row alone")
    held, steps = program.held, program.time_steps
    host = [s.host for s in synapses]
    of_input = [s.pre == INPUT for s in synapses]
    if all(host):
        notes.append("computed by the host, once, and added to the neurons' biases")
    elif all(of_input):
        charged = (
            f"charged once; the chip receives it at each of the {steps} steps" if held else "charged at every step"
        )
        notes.append(f"{'spikes as' if program.takes_spikes else 'analog'} input: {charged}")
        notes += [f"graded events, {engine}: {events:,.0f}" for engine, events in graded.items()]
        if counts is None and not macs:
            notes.append("training has no synapse here: the input enters its neurons as it is")
    elif graded:
        where = "the host multiplies the input's part once" if any(host) else "the chip the input's part alone"
        notes.append(f"takes the input beside spikes: training multiplies both at every step, {where}")
    elif joined:
        pass
    elif macs:
        notes.append(
            "analog in training (multiplied at every step); the chip composes it with the layer before it and adds"
        )
    elif counts is not None and counts.kind == "MaxPool2d":
        notes.append("max-pooling of spikes: OR neurons on the chip")
    elif not behind:
        relays = program.population(synapses[0].post).spiking
        notes.append(
            "relay neurons: spikes wait for a longer branch" if relays else "class currents: no neurons fire here"
        )
    elif len(behind) > 1:
        notes.append("drives several layers of neurons: on the chip a synapse for each")
    if any(_has_zero_taps(s) for s in synapses):
        notes.append(
            "a kernel on the chip has taps of zero, from slices of maps or zeros on one side: read and counted"
        )
    return "; ".join(notes)


def mean_rate(program: LoihiProgram, record: SpikeRecord, samples: int | None = None) -> float | None:
    """Spikes per neuron and step of the LIF layers (OR neurons and relays left out), over the first samples.

    None where it has no such layer.
    """
    lifs = [p for p in program.populations if p.spiking and p.source and not program.pools(p)]
    fired = [record.spikes[p.name][:samples] for p in lifs]
    neurons = sum(p.neurons * spikes.size for p, spikes in zip(lifs, fired, strict=True))  # times samples and steps
    return sum(float(spikes.sum()) for spikes in fired) / neurons if neurons else None
