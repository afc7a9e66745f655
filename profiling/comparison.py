"""Layer by layer: what training promised beside what the target's own counts say.

The same Horowitz constants are applied to every witness, on the same samples, and the analog first layer is charged
alike (once per inference where the input is held), so that any difference between witnesses is spikes alone; but where
the chip's synapses are others than training's (``Row.comparable``).
"""

import numpy as np

from spikeport.core.errors import SpikeportError
from spikeport.profiling.counts import LayerCounts, ModelCounts
from spikeport.profiling.energy import horowitz
from spikeport.profiling.loihi_energy import dense_operations
from spikeport.profiling.rows import TRAINING, Row
from spikeport.targets.loihi.program import INPUT, LoihiProgram, Population, Synapse
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
    return [_row(s, layers[s], sources[s], shown, training, program, records, cnn, samples) for s in order]


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


def _mean(counts: list[np.ndarray], samples: int) -> float:
    """Mean per image of counts [N, T], summed, over the first ``samples`` images."""
    return sum(float(c[:samples].sum()) for c in counts) / samples


def _divergence(expected: np.ndarray, found: np.ndarray) -> float:
    """Absolute differences of counts [N, T], summed, over the expected spikes."""
    return float(np.abs(expected - found).sum()) / max(float(expected.sum()), 1.0)


def _row(
    source: str,
    layers: list[str],
    synapses: list[Synapse],
    shown: set[str],
    training: ModelCounts | None,
    program: LoihiProgram,
    records: dict[str, SpikeRecord],
    cnn: ModelCounts | None,
    samples: int,
) -> Row:
    populations = {s.post: program.population(s.post) for s in synapses}
    spiking = [p for p in populations.values() if p.spiking]
    behind = list(dict.fromkeys(p.source for p in spiking if p.source))
    own = [name for name in behind if name not in shown]  # a second branch into the same neurons does not repeat them
    shown.update(own)
    if behind:  # a layer over a concatenation is several populations
        spiking = [p for p in program.populations if p.spiking and p.source in own]
    neurons = sum(p.neurons for p in (spiking if behind else populations.values()))
    trained = {name: training.layers[name] for name in layers if name in training.layers} if training else {}
    trained = {name: c for name, c in trained.items() if c.dense or c.kind == "LIF"}  # an average does nothing itself
    name, *composed = trained or [source]
    counts = trained.get(name)
    # What the chip has in one synapse with it, and whether its operations are counted in this row.
    working = [n for n, c in training.layers.items() if c.dense] if training else []
    joined = {n: n in layers for s in synapses for n in s.composed if n in working and n != name}
    comparable = not joined and _are_alike(synapses, counts, behind, program)
    analog = [] if program.takes_spikes else [s for s in synapses if s.pre == INPUT]
    only_analog = len(analog) == len(synapses)
    alike = only_analog and comparable
    macs, chip_macs, acs, graded = _operations(
        synapses, analog, alike, list(trained.values()), program, records, samples
    )
    fired = [training.layers[n].spikes for n in own if n in training.layers] if training else []
    spikes, divergence = _spikes([p.name for p in spiking], fired, records, samples)
    dense = (
        [cnn.layers[n].dense for n in layers if n in cnn.layers and cnn.layers[n].kind != "MaxPool2d"] if cnn else []
    )
    cnn_macs = float(sum(dense)) if dense else None
    return Row(
        layer=name if any(s.source for s in synapses) else "",
        composed=tuple(composed),
        kind=_kind(counts, populations, program),
        neurons_layer=", ".join(behind),
        neurons=neurons,
        macs=macs,
        chip_macs=chip_macs,
        analog=only_analog,
        comparable=comparable,
        acs=acs,
        spikes=spikes,
        rate={w: count / (neurons * program.time_steps) for w, count in spikes.items()},
        energy_nj={w: horowitz(count, macs if w == TRAINING else chip_macs) for w, count in acs.items()},
        divergence=divergence,
        graded_events=graded,
        cnn_macs=cnn_macs,
        cnn_energy_nj=None if cnn_macs is None else horowitz(0, cnn_macs),
        note=_note(synapses, counts, behind, program, macs, joined, graded),
    )


def _operations(
    synapses: list[Synapse],
    analog: list[Synapse],
    alike: bool,
    trained: list[LayerCounts],
    program: LoihiProgram,
    records: dict[str, SpikeRecord],
    samples: int,
) -> tuple[float, float, dict[str, float], dict[str, float]]:
    """``macs``, ``chip_macs``, ``acs`` and ``graded_events`` of a row.

    Args:
        analog: the synapses that take the network's analog input.
        alike: they are all there are, and training's: every witness has the same operations.
    """
    # What is held for all steps, and meets no spikes on its way, is charged once.
    once = program.held and all(s.pre == INPUT for s in synapses)
    charged = program.time_steps if once else 1
    times = {s.name: 1 if once or s.host else program.time_steps for s in analog}
    macs = chip_macs = float(sum(dense_operations(program, [s]) * times[s.name] for s in analog))
    acs: dict[str, float] = {}
    graded: dict[str, float] = {}
    if trained:
        # Neurons whose spikes reach others, but not through sums alone: training has no such operations.
        found = [c.acs for c in trained if c.kind != "LIF" or c.acs.any() or not c.spikes.any()]
        if found:
            acs[TRAINING] = _mean(found, samples)
        macs = _mean([c.macs for c in trained], samples)
        if alike:  # images that hold spikes are additions in every witness
            chip_macs = macs
    for engine, record in records.items():
        events = {s.name: record.events[s.name] for s in synapses if not s.host}
        if analog:
            graded[engine] = _mean([e for name, e in events.items() if name in times], samples)
        acs[engine] = _mean([e for name, e in events.items() if name not in times], samples) / charged
        if alike:
            acs[engine] = acs.get(TRAINING, 0.0)
    return macs, chip_macs, acs, graded


def _spikes(
    populations: list[str], trained: list[np.ndarray], records: dict[str, SpikeRecord], samples: int
) -> tuple[dict[str, float], dict[str, float]]:
    """``spikes`` and ``divergence`` of a row, from training's counts [N, T] and those of the engines."""
    spikes: dict[str, float] = {}
    divergence: dict[str, float] = {}
    if trained:
        spikes[TRAINING] = _mean(trained, samples)
    for engine, record in records.items():
        found = [record.spikes[name][:samples] for name in populations]
        if found:
            spikes[engine] = _mean(found, samples)
        if trained and found:
            divergence[engine] = _divergence(sum(trained[1:], trained[0])[:samples], sum(found[1:], found[0]))
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


def _kind(counts: LayerCounts | None, populations: dict[str, Population], program: LoihiProgram) -> str:
    if counts is not None:
        return "Skip" if counts.kind == "LIF" else counts.kind
    if any(program.pools(p) for p in populations.values()):
        return "MaxPool2d"
    return "Relay" if all(not p.source for p in populations.values()) else "Synapses"


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
