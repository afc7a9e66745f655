"""The energy of both twins under every model, for every witness that has what the model needs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from spikeport.core.errors import SpikeportError
from spikeport.profiling import loihi_energy
from spikeport.profiling.comparison import common_samples
from spikeport.profiling.counts import ModelCounts
from spikeport.profiling.energy import (
    MODELS,
    PAPER,
    PAPER_ASSUMPTIONS,
    PAPER_SOURCE,
    Arithmetic,
    EnergyModel,
    by_layer,
    paper_count,
)
from spikeport.profiling.rows import TRAINING, Row, witnesses
from spikeport.targets.loihi.program import LoihiProgram
from spikeport.targets.record import SpikeRecord

CNN = "cnn"
NAMES = (*MODELS, PAPER, loihi_energy.NAME)
NEEDS_TRAINING = (
    "counts the model's operations, which a record alone does not tell; report on its run, or give its network"
)


@dataclass(frozen=True)
class Entry:
    """One energy model's figures.

    Attributes:
        nj: "cnn", "training" or engine -> nJ per image.
        layers: witness -> layer -> cause -> nJ per image; what the page's pictures show.
        refused: why it does not apply ("" where it does).
        notes: what else its reader must know.
    """

    source: str
    assumptions: str
    nj: dict[str, float] = field(default_factory=dict)
    layers: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    refused: str = ""
    notes: str = ""

    @property
    def gain(self) -> float | None:
        """How many times the energy of the SNN (training's count) the CNN takes."""
        snn = self.nj.get(TRAINING)
        return self.nj[CNN] / snn if CNN in self.nj and snn else None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"gain": self.gain}


def energy_table(
    names: Sequence[str],
    rows: list[Row],
    training: ModelCounts | None,
    cnn: ModelCounts | None,
    program: LoihiProgram,
    records: dict[str, SpikeRecord],
    seconds: float | None = None,
) -> dict[str, Entry]:
    """Model -> its figures, in the order of ``names`` (all models where empty).

    Args:
        seconds: duration of one inference, for the static power of ``loihi1``.

    Raises:
        SpikeportError: an unknown energy model.
    """
    for name in names:
        if name not in NAMES:
            raise SpikeportError(f"unknown energy model {name!r}; available: {', '.join(NAMES)}")
    found: dict[str, Entry] = {}
    for name in names or NAMES:
        if name == loihi_energy.NAME:
            found[name] = _loihi1(program, records, seconds, common_samples(training, records))
        elif name == PAPER:
            counted = {CNN: cnn, TRAINING: training}
            nj = {w: paper_count(c).energy_nj for w, c in counted.items() if c is not None}
            found[name] = Entry(PAPER_SOURCE, PAPER_ASSUMPTIONS, nj, refused="" if nj else NEEDS_TRAINING)
        else:
            found[name] = _both_twins(MODELS[name], rows, training, cnn)
    return found


def _both_twins(model: EnergyModel, rows: list[Row], training: ModelCounts | None, cnn: ModelCounts | None) -> Entry:
    layers: dict[str, dict[str, dict[str, float]]] = {}
    nj: dict[str, float] = {}
    for witness, counts in ((CNN, cnn), (TRAINING, training)):
        if counts is not None:
            layers[witness] = by_layer(model, counts)
            nj[witness] = sum(sum(causes.values()) for causes in layers[witness].values())
    if isinstance(model, Arithmetic):  # all it needs are operations, which every witness counts
        for witness in witnesses(rows):
            nj[witness] = sum(model.of(row.acs.get(witness, 0.0), row.macs_of(witness)) for row in rows)
    return Entry(model.source, model.assumptions, nj, layers, refused="" if nj else NEEDS_TRAINING)


def _loihi1(program: LoihiProgram, records: dict[str, SpikeRecord], seconds: float | None, samples: int) -> Entry:
    try:
        mapping = loihi_energy.loihi1_mapping(program)
    except SpikeportError as error:
        return Entry(loihi_energy.SOURCE, loihi_energy.ASSUMPTIONS, refused=str(error))
    nj, layers, notes = {}, {}, ""
    for engine, record in records.items():
        energy = loihi_energy.loihi1_energy(program, record, mapping, seconds, samples)
        nj[engine] = energy.total_nj
        layers[engine] = {_source(program, name): causes for name, causes in energy.rows.items()}
        notes = (
            f"{energy.cores} cores on {energy.chips} chip{'s' * (energy.chips != 1)}; "
            f"{energy.messages_between_chips:,.0f} messages per image between chips are not charged"
        )
    return Entry(loihi_energy.SOURCE, loihi_energy.ASSUMPTIONS, nj, layers, notes=notes)


def _source(program: LoihiProgram, name: str) -> str:
    """The layer of the model whose neurons a population holds, where it is the only one to do so."""
    for population in program.populations:
        if population.name == name and population.source:
            same = [p for p in program.populations if p.source == population.source]
            return population.source if len(same) == 1 else name
    return name
