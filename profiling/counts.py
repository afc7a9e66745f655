"""What is counted of a model on given samples, layer by layer (``counting.py`` counts it).

Conventions, all stated again in the report:

- A tap of a convolution that falls on padding is no operation.
- A synaptic operation (AC) is one weight added because one spike arrived. It is counted for an image and step at which
  the layer's input holds nothing but spikes: 0 and 1, and, behind the first LIF layer, sums of spikes (0, 1, 2, ...:
  a 2 is two additions). Any other input costs multiply-accumulates (MAC). Spikes that are added to the current of
  other neurons (a residual connection) are one synaptic operation each, counted where they were fired.
- *Dense* counts every operation, *effective* leaves out those whose input is zero. Zero weights are counted.
- A layer that runs once for T steps (the first convolution, under a constant current) is counted once.
- BatchNorm right behind convolutions or linear layers folds into them: it costs nothing there, and gives a bias. Any
  other BatchNorm is counted as a convolution of each channel with one weight, and a bias. The ``paper`` counting
  differs.
- Max-pooling of spikes is counted as what it becomes on a chip: OR neurons, one synapse per tap. Average pooling is
  not counted: it composes with the synapses behind it, or with the read-out.
- Memory is accessed by the loops in ``Accesses``: no operand is kept for a second operation.
- Other element-wise arithmetic is not counted. Synapses that are not among the layers known here (another kind of
  layer, a matrix product in the model's own code) are refused by name: nothing is left out in silence.
"""

from dataclasses import dataclass, field, fields, replace

import numpy as np


@dataclass(frozen=True)
class Accesses:
    """Memory accesses per image, over all steps (means over the images), of these loops::

        for every spike (read it), for every synapse it reaches:       read the weight; read and write the state
        for every analog operation:                                    read the input; read the weight
        for every output of a layer with a bias:                       read the bias
        for every output of a layer on analog input:                   write it
        for every neuron, at every step:                               read and write the state
        for every spike of a neuron:                                   write it

    The loops are those of an event-driven machine for spikes (Lemaire et al., 2022) and of an output-stationary one,
    its partial sums in a register, for analog input.
    """

    inputs_read: float = 0.0
    weights_read: float = 0.0
    biases_read: float = 0.0
    states_read: float = 0.0
    states_written: float = 0.0
    outputs_written: float = 0.0

    @property
    def total(self) -> float:
        return sum(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True)
class Work:
    """What one layer does for one image over all steps (means over the images): what energy models take.

    Attributes:
        held: the layer runs once for all steps.
        leaky: its membranes decay (one multiplication per update).
        parameters, inputs, outputs, kernel: see ``LayerCounts``.
        acs, macs, bias_adds, updates: operations.
        spikes_in, spikes: spikes that arrive, spikes it fires.
        analog_outputs: results of passes on analog input.
        analog_passes: how many such passes.
    """

    kind: str
    held: bool
    leaky: bool
    parameters: int
    inputs: int
    outputs: int
    kernel: int
    acs: float
    macs: float
    bias_adds: float
    updates: float
    spikes_in: float
    spikes: float
    analog_passes: float

    @property
    def analog_outputs(self) -> float:
        return self.analog_passes * self.outputs

    @property
    def accesses(self) -> Accesses:
        return Accesses(
            inputs_read=self.spikes_in + self.macs,
            weights_read=self.acs + self.macs,
            biases_read=self.bias_adds,
            states_read=self.acs + self.updates,
            states_written=self.acs + self.updates,
            outputs_written=self.spikes + self.analog_outputs,
        )

    def scaled(self, rate: float, time: float) -> "Work":
        """The same layer with all firing rates times ``rate`` and ``time`` times as many steps."""
        factor = {"spikes": rate * time, "updates": time}
        if not self.held:  # what is held runs once, whatever the steps and rates
            factor |= {"acs": rate * time, "spikes_in": rate * time}
            factor |= {"macs": time, "bias_adds": time, "analog_passes": time}
        return replace(self, **{name: getattr(self, name) * by for name, by in factor.items()})


#: Counts per sample and pass.
SERIES = ("acs", "macs", "macs_effective", "spikes", "spikes_in")


