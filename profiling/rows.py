"""The rows of the comparison, and what is summed over them."""

from dataclasses import asdict, dataclass, field
from typing import Any

from spikeport.profiling.energy import HOROWITZ

TRAINING = "training"
#: A relative difference of synaptic operations above this is marked in the report.
MARK_ABOVE = 0.1


@dataclass(frozen=True)
class Row:
    """One synaptic layer and the neurons behind it; all counts are means per image over all steps.

    Attributes:
        layer: the convolution, linear or pooling layer of the model ("" where only the target has it).
        composed: further layers, which the chip has in one synapse with it: training's counts are of all of them.
        neurons_layer: the spiking layer behind it ("" for class currents; several where it drives several).
        neurons: number of those of its neurons that no row before drives, whose spikes are in this one.
        macs: multiply-accumulates on analog input, as the model executes them.
        chip_macs: those of the engines: of what takes the network's analog input alone.
        analog: the layer takes the network's analog input, so that every witness multiplies; else only training does.
        acs: witness -> synaptic operations.
        spikes: witness -> spikes of the neurons.
        rate: witness -> spikes per neuron and step.
        divergence: engine -> how far its spikes are from training's: the absolute differences of the counts of every
            image and step, summed, over training's spikes.
        graded_events: engine -> synaptic events of graded input as the target executed them, at every step.
        cnn_macs: of the same layer of the CNN twin, dense.
        note: why target and training may differ here.
        comparable: the chip's synapses are training's, so that another number of operations comes of other spikes.
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
    divergence: dict[str, float] = field(default_factory=dict)
    graded_events: dict[str, float] = field(default_factory=dict)
    cnn_macs: float | None = None
    note: str = ""
    composed: tuple[str, ...] = ()
    chip_macs: float = 0.0
    comparable: bool = True

    def difference(self, witness: str) -> float | None:
        """Relative difference of synaptic operations to training; None where either has none, or other synapses."""
        if not self.acs.get(TRAINING) or witness not in self.acs or not self.comparable:
            return None
        return self.acs[witness] / self.acs[TRAINING] - 1

    def macs_of(self, witness: str) -> float:
        """What this witness multiplies; a chip adds, except where it takes the network's input."""
        return self.macs if witness == TRAINING else self.chip_macs

    def marked(self, witness: str) -> bool:
        """Whether the witness's synaptic operations differ from training's by more than ``MARK_ABOVE``."""
        difference = self.difference(witness)
        return self.woken(witness) or (difference is not None and abs(difference) > MARK_ABOVE)

    def woken(self, witness: str) -> bool:
        """Whether spikes arrive here that training did not see at all: there is no relative difference then."""
        silent = self.acs.get(TRAINING) == 0 and not self.macs
        return silent and self.comparable and self.acs.get(witness, 0.0) > 0

    @property
    def energy_nj(self) -> dict[str, float]:
        """Witness -> energy of its operations under Horowitz's constants, nJ."""
        return {w: HOROWITZ.of(acs, self.macs_of(w)) for w, acs in self.acs.items()}

    @property
    def cnn_energy_nj(self) -> float | None:
        """The same of ``cnn_macs``."""
        return None if self.cnn_macs is None else HOROWITZ.of(0, self.cnn_macs)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"energy_nj": self.energy_nj, "cnn_energy_nj": self.cnn_energy_nj}


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
