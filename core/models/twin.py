"""What turns one definition of a network into its CNN and into its spiking twin."""

from dataclasses import dataclass

from torch import nn

from spikeport.core.errors import SpikeportError
from spikeport.core.functional import whole_steps
from spikeport.core.neurons import LIF, TimeMean
from spikeport.core.settings import check_types
from spikeport.core.surrogates import surrogate_named

KINDS = ("cnn", "snn")
FORMS = ("activations", "every-layer")


@dataclass(frozen=True)
class Twin:
    """Which twin to build and, for the SNN, with which neurons.

    Attributes:
        kind: "cnn" (ReLU) or "snn" (LIF).
        spiking: "activations" puts a LIF where the CNN has a ReLU; "every-layer" puts one after every
            convolution's BatchNorm as well, so that every synapse carries spikes.
        time_steps: T, the steps of one inference.
        tau, v_threshold, surrogate, alpha: see ``spikeport.core.functional.lif``.
    """

    kind: str = "snn"
    spiking: str = "activations"
    time_steps: int = 4
    tau: float = 2.0
    v_threshold: float = 1.0
    surrogate: str = "atan"
    alpha: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        for value, allowed in ((self.kind, KINDS), (self.spiking, FORMS)):
            if value not in allowed:
                raise SpikeportError(f"{value!r} is not one of {', '.join(allowed)}")
        whole_steps(self.time_steps)
        if self.tau < 1:
            raise SpikeportError(f"tau is {self.tau}; the time constant is at least 1 step")
        if self.v_threshold <= 0:
            raise SpikeportError(f"v_threshold is {self.v_threshold}; it must lie above the reset, 0")
        surrogate_named(self.surrogate)
        if self.alpha is not None and self.alpha <= 0:
            raise SpikeportError(f"alpha is {self.alpha}; the surrogate's steepness is positive")

    def activation(self, first: bool = False) -> nn.Module:
        """ReLU or LIF; ``first`` marks the one that takes the constant current of the first convolution."""
        if self.kind == "cnn":
            return nn.ReLU()
        return LIF(
            tau=self.tau,
            v_threshold=self.v_threshold,
            surrogate=self.surrogate,
            alpha=self.alpha,
            time_steps=self.time_steps,
            constant_input=first,
        )

    def between(self) -> nn.Module:
        """What follows a linear BatchNorm: nothing, or a LIF in the every-layer form of the SNN."""
        return self.activation() if self.kind == "snn" and self.spiking == "every-layer" else nn.Identity()

    def readout(self) -> nn.Module:
        """What follows the class currents: nothing, or their mean over time."""
        return TimeMean(self.time_steps) if self.kind == "snn" else nn.Identity()