@dataclass
class LayerCounts:
    """One layer over N samples.

    Attributes:
        kind: class name of the module.
        parameters: its weights and biases.
        bytes: what they take as the model holds them.
        inputs, outputs: elements of one image at one step; of a module that runs twice, here and below, of both runs.
        dense: operations of one image in one pass if no input were zero, padding excluded.
        padded: the same with padding and bias counted (ptflops, syops and the paper count so).
        kernel: of a convolution, output channels times taps; 0 elsewhere.
        taps: of a convolution, those of its kernel, height times width; 0 elsewhere.
        passes: T, or 1 for a layer under a constant current.
        held: it runs once for all steps: before the first LIF layer, or on what is held beside it.
        leaky: of a LIF layer, whether its membranes decay.
        bias: whether a bias is added: its own, or that of a BatchNorm folded into it.
        folds_into: for a BatchNorm, the layers it folds into (several before a concatenation; none where it cannot).
        acs: synaptic operations (effective; dense ones are ``dense * passes``), int64 [N, passes]; of a LIF layer,
            the spikes that residual connections pass on.
        macs: multiply-accumulates on analog input, dense, int64 [N, passes].
        macs_effective: those of them whose input is not zero.
        spikes: spikes of a LIF layer, or of the OR neurons a max-pooling stands for, int64 [N, T].
        spikes_in: spikes that arrive where the input is spikes, int64 [N, passes].
        neuron_spikes: of a LIF layer, spikes of every neuron over all samples and steps, int64 [outputs].
        analog: whether any image met the layer with values that are not spikes.
    """

    kind: str
    parameters: int = 0
    bytes: int = 0
    inputs: int = 0
    outputs: int = 0
    dense: int = 0
    padded: int = 0
    kernel: int = 0
    taps: int = 0
    passes: int = 1
    held: bool = False
    leaky: bool = False
    bias: bool = False
    folds_into: tuple[str, ...] = ()
    acs: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    macs: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    macs_effective: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    spikes: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    spikes_in: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    neuron_spikes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    analog: bool = False

    @property
    def rate(self) -> float:
        """Spikes per neuron and step."""
        return float(self.spikes.mean()) / self.outputs if self.spikes.size else 0.0

    @property
    def bias_adds(self) -> int:
        """Additions of a bias per image, over all steps."""
        return self.outputs * self.acs.shape[1] if self.bias else 0

    @property
    def neuron_updates(self) -> int:
        """Updates of a membrane per image, over all steps."""
        return self.outputs * self.spikes.shape[1]

    def mean(self, quantity: str) -> float:
        """Mean per image of one of ``SERIES``, summed over the steps."""
        counts = getattr(self, quantity)
        return float(counts.sum()) / len(counts) if counts.size else 0.0

    def work(self) -> Work:
        """Its means per image."""
        return Work(
            **{name: getattr(self, name) for name in ("kind", "held", "leaky", "parameters", "inputs", "outputs")},
            kernel=self.kernel,
            acs=self.mean("acs"),
            macs=self.mean("macs"),
            bias_adds=self.bias_adds,
            updates=self.neuron_updates,
            spikes_in=self.mean("spikes_in"),
            spikes=self.mean("spikes"),
            analog_passes=float((self.macs > 0).sum()) / len(self.macs) if self.macs.size else 0.0,
        )


@dataclass(frozen=True)
class ModelCounts:
    """Counts of a whole model: layer name -> counts, in the order the layers run."""

    samples: int
    time_steps: int
    layers: dict[str, LayerCounts]

    @property
    def spiking(self) -> bool:
        return any(c.kind == "LIF" for c in self.layers.values())

    @property
    def rate(self) -> float:
        """Average firing rate, the paper's: over all LIF outputs, steps and samples."""
        lifs = [c for c in self.layers.values() if c.kind == "LIF"]
        neurons = sum(c.outputs * c.spikes.size for c in lifs)  # times steps, samples, and passes where one runs twice
        return sum(float(c.spikes.sum()) for c in lifs) / neurons if neurons else 0.0

    def total(self, quantity: str) -> float:
        """Mean per image of one of ``SERIES``, summed over layers and steps."""
        return sum(float(getattr(c, quantity).sum()) for c in self.layers.values()) / self.samples
