"""What a NIR neuron does in a step of the chip, in real numbers."""

from dataclasses import dataclass
from typing import Any

import nir
import numpy as np

from spikeport.core.errors import SpikeportError
from spikeport.core.geometry import Shape
from spikeport.export.nir_graph import model_threshold
from spikeport.export.nir_nodes import check_neurons
from spikeport.targets.loihi import arithmetic as loihi

#: One number for a map of neurons, or float64 [C] where its channels differ.
Values = float | np.ndarray


@dataclass(frozen=True, eq=False)
class Constants:
    """A neuron node per step: what u and v lose, what a current of 1 adds, all measured from the reset.

    Attributes:
        loss_u, loss_v: shares of u and v lost in a step (loss_u = 1: no current memory).
        gain: of the synaptic current.
        offset: what v_leak adds to v.
    """

    loss_u: Values = 1.0
    loss_v: Values = 0.0
    gain: Values = 1.0
    threshold: Values | None = None
    offset: Values = 0.0

    @property
    def on_grid(self) -> np.ndarray:
        """Whether v only ever holds sums of weights and biases: nothing leaks, or nothing stays (tau = 1); bool [] or
        [C].

        At tau = 1 that is the network's v. On the chip dv ends at 4095 of 4096, so 1/4096 of v stays, cut off towards
        zero: nothing of less than 64 weight steps, and less than 32 steps of the most that v can hold. ``compile``
        takes it off with the bias.
        """
        return np.equal(self.loss_u, 1) & np.isin(self.loss_v, (0.0, 1.0))

    @property
    def du(self) -> Values:
        """The register of u's decay: u loses (du + 1) / 4096."""
        return np.maximum(np.rint(self.loss_u * loihi.DECAY_ONE) - 1, 0)

    @property
    def dv(self) -> Values:
        """The register of v's decay: v loses dv / 4096."""
        return np.minimum(np.rint(self.loss_v * loihi.DECAY_ONE), loihi.DECAY_ONE - 1)

    def build_up(self, steps: int) -> tuple[Values, Values, Values]:
        """What ``steps`` currents of 1 add up to in u and in v, and biases of 1 in v, with decays as rounded."""
        kept_u, kept_v = 1 - (self.du + 1) / loihi.DECAY_ONE, 1 - self.dv / loihi.DECAY_ONE
        u: Values = 0.0
        v: Values = 0.0
        of_bias: Values = 0.0
        for _ in range(steps):
            u = u * kept_u + 1
            v = v * kept_v + u
            of_bias = of_bias * kept_v + 1
        return u, v, of_bias


def constants_of(name: str, node: Any, shape: Shape, dt: float, at_least: bool) -> Constants:
    """The constants of a neuron node over a map of ``shape``, with steps of ``dt`` seconds.

    Args:
        at_least: the network fires at its threshold, and the node holds the next smaller float32 (see
            ``nir_threshold``).

    Raises:
        SpikeportError: arrays that do not suit the map or differ within a channel, a value that is not finite, a decay
            of less than a step, or a threshold that is not above the reset.
    """
    flat = np.ndim(node.v_threshold) == 1
    check_neurons(name, node, (int(np.prod(shape)),) if flat else shape)

    def read(field: str) -> Values:
        values = np.asarray(getattr(node, field), np.float64)
        if not np.isfinite(values).all():
            raise SpikeportError(f"{name}: its {field} is not finite; export it again")
        first = float(values.flat[0])
        if (values == first).all():
            return first
        channels = values.reshape(shape[0], -1)
        if np.ptp(channels, axis=1).any():
            raise SpikeportError(f"{name}: {field} differs between neurons of a channel; only channels may differ")
        return channels[:, 0]

    def loss(field: str) -> Values:
        with np.errstate(divide="ignore"):
            share = dt / np.asarray(read(field))
        if not np.all((share > 0) & (share <= 1 + 1e-6)):  # files hold float32
            raise SpikeportError(f"{name}: {field} is {np.min(read(field)) / dt:.7g} steps; at least 1 is needed")
        return np.minimum(share, 1.0)

    r, reset = read("r"), read("v_reset")
    threshold = read("v_threshold") - reset
    if at_least:
        # That difference may vanish beside a reset that is not 0, and with it the tie: it is taken afterwards.
        own = model_threshold(read("v_threshold")) - reset
        threshold = np.minimum(threshold, own * (1 - 2.0**-25))
    if np.any(threshold <= 0):
        raise SpikeportError(f"{name}: its threshold is not above its reset; raise it")
    if isinstance(node, nir.IF):
        return Constants(gain=r * dt, threshold=threshold)
    leak = read("v_leak") - reset
    if isinstance(node, nir.LIF):
        lost = loss("tau")
        return Constants(loss_v=lost, gain=r * lost, threshold=threshold, offset=leak * lost)
    lost_u, lost = loss("tau_syn"), loss("tau_mem")
    return Constants(lost_u, lost, read("w_in") * lost_u * r * lost, threshold, leak * lost)
